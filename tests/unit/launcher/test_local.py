"""Real processes: signals, deaths, orphans, exit codes. The ranks are one-line Python programs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megadeberta.errors import EXIT_HUNG, EXIT_PEER_LOST, EXIT_PREEMPTED
from megadeberta.launcher.local import rank_environments

LAUNCH = """
import os, sys
from megadeberta.launcher.local import launch_local
verdict = launch_local([sys.executable, "-S", "-c", sys.argv[2]], ranks=int(sys.argv[1]), environ=os.environ)
sys.stderr.write("".join(line + "\\n" for line in verdict.lines))
sys.exit(verdict.exit_code)
"""
PREAMBLE = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
def note(name):
    open(f"{name}.{rank}", "w").write(f"{os.getpid()} {time.monotonic()}")
def wait_for(*names):
    while not all(os.path.exists(name) for name in names):
        time.sleep(0.01)
"""
# Like a training rank: the signal sets a flag, the loop "saves" and leaves with 75.
TRAIN = """
told = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda signum, frame: (told.append(signum), note(f"told-{signal.Signals(signum).name}")))
note("ready")
while not told:
    time.sleep(0.005)
sys.exit(75)
"""


def _launch(folder: Path, ranks: int, program: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LAUNCH, str(ranks), PREAMBLE + program]
    environ = dict(os.environ) | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Under nohup the tests inherit an ignored SIGHUP, which the launcher rightly leaves ignored.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def _finish(job: subprocess.Popen[str], timeout: float = 60) -> tuple[int, str, str]:
    output, errors = job.communicate(timeout=timeout)
    return job.returncode, output, errors


def _wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 20
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < deadline, f"none of {paths} appeared"
        time.sleep(0.01)


def _note(path: Path) -> tuple[int, float]:
    _wait_for(path)
    pid, at = path.read_text().split()
    return int(pid), float(at)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ranks_are_told_their_place_and_other_ranks_lines_are_marked(tmp_path: Path) -> None:
    program = 'e = os.environ; print(rank, e["LOCAL_RANK"], e["WORLD_SIZE"], e["MASTER_ADDR"], e["MASTER_PORT"])'
    code, output, _ = _finish(_launch(tmp_path, 2, program))
    first, second = sorted(output.splitlines(), key=lambda line: line.startswith("["))
    assert code == 0
    assert first.startswith("0 0 2 127.0.0.1 ")
    assert second == "[rank 1] 1 1 2 127.0.0.1 " + first.split()[-1]


def test_last_line_without_an_end_and_marked_lines_are_passed_on(tmp_path: Path) -> None:
    program = 'sys.stderr.write("[rank 1] own mark\\nno end" if rank else "")'
    _, _, errors = _finish(_launch(tmp_path, 2, program))
    assert errors == "[rank 1] own mark\n[rank 1] no end\n"


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGUSR1, signal.SIGUSR1),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
def test_signal_reaches_all_ranks_at_once_and_the_job_ends_with_75(
    tmp_path: Path, sent: signal.Signals, received: signal.Signals
) -> None:
    job = _launch(tmp_path, 3, TRAIN)
    _wait_for(*(tmp_path / f"ready.{rank}" for rank in range(3)))
    started = time.monotonic()
    job.send_signal(sent)
    code, _, errors = _finish(job)
    heard = [_note(tmp_path / f"told-{received.name}.{rank}")[1] for rank in range(3)]
    assert (code, errors) == (EXIT_PREEMPTED, "")
    assert max(heard) - started < 1.9  # one after the other they would be given 2 s each


def test_signal_before_the_ranks_listen_is_no_failure(tmp_path: Path) -> None:
    job = _launch(tmp_path, 2, 'note("ready"); time.sleep(60)')
    _wait_for(tmp_path / "ready.0", tmp_path / "ready.1")
    job.send_signal(signal.SIGTERM)
    code, _, errors = _finish(job)
    assert code == EXIT_PREEMPTED
    assert errors == "stopped by SIGTERM before training began; the same command resumes\n"


def test_second_signal_is_passed_on_too(tmp_path: Path) -> None:
    program = """
count = []
signal.signal(signal.SIGUSR1, lambda *_: (count.append(1), note(f"count-{len(count)}")))
note("ready")
while len(count) < 2:
    time.sleep(0.01)
sys.exit(75)
"""
    job = _launch(tmp_path, 2, program)
    for awaited in ("ready", "count-1"):
        _wait_for(*(tmp_path / f"{awaited}.{rank}" for rank in range(2)))
        job.send_signal(signal.SIGUSR1)
    assert _finish(job)[0] == EXIT_PREEMPTED


def test_third_interrupt_kills_ranks_that_do_not_listen(tmp_path: Path) -> None:
    job = _launch(tmp_path, 2, 'signal.signal(signal.SIGTERM, signal.SIG_IGN); note("ready"); time.sleep(60)')
    _wait_for(tmp_path / "ready.0", tmp_path / "ready.1")
    for _ in range(3):
        job.send_signal(signal.SIGINT)
        time.sleep(0.2)  # signals of one kind that wait together count once
    code, _, errors = _finish(job, timeout=30)
    assert (code, errors) == (130, "killed after 3 interrupts; the same command resumes\n")


def test_killed_rank_is_named_and_the_others_are_ended(tmp_path: Path) -> None:
    # The worst peers: one ignores SIGTERM, one would sleep forever.
    program = 'rank == 2 and signal.signal(signal.SIGTERM, signal.SIG_IGN); note("ready"); time.sleep(60)'
    job = _launch(tmp_path, 3, program)
    pids = [_note(tmp_path / f"ready.{rank}")[0] for rank in range(3)]
    os.kill(pids[1], signal.SIGKILL)
    started = time.monotonic()
    code, _, errors = _finish(job)
    assert time.monotonic() - started < 30  # of 60
    assert code == EXIT_PEER_LOST
    assert errors.startswith(f"error: rank 1 (pid {pids[1]}) was killed by SIGKILL")
    assert errors.count("\n") == 1
    assert not any(_is_running(pid) for pid in pids)


def test_error_of_all_ranks_is_printed_once_and_before_what_followed_from_it(tmp_path: Path) -> None:
    program = """
if rank == 1:
    sys.stderr.write("error: shard.bin is truncated\\n")
    sys.exit(2)
time.sleep(0.3)
sys.stderr.write("error: connection closed by peer\\n")
sys.exit(80)
"""
    assert _finish(_launch(tmp_path, 3, program))[::2] == (2, "error: shard.bin is truncated\n")


def test_killed_launcher_leaves_no_rank_behind(tmp_path: Path) -> None:
    job = _launch(tmp_path, 2, 'signal.signal(signal.SIGTERM, signal.SIG_IGN); note("ready"); time.sleep(60)')
    pids = [_note(tmp_path / f"ready.{rank}")[0] for rank in range(2)]
    job.kill()
    job.communicate()
    deadline = time.monotonic() + 30
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a rank outlived its launcher"
        time.sleep(0.02)


def test_workers_of_a_dead_rank_end_with_it(tmp_path: Path) -> None:
    program = """
import subprocess
worker = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
open("worker", "w").write(str(worker.pid))
os._exit(1)
"""
    code, _, _ = _finish(_launch(tmp_path, 1, program))
    assert code == 1
    deadline = time.monotonic() + 30
    while _is_running(int((tmp_path / "worker").read_text())):
        assert time.monotonic() < deadline, "a worker outlived its rank"
        time.sleep(0.02)


def test_closed_output_does_not_stop_the_ranks(tmp_path: Path) -> None:
    job = _launch(tmp_path, 2, 'rank and [print("line", flush=True) for _ in range(5)]; note("done")')
    assert job.stdout is not None
    job.stdout.close()
    assert job.wait(timeout=20) == 0
    assert (tmp_path / "done.1").exists()


def test_output_that_nobody_reads_stops_neither_ranks_nor_signals(tmp_path: Path) -> None:
    program = """
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
for line in range(4000):
    print("a line of output " * 8, file=sys.stderr, flush=True)
note("ready")
while not told:
    time.sleep(0.01)
sys.exit(75)
"""
    job = _launch(tmp_path, 2, program)
    _wait_for(*(tmp_path / f"ready.{rank}" for rank in range(2)))
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == EXIT_PREEMPTED
    job.communicate()


def test_exit_codes_are_seen_although_the_parent_ignores_its_children(tmp_path: Path) -> None:
    ignoring = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n" + LAUNCH
    command = [sys.executable, "-c", ignoring, "2", PREAMBLE + "sys.exit(rank * 7)"]
    environ = dict(os.environ) | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=20)
    assert done.returncode == 7


def test_output_of_many_long_lines_arrives_whole(tmp_path: Path) -> None:
    program = "rank and [print(str(i) * 20_000, flush=True) for i in range(10)]"
    _, output, _ = _finish(_launch(tmp_path, 2, program))
    assert output == "".join(f"[rank 1] {str(i) * 20_000}\n" for i in range(10))


def test_environment_shares_the_cores_and_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    (first, *_, last) = rank_environments({"LOCAL_SIZE": "4", "HOME": "/h"}, ranks=4, master_port=1234)
    assert (first["OMP_NUM_THREADS"], first["RANK"], last["RANK"], last["LOCAL_RANK"]) == ("2", "0", "3", "3")
    assert first["HOME"] == "/h"
    assert "LOCAL_SIZE" not in first, "it switches on collectives that have no timeout"
    assert rank_environments({"OMP_NUM_THREADS": "5"}, ranks=4, master_port=1)[0]["OMP_NUM_THREADS"] == "5"
    assert rank_environments({}, ranks=16, master_port=1)[0]["OMP_NUM_THREADS"] == "1"


# Like a training rank between two collectives; what follows it decides what becomes of rank 1 in step 3.
BEATS = """
sys.path.insert(0, os.environ["PYTHONPATH"])
from megadeberta.rank.heartbeat import Heartbeat, Phase
heartbeat = Heartbeat(rank, pause=0.2)
heartbeat.start(os.environ)
for step in range(1, 4):
    heartbeat.enter(Phase.STEP, step)
    time.sleep(0.3)
note("ready")
"""


def _watch(folder: Path, program: str) -> subprocess.Popen[str]:
    watched = LAUNCH.replace(
        "environ=os.environ)",
        "environ=os.environ, run=Supervised(SupervisionConfig(step_seconds=5, silence_seconds=5)))",
    )
    imports = (
        "\nfrom megadeberta.config.training import SupervisionConfig\nfrom megadeberta.launcher.watch import Supervised"
    )
    command = [sys.executable, "-c", imports + watched, "2", PREAMBLE + BEATS + program]
    environ = dict(os.environ) | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("rank and os.kill(os.getpid(), signal.SIGSTOP)", "stopped for"),
        ("time.sleep(0) if rank else heartbeat.enter(Phase.STEP, 4)", "in step 3, of at most 5 s"),
    ],
    ids=["stopped", "asleep"],
)
def test_rank_that_hangs_is_named_with_its_stack_and_all_are_ended(tmp_path: Path, fault: str, reason: str) -> None:
    job = _watch(tmp_path, f"{fault}\ntime.sleep(60)")
    pids = [_note(tmp_path / f"ready.{rank}")[0] for rank in range(2)]
    started = time.monotonic()
    code, _, errors = _finish(job)
    assert time.monotonic() - started < 40  # of 60
    assert code == EXIT_HUNG
    last = errors.splitlines()[-1]
    assert last.startswith(f"error: rank 1 (pid {pids[1]}) hung: "), errors
    assert reason in last
    assert 'File "<string>", line' in errors
    assert "megadeberta-beat" not in errors
    assert not any(_is_running(pid) for pid in pids)


def test_signal_ends_a_job_with_a_stopped_rank_in_seconds(tmp_path: Path) -> None:
    job = _watch(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN); note('deaf')\ntime.sleep(60)")
    pid, _ = _note(tmp_path / "ready.1")
    for rank in range(2):
        _wait_for(tmp_path / f"deaf.{rank}")
    os.kill(pid, signal.SIGSTOP)
    job.send_signal(signal.SIGTERM)
    started = time.monotonic()
    code, _, errors = _finish(job)
    assert time.monotonic() - started < 40  # of 60
    assert code == EXIT_HUNG, errors
    assert f"error: rank 1 (pid {pid}) hung: stopped for" in errors
