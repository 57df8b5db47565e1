"""What reaches the shells of other machines: checked words only."""

import os
import sys
from pathlib import Path

import pytest

from megadeberta.errors import ConfigError, ParallelError
from megadeberta.launcher.hosts.hostfile import build_command, read_hostfile


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine with pdsh, and an empty working folder."""
    pdsh = tmp_path / "bin" / "pdsh"
    pdsh.parent.mkdir()
    pdsh.write_text("#!/bin/sh\n")
    pdsh.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "hosts").write_text("node1 slots=8\nnode2 slots=8\n")
    return {"PATH": str(pdsh.parent), "HOME": str(tmp_path)}


def _build(environ: dict[str, str], *words: str) -> list[str]:
    return build_command(Path("hosts"), words or ("r.json",), master_port=29500, environ=environ)


def test_hosts_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# cluster\nnode2 slots=4\n\n  node-1.x.org   slots=8 # big\nfe80::1 slots=1\n")
    assert list(read_hostfile(path).items()) == [("node2", 4), ("node-1.x.org", 8), ("fe80::1", 1)]


@pytest.mark.parametrize(
    "line",
    [
        "-oProxyCommand=touch${IFS}/x slots=1",
        "a;id slots=1",
        "$(id) slots=1",
        "`id` slots=1",
        "a|b slots=1",
        "a,b slots=1",
        "user@host slots=1",
        "a/b slots=1",
        "nöde slots=1",
        "'a' slots=1",
        "-n slots=1",
    ],
)
def test_hostile_host_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"node1 slots=8\n{line}\n")
    with pytest.raises(ParallelError, match=r"hosts:2: .* is not a host name"):
        read_hostfile(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node1\n", r"hosts:1: 'node1' is not of the form 'HOST slots=N'"),
        ("node1 slots=x\n", r"is not of the form"),
        ("node1 slots=8;id\n", r"is not of the form"),
        ("node1 slots=8 extra\n", r"is not of the form"),
        ("a b slots=1\n", r"is not of the form"),
        ("a\rb slots=1\n", r"is not of the form"),
        ("node1 slots=0\n", r"slots=0 starts no rank on node1"),
        ("node1 slots=8\nnode1 slots=8\n", r"hosts:2: node1 is listed twice"),
        ("# nobody\n\n", r"names no host"),
    ],
)
def test_bad_hostfile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(text.encode())
    with pytest.raises(ParallelError, match=message):
        read_hostfile(path)


def test_missing_or_binary_hostfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParallelError, match=r"none cannot be read: No such file"):
        read_hostfile(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe slots=1")
    with pytest.raises(ParallelError, match=r"binary cannot be read: .*utf-8"):
        read_hostfile(tmp_path / "binary")


def test_command_starts_train_on_all_hosts(environ: dict[str, str]) -> None:
    command = _build(environ, "r.json", "--set", "optimizer.lr=5e-4")
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert command[command.index("--module") :] == ["--module", "megadeberta", "train", "r.json", "--set", command[-1]]
    assert command[-1] == "optimizer.lr=5e-4"


@pytest.mark.parametrize(
    "word", ["--x=1;id>f", "a b", "$HOME", "`id`", 'a"b', "a'b", "a\nb", "*", "~x", "[1]", "{a}", "", "a&b", "ü", "\\n"]
)
def test_word_that_a_shell_would_change_is_refused(environ: dict[str, str], word: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be passed to other machines: .* put the value into a recipe"):
        _build(environ, "r.json", "--set", word)


def test_working_folder_that_a_shell_would_change_is_refused(environ: dict[str, str], tmp_path: Path) -> None:
    odd = tmp_path / "my work"
    odd.mkdir()
    (odd / "hosts").write_text("a slots=1\n")
    os.chdir(odd)
    with pytest.raises(ConfigError, match=r"the working folder '.*my work' holds characters"):
        _build(environ)


def test_missing_pdsh_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(ParallelError, match="pdsh is not installed; run `apt install pdsh"):
        _build(environ | {"PATH": "/nonexistent"})


def test_address_of_the_first_host_is_passed_on_and_checked(environ: dict[str, str]) -> None:
    def build(address: str) -> list[str]:
        return build_command(Path("hosts"), ["r.json"], master_port=29500, environ=environ, master_addr=address)

    command = build("10.1.0.7")
    assert command[command.index("--master_addr") + 1] == "10.1.0.7"
    with pytest.raises(ConfigError, match="cannot be passed to other machines"):
        build("10.1.0.7;id")
