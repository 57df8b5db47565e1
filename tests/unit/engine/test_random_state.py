"""Every generator goes on exactly where it was."""

import json
import random

import numpy as np
import pytest
import torch

from megadeberta.engine.random_state import capture_random_state, restore_random_state
from megadeberta.errors import CheckpointError


def _draw() -> list[float]:
    return [random.random(), random.gauss(), np.random.rand(), np.random.randn(), float(torch.rand(1)), *torch.randn(3)]


def test_all_generators_continue_after_a_round_trip_through_json() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    _draw()  # leaves a second Gaussian waiting in Python's and NumPy's generators
    state = json.loads(json.dumps(capture_random_state()))
    expected = _draw()
    _draw()
    restore_random_state(state)
    assert _draw() == expected


@pytest.mark.parametrize("key", ["python", "numpy", "torch", "gpu"])
@pytest.mark.parametrize("value", [None, 7, "x", [1, [2], None], {}])
def test_a_state_that_does_not_fit_is_an_error(key: str, value: object) -> None:
    state = capture_random_state()
    if key == "gpu" and not torch.cuda.is_available():
        del state["gpu"]
    else:
        state[key] = value
    with pytest.raises(CheckpointError, match=r"random state in the checkpoint does not fit .* resume with the"):
        restore_random_state(state)
