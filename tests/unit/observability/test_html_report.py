"""The page of `megadeberta report --html`: whole, self-contained, and right in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.observability.html_report import different_settings, html_report, read_run, summary_rows, time_rows
from megadeberta.observability.metrics import MetricsFile

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "br", "img", "hr", "input"}


def run_folder(folder: Path, *, lr: float, name: str) -> Path:
    with MetricsFile.create(folder / "metrics.jsonl") as file:
        for step in range(1, 61):
            losses = {"loss": 9.0 - step * lr * 100, "mlm_loss": 9.0 - step * lr * 100}
            more = {"tokens_per_second": 1000.0 + step, "seconds_forward": lr * step}
            file.write(step, losses | {"grad_norm": 1.0, "lr": lr} | more)
            if step % 20 == 0:
                losses = {f"valid_{key}": value + 0.1 for key, value in losses.items()}
                file.write(step, losses | {"unigram_cross_entropy": 6.5})
    recipe = {"name": name, "optimizer": {"lr": lr}, "training": {"steps": 60}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs; the second one has a name that would be mark-up."""
    return [
        run_folder(tmp_path / "first", lr=1e-3, name="first"),
        run_folder(tmp_path / "second", lr=5e-4, name="<script>alert(1)</script>"),
    ]


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_fetches_nothing(runs: list[Path]) -> None:
    page = html_report([read_run(folder) for folder in runs])
    parsed = _Balance()
    parsed.feed(page)
    assert parsed.open == []
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    fetched = re.findall(r"""(?:src|href)=["']([^"'#]+)""", page) + re.findall(r"url\(([^)#]+)", page)
    assert fetched == []
    text = " ".join(parsed.texts)
    assert "optimizer.lr" in text and "0.001" in text and "0.0005" in text


def test_one_run_has_its_verdict_and_recipe_and_several_their_differences(runs: list[Path]) -> None:
    alone = html_report([read_run(runs[0])])
    assert "validation MLM loss 3.100 nats per masked token after step 60" in alone
    assert "unigram cross-entropy 6.500: 3.400 nats better" in alone and "Settings that differ" not in alone
    both = [read_run(folder) for folder in runs]
    assert dict(different_settings(both))["optimizer.lr"] == ["0.001", "0.0005"]
    head, rows = summary_rows(both)
    assert head == ["run", "steps", "validation loss", "MLM loss", "tokens per second"]
    assert rows[0] == [str(runs[0]), "60", "3.100", "3.100", "1,030"]


def test_the_command_compares_and_writes_the_page(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", *map(str, runs), "--html", str(page)], catch_exceptions=False)
    assert done.exit_code == 0 and page.is_file()
    assert "optimizer.lr" in done.output and "page:" in done.output


def test_a_run_without_recipe_or_checkpoint_still_has_a_page(runs: list[Path]) -> None:
    (runs[0] / "recipe.json").write_text("{half")
    assert "Recipe of" not in html_report([read_run(runs[0])])


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
def test_a_browser_without_a_network_shows_the_curves(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(html_report([read_run(folder) for folder in runs]))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.count("<svg") == 2 and "Settings that differ" in done.stdout


def test_the_median_of_each_phase_stands_beside_that_of_other_runs(runs: list[Path]) -> None:
    with MetricsFile(runs[0] / "metrics.jsonl") as file:
        file.write(60, {"seconds_save": 2.0})
    facts = [read_run(run) for run in runs]
    assert time_rows(facts) == [["forward", "0.0305", "0.0152"], ["save", "2", "-"]]
    assert "Median seconds" in html_report(facts)


@pytest.mark.parametrize("name", ["a $\\frac{ b$", "[/red] [bold]x", "_hidden", "x" * 200, "\u6a21\u578b", "</svg><b>"])
def test_a_folder_may_have_any_name(
    name: str, runs: list[Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Formulas, mark-up of the terminal and of the page, what matplotlib leaves out, and letters its font lacks."""
    folder = run_folder(tmp_path / "named" / name.replace("/", "|"), lr=1e-3, name="plain")
    done = CliRunner().invoke(app, ["report", str(folder), str(runs[0]), "--html", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    reader = _Balance()
    reader.feed(page)
    assert not reader.open
    assert any(folder.name[-60:] in text for text in reader.texts)
    assert not recwarn.list
