"""The frame around all commands: quick, torch-free, one line for every mistake."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import megadeberta
import megadeberta.__main__
from megadeberta import cli, errors
from megadeberta.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    ParallelError,
    PeerLostError,
    StorageError,
)


def _run(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megadeberta", *arguments]
    return subprocess.run(command, env=os.environ | (environ or {}), capture_output=True, text=True, timeout=60)


@pytest.fixture
def end_with(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[BaseException], Any]:
    """Run ``main`` around a command that raises; its exit code and what it wrote on standard error."""

    def run(error: BaseException) -> tuple[object, str]:
        def command(**options: object) -> None:
            raise error

        monkeypatch.setattr(cli, "app", command)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    return run


def _all_commands() -> dict[str, Any]:
    found: dict[str, Any] = {}

    def collect(prefix: str, command: Any) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            if getattr(inner, "commands", None):
                collect(f"{prefix}{name} ", inner)
            else:
                found[prefix + name] = inner

    collect("", get_command(cli.app))
    return found


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (DataError("x"), 2),
        (CheckpointError("x"), 2),
        (ParallelError("x"), 2),
        (DivergenceError("x"), 77),
        (StorageError("x"), 79),
        (PeerLostError("x"), 80),
    ],
)
def test_each_error_is_one_line_and_its_documented_code(
    end_with: Callable[[BaseException], Any], error: Exception, code: int
) -> None:
    assert end_with(error) == (code, "error: x\n")


def test_message_of_several_lines_becomes_one(end_with: Callable[[BaseException], Any]) -> None:
    assert end_with(DataError("first\n  second"))[1] == "error: first second\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 79, "error: No space left on device\n"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 79, "error: /x: Read-only file system\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 130, ""),
    ],
)
def test_what_nobody_explained_is_still_one_line(
    end_with: Callable[[BaseException], Any], error: BaseException, code: int, message: str
) -> None:
    assert end_with(error) == (code, message)


@pytest.mark.parametrize("error", [ValueError("bug"), OSError("bug"), ChildProcessError(errno.ECHILD, "bug")])
def test_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def command(**options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", command)
    with pytest.raises(type(error), match="bug"):
        cli.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lunch"], r"error: No such command 'lunch'\. Did you mean 'launch'\? \(`megadeberta --help` explains\)\n"),
        (["launch"], r"error: Missing argument 'RECIPE' \(`megadeberta launch --help` explains\)\n"),
        (["launch", "x", "--rank", "2"], r"error: No such option: --rank .*--ranks.*\n"),
        (["launch", "x", "--ranks", "0"], r"error: Invalid value for '--ranks': .*\n"),
        (["launch", "none.json"], r"error: recipe none\.json does not exist; `megadeberta recipes` lists .*\n"),
    ],
)
def test_wrong_command_line_is_one_line_and_code_2(arguments: list[str], message: str) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert re.fullmatch(message, done.stderr), done.stderr
    assert done.stdout == ""


def test_no_arguments_print_the_help() -> None:
    done = _run()
    assert (done.returncode, done.stderr) == (2, "")
    assert "launch" in done.stdout


def test_version_is_that_of_the_package() -> None:
    assert _run("--version").stdout == f"megadeberta {megadeberta.__version__}\n"


def test_local_rank_of_the_deepspeed_launcher_may_come_first() -> None:
    done = _run("--local_rank=0", "train", "none.json", environ={"RANK": "0", "WORLD_SIZE": "1"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipe none.json does not exist; ")


@pytest.mark.parametrize("name", sorted(_all_commands()))
def test_help_of_every_command_has_an_example(name: str) -> None:
    text = " ".join((_all_commands()[name].help or "").split())
    assert f"megadeberta {name} " in text, f"no example in the help of {name}"


@pytest.mark.parametrize("name", ["", *sorted(_all_commands())])
def test_help_is_whole_at_80_columns_and_names_every_option_and_choice(name: str) -> None:
    command = _all_commands()[name] if name else get_command(cli.app)
    shown = CliRunner().invoke(cli.app, [*name.split(), "--help"], env={"COLUMNS": "80"}).output
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    visible = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    assert [p.name for p in visible if not getattr(p, "help", None)] == []
    options = [option for parameter in visible for option in parameter.opts if option.startswith("--")]
    assert [option for option in options if option not in shown] == []
    # A metavar of ours hides the choices, so the text has them.
    assert [
        choice
        for parameter in visible
        if parameter.metavar and isinstance(parameter.default, StrEnum)
        for choice in type(parameter.default)
        if not re.search(rf"\b{re.escape(choice)}\b", shown)
    ] == []


def test_exit_codes_are_the_same_in_every_text() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    in_table = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert in_table == codes | {0, 1}
    everyday = codes - {errors.EXIT_INTERRUPTED}  # three Ctrl-C
    root = get_command(cli.app)
    for text in (root.epilog, _all_commands()["train"].help):
        assert {int(code) for code in re.findall(r"[:;] (\d+) [a-z]", " ".join(text.split()))} == everyday | {0}


def test_output_that_nobody_reads_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        command = [sys.executable, "-m", "megadeberta", "--help"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_a_launch_that_does_not_listen_yet_ends_it_as_before_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    monkeypatch.setattr(sys, "argv", ["megadeberta", "launch", "quickstart"])
    monkeypatch.setattr(cli, "main", lambda: signal.raise_signal(number))
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with pytest.raises(SystemExit) as ended:
            megadeberta.__main__.main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended.value.code == 75
    assert capsys.readouterr().err.startswith(f"stopped by {number.name} before training began; the same command")


def test_every_help_text_begins_with_a_capital_letter_and_ends_without_a_point() -> None:
    texts = {
        (name, parameter.name): parameter.help
        for name, command in _all_commands().items()
        for parameter in command.params
        if getattr(parameter, "help", None)
    }
    assert len(texts) > 150
    wrong = {key: text for key, text in texts.items() if not text[0].isupper() or re.search(r"\.(\s+\[|$)", text)}
    assert not wrong
