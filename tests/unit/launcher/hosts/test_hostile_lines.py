"""More than two hundred lines, words and variables that would run a command on the way to another machine: none does.

What is refused cannot. What is passed on is given to a shell as DeepSpeed's launcher gives it to those of the machines:
words as they are, variables between double quotes (launcher/multinode_runner.py: PDSHRunner).
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from megadeberta.errors import MegadebertaError
from megadeberta.launcher.hosts.environment import environment_lines
from megadeberta.launcher.hosts.hostfile import build_command

PAYLOADS = (
    ";{run}",
    "|{run}",
    "||{run}",
    "&{run}",
    "&&{run}",
    "\n{run}\n",
    "\r\n{run}\r\n",
    "\v{run}",
    "\u2028{run}",
    "#\n{run}",
    "$({run})",
    "`{run}`",
    '"$({run})"',
    '";{run};"',
    "'$({run})'",
    "';{run};'",
    "\\;{run}",
    "\\\n{run}",
    "$(({run}))",
    "${{x:-$({run})}}",
    "${{IFS}};{run}",
    "<({run})",
    ">{file}",
    ">>{file};",
    "-oProxyCommand={run}",
    "-oProxyCommand=touch${{IFS}}{file}",
    "--exec={run};",
    "~;{run}",
    "*;{run}",
    "(){{ :;}};{run}",
    "é;{run}",
    "\0;{run}",
)


class _Shells:
    """What would be done with each line on a machine; ``given`` counts lines, ``refused`` those that got nowhere."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marker = folder, folder / "ran"
        pdsh = folder / "bin" / "pdsh"
        pdsh.parent.mkdir()
        pdsh.write_text("#!/bin/sh\n")
        pdsh.chmod(0o755)
        self.environ = {"PATH": str(pdsh.parent), "HOME": str(folder)}
        self.given = self.refused = 0

    def payloads(self) -> list[str]:
        return [payload.format(run=f"touch {self.marker}", file=self.marker) for payload in PAYLOADS]

    def check(self, line: str, build: Callable[[], list[str]]) -> None:
        """``build`` refuses, or gives words of a shell line that does nothing but print what comes after them."""
        self.given += 1
        try:
            words = build()
        except MegadebertaError:
            self.refused += 1
        else:
            done = subprocess.run(["/bin/sh", "-c", " ".join(words)], capture_output=True, text=True, check=False)
            assert done.stdout == line, (line, words)
        assert not self.marker.exists(), line

    def with_host(self, line: str) -> list[str]:
        hostfile = self.folder / "hosts"
        hostfile.write_bytes(line.encode())
        return build_command(hostfile, ["r.json"], master_port=29500, environ=self.environ)

    def with_word(self, word: str) -> list[str]:
        (self.folder / "hosts").write_text("node1 slots=1\n")
        command = build_command(self.folder / "hosts", ["--set", word], master_port=29500, environ=self.environ)
        return ["printf", "%s", command[-1]]

    def with_variable(self, name: str, value: str) -> list[str]:
        return self._exported(name, self.environ | {name: value})

    def with_file(self, name: str, value: str) -> list[str]:
        path = self.folder / ".deepspeed_env"
        path.write_bytes(f"{name}={value}\n".encode())
        try:
            return self._exported(name, self.environ)
        finally:
            path.unlink()

    @staticmethod
    def _exported(name: str, environ: dict[str, str]) -> list[str]:
        lines = [line.split("=", maxsplit=1) for line in environment_lines(environ, job="1f")]
        return [*(f'export {name}="{value}";' for name, value in lines), f'printf %s "${name}"']


@pytest.fixture
def shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Shells:
    monkeypatch.chdir(tmp_path)
    return _Shells(tmp_path)


def test_of_two_hundred_hostile_lines_none_runs_a_command(shells: _Shells) -> None:
    for payload in shells.payloads():
        for host in (payload, f"node1{payload}", f"{payload}node1"):
            shells.check("", lambda host=host: shells.with_host(f"node0 slots=8\n{host} slots=8\n"))
        shells.check("", lambda payload=payload: shells.with_host(f"node1 slots=8{payload}\n"))
    hosts = shells.given
    assert shells.refused == hosts, "a hostfile with any of them is refused"
    for payload in shells.payloads():
        for word in (payload, f"training.output_dir=runs/{payload}", f"{payload}=1"):
            shells.check(word, lambda word=word: shells.with_word(word))
        if "\0" in payload:  # no process can have such a variable
            continue
        shells.check(payload, lambda payload=payload: shells.with_variable("NCCL_DEBUG", payload))
        shells.check("1", lambda payload=payload: shells.with_variable(f"NCCL_{payload}", "1"))
        shells.check(payload, lambda payload=payload: shells.with_file("A", payload))
        shells.check("1", lambda payload=payload: shells.with_file(f"A{payload}", "1"))
    assert shells.given == 348 >= 200
    assert 0 < shells.refused < shells.given, "what a shell leaves alone is passed on"


def test_the_shell_of_this_test_would_run_them(shells: _Shells) -> None:
    """Unchecked, most of the words do: the test above could fail."""
    ran = 0
    for payload in shells.payloads():
        if "\0" not in payload:
            subprocess.run(["/bin/sh", "-c", f"printf %s x{payload}"], capture_output=True, check=False)
            ran += shells.marker.exists()
            shells.marker.unlink(missing_ok=True)
    assert ran >= 15
