"""The helper that all distributed tests stand on must itself fail loudly."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import RankFailedError, run_ranks


def _sum_over_ranks(rank: int, world_size: int, start: int) -> int:
    value = torch.tensor([rank + start])
    dist.all_reduce(value)
    assert world_size == dist.get_world_size()
    return int(value)


def _fail_on_rank_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError(f"rank {rank} of {world_size} has had enough")
    dist.barrier()


def _die_on_rank_one(rank: int, world_size: int) -> None:
    if rank == 1:
        os._exit(9)
    dist.barrier()


def _sleep(rank: int, world_size: int) -> None:
    time.sleep(60)


def test_every_rank_returns_its_result() -> None:
    assert run_ranks(_sum_over_ranks, 2, 7) == [15, 15]


def test_the_error_of_the_rank_that_failed_first_is_raised_with_its_traceback() -> None:
    with pytest.raises(ValueError, match="rank 1 of 2 has had enough") as caught:
        run_ranks(_fail_on_rank_one, 2)
    assert "_fail_on_rank_one" in "".join(caught.value.__notes__)


def test_a_rank_that_dies_silently_is_reported() -> None:
    with pytest.raises(RankFailedError, match="rank 1 died without a word"):
        run_ranks(_die_on_rank_one, 2)


def _see_the_death_first_on_rank_zero(rank: int, world_size: int) -> None:
    if rank == 1:
        time.sleep(0.5)
        os._exit(9)
    raise RuntimeError("connection reset by peer")


def test_a_silent_death_is_the_cause_even_where_another_rank_reports_first() -> None:
    with pytest.raises(RankFailedError, match="rank 1 died without a word"):
        run_ranks(_see_the_death_first_on_rank_zero, 2)


def test_a_hang_ends_at_the_timeout_with_the_stacks() -> None:
    with pytest.raises(RankFailedError, match=r"ranks \[0, 1\] of 2 had not finished after 8 s(.|\n)*in _sleep"):
        run_ranks(_sleep, 2, timeout=8)  # long enough for busy cores to start them
