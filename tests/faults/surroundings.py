"""What a run meets from outside: strangers on its port, a memory limit, machines that go, all of it at once."""

import os
import random
import re
import socket
import subprocess
import sys
import time

from tests.e2e.tiny_run import losses
from tests.faults.bench import ROOT, Bench
from tests.faults.recovery import CGROUPS, RUN, Found

GARBAGE_CONNECTIONS = 300
_CANNOT_RUN = 2
_MEMORY_BYTES = 300 << 20
"""Less than a rank has when torch is loaded."""


def garbage(bench: Bench) -> Found:
    """Strangers connect to the port on which the ranks meet, from the start on, and send what comes to mind."""
    rng = random.Random(3)
    run = bench.start("garbage", **RUN)
    sent = 0
    try:
        run.wait_until(lambda: len(run.ranks()) == 2, "two ranks")
        port = int(run.ranks()[0].environ()["MASTER_PORT"])
        while sent < GARBAGE_CONNECTIONS and run.process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as stranger:
                    stranger.sendall(rng.randbytes(rng.randrange(1, 4096)))
                    sent += 1
            except OSError:
                time.sleep(0.05)
        code = run.wait()
    finally:
        run.end()
    equal = losses(run.output) == bench.undisturbed(**RUN)
    restarted = "starting again" in run.text()
    met = code == 0 and equal and not restarted and sent == GARBAGE_CONNECTIONS
    return Found(met, f"{sent} connections, exit {code}, started again: {restarted}, losses equal: {equal}")


def out_of_memory(bench: Bench) -> Found:
    """A memory limit that the ranks run into."""
    group = CGROUPS / "memory" / f"megadeberta-fault-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(_MEMORY_BYTES))
    except OSError as error:
        return Found(None, f"no memory limit here: {error}")
    run = bench.start("memory", "--restarts", "1", **RUN)
    try:
        (group / "cgroup.procs").write_text(str(run.process.pid))  # before it starts the ranks, which inherit it
        code = run.wait()
    finally:
        run.end()
        group.rmdir()
    lines = [line for _, line in run.lines if line.startswith("error: ")]
    met = code == 80 and "gave up after 1 restart" in lines[-1] and "the memory limit of 0.29 GiB" in lines[0]
    return Found(met, f"exit {code}: {lines[0][:140] if lines else run.tail(1)[:140]}")


def fewer_machines(bench: Bench) -> Found:
    """A machine is lost for good: a spare one takes its place, or the run goes on with fewer."""
    command = [sys.executable, str(ROOT / "tests" / "e2e" / "two_nodes.py"), "--case", "spare", "--case", "fewer"]
    environ = {**os.environ, "TMPDIR": str(bench.folder), "COLUMNS": "300"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode == _CANNOT_RUN:
        return Found(None, " ".join(done.stderr.split())[:150])
    found = re.findall(r"training again \d+ s|differ from .* by up to \S+|bit for bit", done.stdout)
    return Found(done.returncode == 0, ", ".join(found)[:150] or done.stdout[-150:])


def soak(bench: Bench) -> Found:
    """Half an hour of random faults."""
    return _soaked(bench, "soak.json")


def soak_of_two_machines(bench: Bench) -> Found:
    """Ten minutes of random faults, over two rehearsed machines."""
    return _soaked(bench, "soak-machines.json", "--machines", "--minutes", "10")


def _soaked(bench: Bench, output: str, *options: str) -> Found:
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--output", str(bench.folder / output), *options]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(bench.folder)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode == _CANNOT_RUN:
        return Found(None, " ".join(done.stdout.split())[:150])
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    wanted = ("faults", "recovered", "mttr_seconds", "ettr", "bit_equal")
    shown = [line for line in lines if line.split(" ")[0] in wanted]
    return Found(done.returncode == 0, ", ".join(shown) or done.stderr[-150:])
