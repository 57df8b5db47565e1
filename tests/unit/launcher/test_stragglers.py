"""A slow rank is named within 20 steps, told apart from one whose data is slow; ordinary unevenness is not."""

import random
from collections.abc import Callable

from megadeberta.launcher.stragglers import Straggler, Stragglers
from megadeberta.rank.heartbeat import Beat, Phase

STEP_SECONDS = 0.5


def _named(
    busy: Callable[[int, int], float], *, data: Callable[[int, int], float] = lambda rank, step: 0.0,
    steps: int = 200, ranks: int = 4, group_of: Callable[[int], int] = lambda rank: 0,
) -> list[tuple[int, Straggler]]:  # fmt: skip
    """(step, straggler) of a run in which rank r is busy for ``busy(r, step)`` seconds."""
    stragglers = Stragglers(group_of)
    done = dict.fromkeys(range(ranks), (0.0, 0.0))
    found = []
    for step in range(steps):
        for rank, (worked, waited) in done.items():
            done[rank] = (worked + busy(rank, step), waited + data(rank, step))
        beats = {rank: Beat(rank, Phase.STEP, step, 0.0, step, *sums) for rank, sums in done.items()}
        found += [(step, straggler) for straggler in stragglers.judge(beats, step * STEP_SECONDS)]
    return found


def test_slow_rank_is_named_once_within_twenty_steps() -> None:
    found = _named(lambda rank, step: 0.4 if rank == 2 else 0.1)
    assert [(step, straggler.rank) for step, straggler in found] == [(16, 2)]
    assert found[0][1].reason.startswith("works 0.400 s by itself in each step, the others 0.100 s")


def test_uneven_ranks_raise_no_alarm_in_two_hundred_steps() -> None:
    rng = random.Random(1)
    assert _named(lambda rank, step: rng.uniform(0.05, 0.2)) == []


def test_single_slow_moments_raise_no_alarm() -> None:
    assert _named(lambda rank, step: 5.0 if rank == 1 and step % 40 == 20 else 0.1) == []


def test_rank_that_waits_for_its_data_is_named_for_that() -> None:
    found = _named(lambda rank, step: 0.1, data=lambda rank, step: 0.3 if rank == 0 else 0.001)
    assert [straggler.rank for _, straggler in found] == [0]
    assert found[0][1].reason.startswith("waits 0.300 s of each step for its batch, the others 0.001 s")


def test_stages_of_a_pipeline_are_not_compared_with_each_other() -> None:
    def busy(rank: int, step: int) -> float:
        return 0.4 if rank < 2 else 0.1

    assert _named(busy, group_of=lambda rank: rank // 2) == []
    assert [straggler.rank for _, straggler in _named(lambda rank, step: 0.4 if rank == 0 else 0.1, ranks=2)] == [0]


def test_rank_that_recovers_and_falls_behind_again_is_named_again() -> None:
    found = _named(lambda rank, step: 0.4 if rank == 3 and step // 50 % 2 == 0 else 0.1)
    assert [straggler.rank for _, straggler in found] == [3, 3]


def test_ranks_without_a_clock_of_their_own_are_not_judged() -> None:
    assert _named(lambda rank, step: 0.0) == []


def test_job_whose_ranks_have_all_ended_is_not_judged() -> None:
    stragglers = Stragglers(lambda rank: 0)
    beat = Beat(0, Phase.STEP, 1, 0.0, 1, 0.1, 0.0)
    for number, beats in enumerate([{0: beat}, {}, {}, {0: beat}, {}]):
        assert stragglers.judge(beats, float(number)) == []
