"""Nothing is cut in a narrow terminal, and nobody waits without knowing for what."""

import contextlib
import io
import logging
import os
import pty
import re
import shlex
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from megadeberta.checkpoint.durable import Digest
from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER
from megadeberta.checkpoint.manifest import (
    FORMAT_VERSION,
    FileRecord,
    Manifest,
    RunRecord,
    WorldLayout,
    encode_manifest,
)
from megadeberta.cli import app
from megadeberta.config import waiting
from megadeberta.config.cli import _complete_recipe
from megadeberta.config.terminal import fitting_table, line_width, print_line, say, wrap_command, wrap_items
from megadeberta.config.waiting import Waiting, counted
from megadeberta.data_prep.fetch import CORPORA, complete_corpus
from megadeberta.finetune.options import complete_task
from megadeberta.observability.logs import set_up_logging
from megadeberta.observability.progress import Rates, format_progress

ROWS = [{"name": "step-500000", "size": "1.23 GB", "made": "2026-01-01 00:00:00"}]


def _shown(width: int, choices: list[tuple[str, ...]]) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(fitting_table(console, ROWS, choices=choices))
    return console.export_text()


@pytest.mark.parametrize(("width", "columns"), [(80, 3), (30, 2), (10, 1)])
def test_a_table_leaves_columns_out_before_it_cuts_one(width: int, columns: int) -> None:
    text = _shown(width, [("name", "size", "made"), ("name", "size"), ("name",)])
    names = ("step-500000", "1.23 GB", "2026-01-01 00:00:00")
    if width >= 30:
        assert [name in text for name in names] == [number < columns for number in range(3)]
    assert "…" not in text


def test_a_cell_of_several_words_is_not_cut() -> None:
    console = Console(width=24, file=io.StringIO(), record=True)
    rows = [{"layout": "1 x 16 x 128", "step": "10.51", "GiB": "74.20"}]
    console.print(fitting_table(console, rows, choices=[("layout", "GiB", "step"), ("layout", "step")]))
    text = console.export_text()
    assert "1 x 16 x 128" in text and "10.51" in text and "GiB" not in text


@pytest.mark.parametrize("is_narrow", [True, False])
def test_a_line_is_broken_between_words_on_a_terminal_only(is_narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_narrow:
        monkeypatch.setenv("COLUMNS", "40")
    console = Console(file=io.StringIO())
    line = "corpora/mine: train 80,128 tokens in 24 documents; valid 2,920 tokens in 1 documents"
    print_line(console, line)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert (max(map(len, lines)) <= 40) == is_narrow
    assert " ".join(each.strip() for each in lines) == line


def test_the_list_of_tasks_fits_a_terminal_of_80_columns() -> None:
    done = CliRunner().invoke(app, ["finetune", "list"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert "…" not in done.output
    assert re.search(r"multiple-choice +your table: context, question, choices \(a list\), +accuracy", done.output)


@pytest.mark.parametrize("is_narrow", [True, False])
def test_what_a_command_says_is_broken_between_words_on_a_terminal_only(
    is_narrow: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if is_narrow:
        monkeypatch.setenv("COLUMNS", "60")
    line = "runs/cooled/cooldown.json is written: steps 61 to 80 after runs/base/checkpoints/step-60"
    say(line)
    lines = capsys.readouterr().out.splitlines()
    assert (max(map(len, lines)) <= 60) == is_narrow
    assert " ".join(each.strip() for each in lines) == line


def test_lines_of_the_log_are_broken_between_words() -> None:
    stream = io.StringIO()
    record = logging.makeLogRecord(
        {"msg": "no curves in TensorBoard: " + "it is not installed " * 4, "levelno": 30, "name": "megadeberta"}
    )
    record.levelname = "WARNING"
    set_up_logging(0, environ={"COLUMNS": "60", "FORCE_COLOR": "1"}, stream=stream)
    logging.getLogger().handle(record)
    shown = re.sub(r"\033\[\d+m", "", stream.getvalue()).splitlines()
    assert len(shown) == 2 and max(map(len, shown)) <= 60
    assert shown[0].startswith("WARNING: no curves") and shown[1].startswith("    ")


@pytest.mark.parametrize("columns", ["80", "100", "124"])
def test_a_plan_fits_the_terminal(columns: str) -> None:
    arguments = [
        "plan",
        "deberta-v2-xxlarge",
        "--nodes",
        "2",
        "--gpus",
        "8",
        "--memory",
        "80",
        "--stages",
        "--limit",
        "4",
    ]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": columns})
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= int(columns)
    assert command_in(done.output)[:5] == ["megadeberta", "launch", "deberta-v2-xxlarge", "--hostfile", "HOSTS"]
    assert "…" not in done.output
    for cell in ("t x p x d", "micro x acc", "bubble", "step", "1 x 1 x 16"):
        assert cell in done.output
    assert ("params" in done.output) == (columns == "124")


def test_a_list_of_checkpoints_fits_the_terminal(tmp_path: Path) -> None:
    folder = tmp_path / CHECKPOINTS_FOLDER / "step-1234500"
    folder.mkdir(parents=True)
    run = RunRecord(
        world=WorldLayout(world_size=64, data_parallel=64, zero_stage=1, precision="bf16"),
        versions={},
        fingerprint={},
        config={},
    )
    digest = Digest(3 * 10**9, "0" * 64)
    file = FileRecord.of_one(digest, 0)
    created = "2026-01-02T03:04:05+00:00"
    manifest = Manifest(format_version=FORMAT_VERSION, step=1234500, created=created, run=run, files={"a": file})
    (folder / "manifest.json").write_bytes(encode_manifest(manifest))
    (folder.parent / "latest").write_text("step-1234500\n")
    for columns, shows_precision in (("80", False), ("124", True)):
        done = CliRunner().invoke(app, ["checkpoint", "list", str(tmp_path)], env={"COLUMNS": columns})
        assert done.exit_code == 0, done.output
        assert max(map(len, done.output.splitlines())) <= int(columns)
        assert "step-1234500" in done.output and "2026-01-02 03:04:05" in done.output and "latest" in done.output
        assert ("bf16" in done.output) == shows_precision


def test_a_progress_line_is_broken_between_two_items() -> None:
    terms = {"mlm_loss": 2.3, "mlm_accuracy": 0.5, "rtd_loss": 0.084, "rtd_precision": 0.7, "rtd_recall": 0.25}
    values = {"loss": 6.5, "terms": terms, "baselines": {"mlm_loss": 6.566}, "gradient_norm": 1, "lr": 1e-4}
    rates = Rates(41_300.0, 0.38, 7380)
    whole = format_progress(499_990, 500_000, **values, rates=rates)  # type: ignore[arg-type]
    broken = format_progress(499_990, 500_000, **values, rates=rates, width=80)  # type: ignore[arg-type]
    assert max(map(len, broken.splitlines())) <= 80 < len(whole)
    assert " ".join(line.strip() for line in broken.splitlines()) == whole
    assert all(not line.strip()[0].isdigit() for line in broken.splitlines())


def test_an_item_that_is_longer_than_the_line_has_one_of_its_own() -> None:
    assert wrap_items(["a", "b" * 50, "c"], 40) == f"a\n    {'b' * 50}\n    c"
    assert wrap_items(["a", "b"], None) == "a b"


def command_in(output: str) -> list[str]:
    """The words that a shell reads in the command at the end of an output."""
    return shlex.split(output[output.rindex("megadeberta launch ") :].replace("\\\n", ""))


def test_a_command_is_broken_where_a_shell_goes_on_and_an_option_stays_by_its_value() -> None:
    words = ["srun", "--wait=60", "my run", "--set", "training.steps=500000", "--set", "name=a b", "--dry-run"]
    broken = wrap_command(words, 40)
    assert max(map(len, broken.splitlines())) <= 40
    assert [line.split()[0] for line in broken.splitlines()] == ["srun", "--set", "--set"]
    told = subprocess.run(["sh", "-c", broken.replace("srun", "printf '%s\\n'", 1)], capture_output=True, text=True)
    assert told.stdout.splitlines() == words[1:]
    assert wrap_command(words, None) == shlex.join(words)


def test_width_of_lines_is_that_of_the_environment_or_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert line_width({"COLUMNS": "100"}) == 100
    assert line_width({"COLUMNS": "7"}) == 40
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert line_width({}) is None
    assert line_width({"COLUMNS": "wide"}) is None


def test_who_waits_learns_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_FIRST_SECONDS", 0.01)
    said = threading.Event()

    class Stream(io.StringIO):
        def flush(self) -> None:
            said.set()

    monkeypatch.setattr(sys, "stderr", Stream())
    with Waiting("loading torch"):
        assert said.wait(timeout=60)
        assert sys.stderr.getvalue().startswith("loading torch, 0 s ...\n")  # type: ignore[attr-defined]


def test_lines_follow_within_three_seconds_in_the_first_minute_and_are_few_in_an_hour() -> None:
    lines = [2.5]
    while lines[-1] < 3600:
        lines.append(lines[-1] + waiting.pause_after(lines[-1]))
    in_a_minute = [line for line in lines if line <= 60]
    assert max(after - before for before, after in pairwise([0.0, *in_a_minute])) < 3
    assert len(lines) - len(in_a_minute) < 90


def test_what_waits_inside_another_is_said_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.StringIO()
    monkeypatch.setattr(waiting, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(waiting, "_SHARE", 0.0)
    monkeypatch.setattr(sys, "stderr", lines)
    with Waiting("exporting"):
        with Waiting("comparing"):
            for number in counted(range(4)):
                while f"comparing, {25 * number} %, 0 s ...\n" not in lines.getvalue():
                    time.sleep(0.001)
        lines.truncate(0)
        while "exporting, 0 s ...\n" not in lines.getvalue():
            time.sleep(0.001)
    assert not waiting._stack


ON_A_TERMINAL = """
import logging, sys, time
from megadeberta.config import waiting
from megadeberta.observability.logs import set_up_logging
waiting._FIRST_SECONDS = 0.0
set_up_logging(0)
with waiting.Waiting("scoring runs/quickstart"):
    for number in waiting.counted(range(4)):
        if number == 2:
            logging.getLogger("x").info("a line of the log")
        time.sleep(0.5)
print("the result")
"""


def test_on_a_terminal_a_bar_fills_and_disappears_and_leaves_lines_whole() -> None:
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # of the end: the other side is closed
        while part := os.read(ours, 4096):
            seen += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "scoring runs/quickstart \u2501" in text
    assert "%, " not in text, "the plain lines are for logs"
    assert [line for line in re.split(r"[\r\n]+", text) if line.startswith("a line")] == ["a line of the log"]
    assert text.rstrip().endswith("the result")
    assert "\x1b[2K" in seen.decode(), "the bar is erased at the end"


def test_what_is_quick_or_of_another_rank_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Waiting("loading torch"):
        pass
    with Waiting("loading torch", quiet=True):
        pass
    assert capsys.readouterr() == ("", "")


def test_the_shell_completes_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.yaml").touch()
    (tmp_path / "quick.txt").touch()
    (tmp_path / "quiet").mkdir()
    (tmp_path / "quiet" / "mine.json").touch()
    assert _complete_recipe("qui") == ["quickstart", "quickstart-rtd", "quick.yaml", "quiet/"]
    assert _complete_recipe("quiet/") == ["quiet/mine.json"]
    assert "clusters/deberta-large-1x8" in _complete_recipe("clusters/deberta-l")
    assert _complete_recipe("none/such") == []


def test_completion_offers_tasks_and_corpora() -> None:
    assert complete_task("sst") == ["sst-2"]
    assert complete_task("li") == ["list"]
    assert complete_corpus("") == list(CORPORA)
    assert complete_corpus("none") == []


def test_completion_answers_through_the_command_and_imports_what_is_typed() -> None:
    environ = {**os.environ, "COMP_CWORD": "2", "_MEGADEBERTA_COMPLETE": "complete_bash"}
    words = [sys.executable, "-m", "megadeberta"]
    done = subprocess.run(
        words, env=environ | {"COMP_WORDS": "megadeberta train small"}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["small-mlm", "small-rtd"], done.stderr
    done = subprocess.run(
        words,
        env=environ | {"COMP_WORDS": "megadeberta ev", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["evaluate"], done.stderr
