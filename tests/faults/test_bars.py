"""The table of bars: whole, resumable, and made of tests that exist. The bars themselves run in `make test-faults`."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.faults.__main__ import run_bars, table
from tests.faults.bars import BARS, Bar
from tests.faults.bench import ROOT, Bench
from tests.faults.recovery import Found


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.id)
def test_bar_is_shown_by_a_case_or_by_tests_that_exist(bar: Bar) -> None:
    assert (bar.case is None) != (not bar.tests)
    for name in bar.tests:
        path, _, function = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not function or re.search(rf"^def {function}\(", (ROOT / path).read_text(), re.MULTILINE), name


def test_ids_are_unique() -> None:
    assert len({bar.id for bar in BARS}) == len(BARS)


def test_campaign_goes_on_where_it_was_stopped_and_prints_every_row(tmp_path: Path) -> None:
    calls: list[str] = []

    def case(name: str, met: bool | None) -> Bar:
        def run(bench: Bench) -> Found:
            calls.append(name)
            return Found(met, f"saw {name}")

        return Bar(name, f"says {name}", case=run)

    def broken(bench: Bench) -> Found:
        raise RuntimeError("step 45 did not come")

    tests = Bar("T", "a test", tests=("tests/faults/test_bars.py::test_ids_are_unique",))
    bars = [case("A", True), case("B", False), case("C", None), Bar("D", "breaks", case=broken), tests]
    results, console = tmp_path / "results.json", Console(quiet=True)
    bench = Bench(tmp_path)
    rows = run_bars(bars, bench, results, commit="one", console=console)
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {"A": "met", "B": "NOT MET", "C": "not here", "D": "NOT MET", "T": "met"}
    assert "1 passed" in rows["T"]["found"]
    assert json.loads(results.read_text()) == rows
    run_bars(bars, bench, results, commit="one", console=console)
    assert calls == ["A", "B", "C", "B", "C"], "what was met is not run again"
    run_bars(bars[:1], bench, results, commit="two", console=console)
    assert calls[-1] == "A", "another commit starts anew"
    shown = Console(width=100, record=True, file=io.StringIO())
    shown.print(table(bars, rows))
    assert "step 45 did not come" in shown.export_text()
