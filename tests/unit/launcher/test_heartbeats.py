"""Which rank is taken for hung, when, and which never is; and what stacks tell."""

import pytest

from megadeberta.config.training import SupervisionConfig
from megadeberta.launcher.heartbeats import Hang, Heartbeats
from megadeberta.launcher.stacks import main_stack, outside_collectives
from megadeberta.rank.heartbeat import Beat, Phase

LIMITS = SupervisionConfig(
    step_seconds=15, silence_seconds=15, step_factor=10, save_seconds=300, data_seconds=100, start_seconds=600
)


def _beat(rank: int, phase: Phase, step: int, seconds: float = 0.0) -> Beat:
    return Beat(rank, phase, step, seconds, step, 0.0, 0.0)


class _Job:
    """Two ranks that beat once a second."""

    def __init__(self, **limits: float) -> None:
        self.heartbeats = Heartbeats(LIMITS.model_copy(update=limits), world_size=2, now=0.0)
        self.now = 0.0

    def pass_seconds(self, seconds: int, *places: tuple[Phase, int] | None) -> Hang | None:
        """Each rank stays where it is told to be; None: it says nothing. What is found at the end."""
        found = None
        for second in range(seconds):
            self.now += 1.0
            for rank, place in enumerate(places):
                if place is not None:
                    self.heartbeats.take(_beat(rank, *place, seconds=float(second)), self.now)
            found = found or self.heartbeats.find_hang(self.now, stopped={})
        return found

    def train(self, steps: int, seconds_per_step: int = 1) -> None:
        self.train_from(1, steps=steps, seconds_per_step=seconds_per_step)

    def train_from(self, first: int, *, steps: int, seconds_per_step: int) -> None:
        for step in range(first, first + steps):
            assert self.pass_seconds(seconds_per_step, (Phase.STEP, step), (Phase.STEP, step)) is None


def test_rank_that_says_nothing_while_it_trains_is_hung_after_the_time_of_a_step() -> None:
    job = _Job()
    job.train(20)
    assert job.pass_seconds(13, (Phase.STEP, 21), None) is None
    assert job.pass_seconds(3, (Phase.STEP, 21), None) == Hang((1,), "silent for 15 s, in step 20")


def test_silent_rank_is_named_and_not_the_one_that_waits_for_it_in_the_same_step() -> None:
    job = _Job()
    job.train(5)
    job.pass_seconds(1, (Phase.STEP, 6), (Phase.STEP, 6))
    job.pass_seconds(1, (Phase.STEP, 6), (Phase.STEP, 6))
    found = job.pass_seconds(20, (Phase.STEP, 6), None)
    assert found is not None
    assert found.ranks == (1,)


def test_silence_in_a_save_is_no_hang() -> None:
    job = _Job()
    job.train(5)
    job.pass_seconds(1, (Phase.SAVE, 5), (Phase.SAVE, 5))
    assert job.pass_seconds(100, (Phase.SAVE, 5), None) is None


def test_rank_that_is_behind_is_hung_and_not_those_that_wait_for_it() -> None:
    job = _Job()
    job.train(5)
    found = job.pass_seconds(18, (Phase.STEP, 7), (Phase.STEP, 6))
    assert found == Hang((1,), "for 15 s in step 6, of at most 15 s")


def test_deadline_of_a_step_is_short_by_default_where_steps_are() -> None:
    job = _Job(step_seconds=SupervisionConfig().step_seconds)
    job.train(20)
    found = job.pass_seconds(18, (Phase.STEP, 22), (Phase.STEP, 21))
    assert found == Hang((1,), "for 15 s in step 21, of at most 15 s")


def test_machine_that_stalls_for_some_seconds_in_every_tenth_step_hangs_never() -> None:
    job = _Job(step_seconds=SupervisionConfig().step_seconds)
    for step in range(1, 201):
        seconds = 12 if step % 10 == 0 else 1
        assert job.pass_seconds(seconds, (Phase.STEP, step), (Phase.STEP, step)) is None


def test_one_slow_step_puts_the_deadline_off_by_three_times_itself_and_not_by_ten() -> None:
    job = _Job()
    job.train(10)
    job.train_from(11, steps=1, seconds_per_step=12)
    assert job.pass_seconds(1, (Phase.STEP, 12), (Phase.STEP, 12)) is None
    found = job.pass_seconds(40, (Phase.STEP, 13), (Phase.STEP, 12))
    assert found == Hang((1,), "for 36 s in step 12, of at most 36 s")


def test_first_step_that_compiles_nothing_may_be_long_where_those_before_it_were() -> None:
    job = _Job()
    for step in (1, 2):
        assert job.pass_seconds(40, (Phase.COMPILE, step), (Phase.COMPILE, step)) is None
    assert job.pass_seconds(40, (Phase.STEP, 3), (Phase.STEP, 3)) is None
    job.train_from(4, steps=2, seconds_per_step=2)
    found = job.pass_seconds(130, (Phase.STEP, 7), (Phase.STEP, 6))
    assert found is not None
    assert found.ranks == (1,)


def test_step_of_which_nothing_is_known_has_the_time_of_a_compilation() -> None:
    job = _Job(compile_seconds=120)
    assert job.pass_seconds(119, (Phase.STEP, 2), (Phase.STEP, 1)) is None
    found = job.pass_seconds(122, (Phase.STEP, 2), (Phase.STEP, 1))
    assert found is not None
    assert found.reason == "for 120 s in step 1, of at most 120 s"


def test_deadline_of_a_step_follows_from_the_middle_of_the_last_ones() -> None:
    job = _Job()
    job.train(4, seconds_per_step=6)
    assert job.pass_seconds(55, (Phase.STEP, 5), (Phase.STEP, 5)) is None
    found = job.pass_seconds(66, (Phase.STEP, 5), (Phase.STEP, 5))
    assert found is not None
    assert found.ranks == (0, 1)


@pytest.mark.parametrize(
    ("phase", "seconds"), [(Phase.START, 600), (Phase.DATA, 100), (Phase.SAVE, 300), (Phase.COMPILE, 1800)]
)
def test_each_phase_has_a_deadline_of_its_own_and_the_others_may_wait_as_long(phase: Phase, seconds: int) -> None:
    job = _Job()
    assert job.pass_seconds(seconds - 1, (Phase.STEP, 9), (phase, 8)) is None
    found = job.pass_seconds(seconds + 1, (Phase.STEP, 9), (phase, 8))
    assert found is not None
    assert found.ranks == (1,)


def test_stopped_process_is_hung_in_every_phase() -> None:
    heartbeats = Heartbeats(LIMITS, world_size=2, now=0.0)
    assert heartbeats.find_hang(5.0, stopped={1: 5.0}) is None
    found = heartbeats.find_hang(9.0, stopped={1: 9.0})
    assert found == Hang((1,), "stopped for 9 s (SIGSTOP or a debugger)")


def test_patience_is_short_once_the_run_is_told_to_stop() -> None:
    job = _Job()
    job.train(3)
    job.heartbeats.stopping_since = job.now
    assert job.pass_seconds(6, (Phase.STEP, 4), None) == Hang((1,), "silent for 5 s, in step 3")


def test_ranks_that_have_ended_are_not_looked_at() -> None:
    job = _Job()
    job.train(3)
    job.heartbeats.forget([1])
    assert job.pass_seconds(10, (Phase.STEP, 4), None) is None
    job.heartbeats.forget([0])
    assert job.pass_seconds(60, None, None) is None


def test_rank_that_never_said_anything_is_still_starting() -> None:
    job = _Job()
    found = job.pass_seconds(602, (Phase.STEP, 1), None)
    assert found is not None
    assert (found.ranks, found.reason) == ((1,), "for 600 s in its start, of at most 600 s")


def test_step_counts_as_trained_and_a_start_does_not() -> None:
    heartbeats = Heartbeats(LIMITS, world_size=1, now=0.0)
    assert not heartbeats.trained
    heartbeats.take(_beat(0, Phase.STEP, 1), 1.0)
    heartbeats.forget([0])
    assert heartbeats.trained


DUMP = """\
Thread 0x00007f98f29ff6c0 (most recent call first):
  File "/x/megadeberta/rank/heartbeat.py", line 149 in _run

Current thread 0x00007f98fac0ab80 (most recent call first):
  File "{file}", line 3252 in {function}
  File "/x/megadeberta/train.py", line 127 in loop
"""
WAITS = DUMP.format(file="/v/torch/distributed/distributed_c10d.py", function="all_reduce").splitlines()
SLEEPS = DUMP.format(file="/x/plugin.py", function="forward").splitlines()


def test_stack_of_the_main_thread_is_read_innermost_first() -> None:
    assert main_stack([f"[rank 1] {line}" for line in SLEEPS]) == [
        "/x/plugin.py:3252 forward",
        "/x/megadeberta/train.py:127 loop",
    ]


def test_rank_outside_a_collective_stands_out() -> None:
    assert outside_collectives({0: WAITS, 1: SLEEPS, 2: []}) == [1]


def test_rank_whose_signal_handler_interrupts_a_collective_stands_out() -> None:
    handler = '  File "/x/plugin.py", line 18 in on_signal'
    dispatch = '  File "/v/torch/_ops.py", line 1158 in __call__'
    interrupted, waits = list(WAITS), list(WAITS)
    interrupted.insert(4, handler)
    waits.insert(4, dispatch)
    assert main_stack(interrupted)[0] == "/x/plugin.py:18 on_signal"
    assert outside_collectives({0: waits, 1: interrupted}) == [1]
