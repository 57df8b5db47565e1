"""Signal the ranks of one job on this machine, and no other process.

    python -m megadeberta.launcher.hosts.node_signal JOB NAME

`megadeberta launch --hostfile` runs this on every machine; the answer is one line of JSON on standard output.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from megadeberta.rank.environment import JOB_VARIABLE


def signal_job(job: str, number: signal.Signals, *, processes: Path = Path("/proc")) -> list[int]:
    """Send a signal to the ranks of ``job`` on this machine; their process ids.

    SIGKILL also ends what the ranks have started (data workers); any other signal is for the ranks alone.
    """
    marked = {pid for pid in _ids(processes) if _belongs(processes / str(pid), job)}
    ranks = sorted(pid for pid in marked if _parent(processes / str(pid)) not in marked)
    for pid in sorted(marked) if number == signal.SIGKILL else ranks:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
    return ranks


def _ids(processes: Path) -> list[int]:
    return [int(entry.name) for entry in processes.iterdir() if entry.name.isdigit()]


def _belongs(process: Path, job: str) -> bool:
    """Whether it is a rank of the job, or started by one: DeepSpeed's node launcher has the job, but no RANK."""
    try:
        variables = (process / "environ").read_bytes().split(b"\0")
    except OSError:  # another user's, or it ended meanwhile
        return False
    has_rank = any(variable.startswith(b"RANK=") for variable in variables)
    return has_rank and f"{JOB_VARIABLE}={job}".encode() in variables


def _parent(process: Path) -> int:
    try:
        # The command name in parentheses may hold spaces and parentheses itself.
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"ranks": signal_job(sys.argv[1], signal.Signals[sys.argv[2]])}) + "\n")
