"""What a running job does when a rank, its launcher or its machine fails: the bars R1 to R10, on real runs.

Each case breaks a run of two ranks and says what it saw. Times are from the fault.
"""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from megadeberta.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED
from megadeberta.launcher.restart import MOST_RESTARTS
from tests.e2e.tiny_run import losses
from tests.faults.bench import Bench, FaultRun

STEPS = 300
"""Of the runs that are broken at step 40 to 60; a step takes some hundredths of a second."""
RUN: dict[str, object] = {"training__steps": STEPS, "checkpoint__interval": 20}
NOTICED_SECONDS, RUNNING_SECONDS = 20.0, 45.0
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Found:
    """Whether the bar was met, and the figures."""

    met: bool | None
    """None: this machine cannot show it."""
    text: str


def _recovered(
    bench: Bench, fault: str, break_it: Callable[[FaultRun], psutil.Process], expected: str, **changes: object
) -> Found:
    """Break rank 1 once: it must be named, and the run go on by itself to the losses of an undisturbed one."""
    run = bench.start(fault, **RUN, **changes)
    try:
        run.wait_for_step(45)
        before = len(run.lines)
        broken = break_it(run)
        at = time.monotonic()
        named, line = run.wait_for_line("error: ", after=before)
        run.wait_for_line("attention auto", after=before)
        reached = max(run.step, 45)
        run.wait_until(lambda: run.step > reached or run.process.poll() is not None, "a new step")
        running = time.monotonic() - at
        code = run.wait()
        noticed = named - at
    finally:
        run.end()
    equal = losses(run.output) == bench.undisturbed(**RUN)
    right = expected in line and f"rank 1 (pid {broken.pid})" in line and "rank 0 (" not in line
    met = code == 0 and equal and right and noticed <= NOTICED_SECONDS and running <= RUNNING_SECONDS
    same = "equal bit for bit" if equal else "DIFFERENT"
    seen = f"named after {noticed:.1f} s ({line[7:90]}), training again after {running:.1f} s"
    return Found(met, f"{seen}, exit {code}, losses {same}")


def killed(bench: Bench) -> Found:
    """kill -9 of a rank."""

    def kill(run: FaultRun) -> psutil.Process:
        rank = run.ranks()[1]
        rank.kill()
        return rank

    return _recovered(bench, "killed", kill, "was killed by SIGKILL")


def stopped(bench: Bench) -> Found:
    """SIGSTOP of a rank."""

    def stop(run: FaultRun) -> psutil.Process:
        rank = run.ranks()[1]
        rank.send_signal(signal.SIGSTOP)
        return rank

    return _recovered(bench, "stopped", stop, "hung: ")


def asleep(bench: Bench) -> Found:
    """A rank sleeps outside of every collective: what tells is the deadline of a step."""
    return _recovered(bench, "asleep", lambda run: run.break_rank(1, "sleep"), "hung: ")


def holds_the_interpreter(bench: Bench) -> Found:
    """A rank's main thread never gives the interpreter back."""
    return _recovered(bench, "gil", lambda run: run.break_rank(1, "gil"), "hung: ")


def raises(bench: Bench) -> Found:
    """A rank raises in the middle of a run, as for a device error."""
    return _recovered(bench, "raises", lambda run: run.break_rank(1, "raise"), "exited with code 1")


def leaves(bench: Bench) -> Found:
    """A rank ends with code 0 before the last step."""
    return _recovered(bench, "leaves", lambda run: run.break_rank(1, "exit0"), "exited with code 0 before")


def crash_loop(bench: Bench) -> Found:
    """A step fails at every start, before the first checkpoint."""
    run = bench.start("crash-loop", training__steps=100_000, checkpoint__interval=100_000)
    starts = 1 + MOST_RESTARTS
    try:
        for number in range(1, starts + 1):
            run.wait_until(lambda number=number: run.text().count("attention auto") >= number, f"start {number}")
            run.wait_for_step(10)
            time.sleep(3.0)  # the launcher hears of finished steps once a second
            run.break_rank(1, "raise")
        code = run.wait(60)
    finally:
        run.end()
    last = run.lines[-1][1]
    met = code == 1 and f"gave up after {MOST_RESTARTS} restarts" in last and "the first error was: rank 1" in last
    return Found(met, f"{starts} starts, exit {code}: {last[:120]}")


def orphans(bench: Bench) -> Found:
    """kill -9 of the launcher."""
    run = bench.start("orphans", **RUN)
    try:
        run.wait_for_step(10)
        ranks = run.ranks()
        started = time.monotonic()
        run.process.kill()
        gone, alive = psutil.wait_procs(ranks, timeout=10)
        seconds = time.monotonic() - started
        for rank in alive:
            rank.kill()
    finally:
        run.end()
    return Found(not alive and len(gone) == 2, f"{len(alive)} of 2 ranks alive after {seconds:.1f} s")


def signals(bench: Bench, number: int = 20) -> Found:
    """SIGTERM, SIGUSR1 and SIGINT to the launcher at random instants, the start and the saves included."""
    rng = random.Random(7)
    run = bench.start("signals", training__steps=3000, checkpoint__interval=7)
    saved, slowest, wrong = 0, 0.0, []
    try:
        for _ in range(number):
            time.sleep(rng.uniform(0.5, 25.0))
            if run.process.poll() is None:
                sent = rng.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
                nothing_to_save = sent == signal.SIGINT and not run.ranks()
                started = time.monotonic()
                os.kill(run.process.pid, sent)
                code = run.wait(60)
                slowest = max(slowest, time.monotonic() - started)
                saved += code == EXIT_PREEMPTED
                right = code == EXIT_PREEMPTED or (code == EXIT_INTERRUPTED and nothing_to_save)
                if not right or "Traceback" in run.tail(40):
                    wrong.append(f"{sent.name}: {code}")
            run.begin()
        code = run.wait()
    finally:
        run.end()
    equal = losses(run.output) == bench.undisturbed(training__steps=3000, checkpoint__interval=7)
    met = not wrong and equal and code == 0
    return Found(met, f"{saved} of {number} exit 75, slowest {slowest:.1f} s, losses equal: {equal} {' '.join(wrong)}")


_SLOW_RUN: dict[str, object] = {
    "model__hidden_size": 192,
    "model__num_attention_heads": 4,
    "model__intermediate_size": 768,
    "deepspeed__train_batch_size": 16,
    "deepspeed__train_micro_batch_size_per_gpu": 8,
    "checkpoint__interval": 100_000,
}


def straggler(bench: Bench) -> Found:
    """A rank gets a fifth of the time on a core that it had: 20 % where nothing else runs."""
    run = bench.start("straggler", training__steps=600, training__eval_interval=100_000, **_SLOW_RUN)
    group = CGROUPS / "cpu" / f"megadeberta-fault-{os.getpid()}"
    try:
        run.wait_for_step(20)
        rank = run.ranks()[1]
        fraction = rank.cpu_percent(interval=5.0) / 100 / 5
        group.mkdir()
        period = int((group / "cpu.cfs_period_us").read_text())
        (group / "cpu.cfs_quota_us").write_text(str(max(1000, int(period * fraction))))
        before = len(run.lines)
        (group / "cgroup.procs").write_text(str(rank.pid))
        slowed = run.step
        _, line = run.wait_for_line("is slow", seconds=180, after=before)
        steps = run.step - slowed
    except OSError as error:
        return Found(None, f"no CPU quota here: {error}")
    finally:
        run.end()
        psutil.wait_procs([rank], timeout=10)
        if group.exists():
            group.rmdir()
    met = f"rank 1 (pid {rank.pid})" in line and steps <= 20
    return Found(met, f"{100 * fraction:.0f} % of a core: named after {steps} steps ({line[9:100]})")


def no_straggler(bench: Bench) -> Found:
    """Two hundred steps to which nothing happens."""
    run = bench.start("no-straggler", training__steps=220, training__eval_interval=100_000, **_SLOW_RUN)
    try:
        code = run.wait()
    finally:
        run.end()
    alarms = re.findall(r".*is slow.*", run.text())
    return Found(code == 0 and not alarms, f"{len(alarms)} alarms in 220 steps, exit {code} {' '.join(alarms[:1])}")
