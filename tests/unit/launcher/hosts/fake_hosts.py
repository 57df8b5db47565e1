"""Machines that are processes: a `pdsh` which runs its line here for each host, and DeepSpeed's launcher in short."""

import os
import sys
from pathlib import Path

import pytest

# Hosts named in GONE_HOSTS answer like a machine that is switched off, or not at all with the job's own command.
_PDSH = f"""#!{sys.executable} -S
import os, subprocess, sys
hosts = sys.argv[sys.argv.index("-w") + 1].split(",")
line = sys.argv[sys.argv.index("-w") + 2]
codes = []
for host in hosts:
    if host in os.environ.get("GONE_HOSTS", "").split(","):
        sys.stderr.write(host + ": ssh: connect to host " + host + " port 22: Connection timed out\\n")
        code = 255
    else:
        done = subprocess.run(["sh", "-c", line], env=dict(os.environ, HOST=host), capture_output=True, text=True)
        code = done.returncode
        sys.stdout.write("".join(host + ": " + text + "\\n" for text in done.stdout.splitlines()))
        sys.stderr.write("".join(host + ": " + text + "\\n" for text in done.stderr.splitlines()))
    codes.append(code)
    if code:
        sys.stderr.write("pdsh@here: " + host + ": ssh exited with exit code " + str(code) + "\\n")
sys.exit(max(codes))
"""

_RUNNER = """
import os, subprocess, sys, time
hosts, program = sys.argv[1].split(","), sys.argv[2]
variables = dict(line.strip().split("=", 1) for line in open(os.environ["DS_ENV_FILE"]))
ranks = {}
for rank, host in enumerate(hosts):
    environ = dict(os.environ, RANK=str(rank), WORLD_SIZE=str(len(hosts)), **variables)
    command = [sys.executable, "-S", "-c", program]
    ranks[host] = subprocess.Popen(command, env=environ, start_new_session=True)
if os.environ.get("PDSH_DIES"):
    time.sleep(0.5)
    sys.exit(0)
codes = []
while ranks:
    time.sleep(0.02)
    for host, process in list(ranks.items()):
        if process.poll() is not None:
            del ranks[host]
            if process.returncode:
                codes.append(process.returncode % 256)
                sys.stderr.write("pdsh@here: " + host + ": ssh exited with exit code " + str(codes[-1]) + "\\n")
                sys.stderr.flush()
sys.exit(max(codes, default=0))
"""

PREAMBLE = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
def note(name):
    with open(name + "." + str(rank) + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(name + "." + str(rank) + ".part", name + "." + str(rank))
"""


def install_pdsh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the pdsh of processes first in PATH."""
    pdsh = folder / "bin" / "pdsh"
    pdsh.parent.mkdir()
    pdsh.write_text(_PDSH)
    pdsh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{pdsh.parent}{os.pathsep}{os.environ['PATH']}")


def runner_command(hosts: list[str], program: str) -> list[str]:
    """DeepSpeed's launcher in short: one rank of ``program`` for each host, and pdsh's lines about their ends."""
    return [sys.executable, "-S", "-c", _RUNNER, ",".join(hosts), PREAMBLE + program]
