"""What runs on each machine beside the ranks: a check before the start, and signals to one job's ranks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megadeberta.launcher.hosts.node_check import check
from megadeberta.launcher.hosts.node_signal import signal_job
from tests.models import recipe, write_json

# A rank with a data worker, both of which say that they run and how they ended.
RANK = """
import os, signal, sys, time
def end(*_):
    sys.stdout.write(f"{name} told\\n")
    sys.stdout.flush()
    os._exit(0)
name = "worker" if os.fork() == 0 else "rank"
signal.signal(signal.SIGTERM, end)
sys.stdout.write(f"{name} ready\\n")
sys.stdout.flush()
time.sleep(60)
"""


@contextmanager
def _process(**environ: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-S", "-c", RANK]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert {process.stdout.readline(), process.stdout.readline()} == {"worker ready\n", "rank ready\n"}
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_signal_goes_to_the_rank_of_the_job_and_not_to_its_workers() -> None:
    with _process(RANK="0", MEGADEBERTA_JOB="a") as mine, _process(RANK="0", MEGADEBERTA_JOB="b") as other:
        assert signal_job("a", signal.SIGTERM) == [mine.pid]
        assert mine.wait(10) == 0
        assert mine.stdout.readline() == "rank told\n"
        time.sleep(0.2)
        assert other.poll() is None
        os.killpg(mine.pid, 0)  # the worker is alive: its group still exists


def test_kill_takes_the_workers_along() -> None:
    with _process(RANK="1", MEGADEBERTA_JOB="a") as mine:
        assert signal_job("a", signal.SIGKILL) == [mine.pid]
        assert mine.communicate(timeout=10)[0] == "", "the pipe is closed: nobody is left to write"


def test_deepspeeds_node_launcher_is_no_rank() -> None:
    with _process(MEGADEBERTA_JOB="a") as launcher:
        assert signal_job("a", signal.SIGTERM) == []
        assert launcher.poll() is None


def test_check_gives_what_must_be_the_same_everywhere(tmp_path: Path, prepared: Path) -> None:
    data = {"train": str(prepared / "train"), "tokenizer": str(prepared / "tokenizer" / "spm.model")}
    path = write_json(tmp_path / "r.json", recipe(data=data, training={"output_dir": str(tmp_path / "run")}))
    facts = check(path, [], world_size=2)["facts"]
    assert set(facts) == {"megadeberta", "torch", "deepspeed", "Python", "recipe", "training data", "tokenizer"}
    other = check(path, ["optimizer.lr=5e-4"], world_size=2)["facts"]
    assert {name for name in facts if facts[name] != other[name]} == {"recipe"}


def test_check_gives_the_error_that_training_would_give(tmp_path: Path) -> None:
    answer = check(tmp_path / "none.json", [], world_size=2)
    assert answer["exit_code"] == 2
    assert "does not exist" in answer["error"]
