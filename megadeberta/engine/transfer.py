"""Batches on their way from the host to the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megadeberta.batch import Batch


class Transfer:
    """Copies batches to a device.

    To a GPU from page-locked memory on a stream of its own: neither does the host wait for the copy, nor the copy for
    what the GPU still computes of the last step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batches: Sequence[Batch]) -> list[Batch]:
        """The batches on the device; what the caller computes with them waits for the copies there."""
        if self._stream is None:
            return [{name: tensor.to(self._device) for name, tensor in batch.items()} for batch in batches]
        with torch.cuda.stream(self._stream):
            moved = [{name: self._start(tensor) for name, tensor in batch.items()} for batch in batches]
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for batch in moved:
            for tensor in batch.values():
                tensor.record_stream(current)  # its memory is of the other stream
        return moved

    def _start(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self._device, non_blocking=True)
