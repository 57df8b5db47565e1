"""Which device and how many CPU threads a rank computes with."""

import os

import pytest
import torch

from megadeberta.engine.process_group import choose_threads, device_index
from megadeberta.errors import ParallelError


@pytest.mark.parametrize(
    ("variable", "configured", "expected"),
    [("3", None, 3), ("3", 2, 2), ("", None, 4), (None, None, 4), (None, 5, 5)],
)
def test_the_recipe_decides_then_the_environment_then_the_cores(
    variable: str | None, configured: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(9)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # what torch made of the variable when it was loaded
    assert choose_threads(configured, local_ranks=2) == expected


@pytest.mark.parametrize(
    ("local_rank", "visible", "more", "expected"),
    [
        (0, 1, {}, 0),
        (3, 8, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, 3),
        (3, 1, {"CUDA_VISIBLE_DEVICES": "0"}, 0),
        (7, 1, {"ROCR_VISIBLE_DEVICES": "7"}, 0),
    ],
)
def test_a_rank_takes_the_device_of_its_number_or_the_only_one_it_is_shown(
    local_rank: int, visible: int, more: dict[str, str], expected: int
) -> None:
    assert device_index({"LOCAL_RANK": str(local_rank), **more}, visible=visible) == expected


@pytest.mark.parametrize(
    ("local_rank", "visible", "more"), [(1, 1, {}), (2, 2, {"CUDA_VISIBLE_DEVICES": "0,1"}), (0, 0, {})]
)
def test_a_rank_without_a_device_is_told_how_to_get_one(local_rank: int, visible: int, more: dict[str, str]) -> None:
    with pytest.raises(ParallelError, match=rf"local rank {local_rank} sees {visible} GPUs.*--gpus-per-task=1"):
        device_index({"LOCAL_RANK": str(local_rank), **more}, visible=visible)
