"""The state of this rank's random generators as JSON values: Python, NumPy, torch CPU and its current GPU."""

import base64
import random
from typing import Any

import numpy as np
import torch

from megadeberta.errors import CheckpointError


def capture_random_state() -> dict[str, Any]:
    """What ``restore_random_state`` needs to continue every generator of this process exactly."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    generator = {"key": _encode(numpy_state["state"]["key"]), "pos": int(numpy_state["state"]["pos"])}
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "python": [version, list(words), gauss],
        "numpy": {**generator, "has_gauss": int(numpy_state["has_gauss"]), "gauss": float(numpy_state["gauss"])},
        "torch": _encode(torch.get_rng_state().numpy()),
        "gpu": None if gpu is None else _encode(gpu.numpy()),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set every generator of this process; nothing may draw between this and the first resumed step.

    Raises:
        CheckpointError: the state is not one that ``capture_random_state`` made, or is of another torch.
    """
    try:
        version, words, gauss = state["python"]
        saved = state["numpy"]
        key = np.frombuffer(base64.b64decode(saved["key"]), dtype=np.uint32).copy()
        numpy_state = {
            "bit_generator": "MT19937",
            "state": {"key": key, "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(numpy_state)
        torch.set_rng_state(_decode(state["torch"]))
        if state["gpu"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(_decode(state["gpu"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the random state in the checkpoint does not fit this Python, NumPy and torch ({error}); "
            "resume with the versions in its manifest"
        ) from error


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
