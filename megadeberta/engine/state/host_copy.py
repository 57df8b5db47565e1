"""What a rank writes into a checkpoint, copied to memory of the host: training may go on while it is written."""

import threading
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from megadeberta.checkpoint.rank_share import Entry
from megadeberta.engine.state.optimizer_state import OptimizerState, Piece


class DroppedCopyError(Exception):
    """The copy is not to be read any more."""


class HostCopy:
    """One copy at a time, in memory that is kept for the next one: 4 bytes for every weight and every moment that the
    rank writes; pinned where they come from a GPU, which fills it many times faster."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)
        self._dropped = threading.Event()

    @property
    def bytes(self) -> int:
        """Of memory that is held."""
        return self._memory.nbytes

    @torch.no_grad()
    def take(self, state: OptimizerState, pieces: Sequence[Piece]) -> list[Entry]:
        """The pieces' weights and moments as they are now, and no longer in use by the device; the last copy is
        overwritten. No collective."""
        wanted = [(piece, name) for piece in pieces for name in state.kept(piece)]
        sizes = [piece.stop - piece.start for piece, _ in wanted]
        is_on_gpu = any(piece.flat.is_cuda for piece in pieces)
        if self._memory.numel() < sum(sizes):
            self._memory = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=is_on_gpu)
        self._dropped = threading.Event()
        entries = []
        for (piece, name), part in zip(wanted, self._memory[: sum(sizes)].split(sizes), strict=True):
            part.copy_(state.tensor(piece, name), non_blocking=True)
            entries.append(Entry(name, state.fragment(piece), partial(_read, part.numpy(), self._dropped)))
        if is_on_gpu:
            torch.cuda.current_stream().synchronize()
        state.release(changed=False)
        return entries

    def drop(self) -> None:
        """From now on reading an entry of the last copy raises ``DroppedCopyError``; from any thread."""
        self._dropped.set()


def _read(values: np.ndarray, dropped: threading.Event) -> np.ndarray:
    if dropped.is_set():
        raise DroppedCopyError
    return values
