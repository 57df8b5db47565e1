"""What a rank says of itself, and that it says it by a thread of its own."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from megadeberta.rank.heartbeat import PREFIX, Beat, Heartbeat, Phase, beat_seconds, host_clock


@dataclass(frozen=True)
class _Item:
    step: int


def test_beat_is_read_as_it_was_written_whatever_stands_before_it() -> None:
    beat = Beat(3, Phase.SAVE, 120, 4.0, 60, 1.25, 0.5)
    assert Beat.parse(beat.encode()) == beat
    assert Beat.parse("nodeB: 50%" + beat.encode()) == beat


@pytest.mark.parametrize("line", ["", "step 3", PREFIX, PREFIX + "1 DANCE 2 0 0 0 0", PREFIX + "x STEP 2 0 0 0 0"])
def test_other_lines_are_no_beats(line: str) -> None:
    assert Beat.parse(line) is None


def test_loop_is_followed_through_its_phases() -> None:
    heartbeat, places = Heartbeat(), []
    heartbeat.measure(None, compile_steps=1)
    for item in heartbeat.steps(iter([_Item(4), _Item(5)]), first=5):
        places.append(heartbeat._place)
        if item.step == 4:
            heartbeat.enter(Phase.SAVE, 5)
    assert places == [(Phase.COMPILE, 5), (Phase.STEP, 6)]
    assert heartbeat._place == (Phase.DATA, 7)
    assert heartbeat._steps == 2


def test_own_work_is_counted_in_steps_alone() -> None:
    heartbeat, seconds = Heartbeat(), [0.0]
    heartbeat.measure(lambda: seconds[0], compile_steps=0)
    for number, _ in enumerate(heartbeat.steps(iter([_Item(0), _Item(1)]), first=1), 1):
        seconds[0] += 2.0
        heartbeat.enter(Phase.SAVE, number)
        seconds[0] += 100.0
    assert heartbeat._busy == 4.0


def test_waiting_for_data_is_told_apart() -> None:
    def slow() -> object:
        time.sleep(0.05)
        yield _Item(0)

    heartbeat = Heartbeat()
    for _ in heartbeat.steps(slow(), first=1):
        time.sleep(0.05)
    assert 0.05 <= heartbeat._data < 0.1


def test_clock_of_the_host_counts_work_and_not_sleep() -> None:
    clock = host_clock()
    if clock is None:
        pytest.skip("this kernel has no schedstat")
    started = clock()
    time.sleep(0.3)
    slept = clock() - started
    until = time.thread_time() + 0.3
    while time.thread_time() < until:
        pass
    worked = clock() - started - slept
    assert slept < 0.2
    assert worked >= 0.25


def test_lines_come_while_the_main_thread_sleeps_and_stacks_when_asked() -> None:
    program = """
import os, signal, time
from megadeberta.rank.heartbeat import Heartbeat, Phase, STACKS_SIGNAL
heartbeat = Heartbeat(1, pause=0.05)
heartbeat.start({"MEGADEBERTA_HEARTBEAT": "1"})
heartbeat.enter(Phase.STEP, 7)
time.sleep(0.5)
os.kill(os.getpid(), STACKS_SIGNAL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=dict(os.environ), timeout=60
    )
    beats = [beat for line in done.stderr.splitlines() if (beat := Beat.parse(line))]
    assert len(beats) >= 3
    assert (beats[-1].rank, beats[-1].phase, beats[-1].step) == (1, Phase.STEP, 7)
    assert beats[-1].seconds > beats[1].seconds
    assert 'File "<string>", line 8 in <module>' in done.stderr


def test_last_line_says_that_the_rank_ends() -> None:
    program = """
from megadeberta.rank.heartbeat import Heartbeat, Phase
heartbeat = Heartbeat(1, pause=60.0)
heartbeat.start({"MEGADEBERTA_HEARTBEAT": "1"})
heartbeat.enter(Phase.STEP, 7)
heartbeat.end()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    last = Beat.parse(done.stderr.splitlines()[-1])
    assert last is not None
    assert (last.phase, last.step) == (Phase.END, 7)


def test_nothing_is_written_where_nobody_reads() -> None:
    program = (
        "from megadeberta.rank.heartbeat import Heartbeat; h = Heartbeat(); h.start({}); import time; time.sleep(1.2)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""


def test_lines_of_a_large_job_are_rarer() -> None:
    assert (beat_seconds(8), beat_seconds(1024)) == (1.0, 8.0)
