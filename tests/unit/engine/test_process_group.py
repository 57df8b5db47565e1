"""How many CPU threads a rank computes with."""

import os

import pytest
import torch

from megadeberta.engine.process_group import choose_threads


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
