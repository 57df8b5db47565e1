"""When a loss has jumped: compared with the median of the steps before it, alike on every rank, run and resume."""

import statistics
from collections import deque
from collections.abc import Sequence

from megadeberta.config.spikes import PassedOver, SpikeRecord
from megadeberta.config.training import NumericsConfig

_MOST_UNSAVED = 64
"""Steps that a checkpoint may be behind when it is recorded."""


class LossSpikeError(Exception):
    """The loss of a step jumped; whoever trains goes back to a checkpoint. No user sees this one."""

    def __init__(self, step: int, loss: float, median: float, window: int) -> None:
        super().__init__(
            f"step {step}: the loss {loss:.4g} is {loss / median:.2f} times the median {median:.4g} of the {window} "
            "steps before it"
        )
        self.step, self.loss, self.median = step, loss, median


class SpikeWatch:
    """Remembers losses, and which samples were passed over because of them."""

    def __init__(self, settings: NumericsConfig) -> None:
        self._factor, self._window = settings.spike_factor, settings.spike_window
        self.limit = settings.spike_limit
        """Of windows that are passed over behind one checkpoint."""
        self._losses: deque[tuple[int, float]] = deque(maxlen=self._window + _MOST_UNSAVED)
        self.windows: tuple[PassedOver, ...] = ()
        """Passed over so far, in order."""

    def add(self, step: int, loss: float) -> None:
        """The loss of step ``step``, counted from 1, the same on every rank. Nothing is judged before there are as many
        losses as the setting says.

        Raises:
            LossSpikeError: it jumped; it is not remembered.
        """
        if self._factor is None:
            return
        before = [each for _, each in self._losses][-self._window :]
        median = statistics.median(before) if len(before) == self._window else 0.0
        if 0 < self._factor * median < loss:
            raise LossSpikeError(step, loss, median, self._window)
        self._losses.append((step, loss))

    def record(self, step: int) -> SpikeRecord | None:
        """What the checkpoint of ``step`` keeps; None where there is nothing."""
        known = [loss for at, loss in self._losses if at <= step][-self._window :]
        return SpikeRecord(losses=tuple(known), windows=self.windows) if known or self.windows else None

    def go_to(self, step: int, record: SpikeRecord | None, *, more: Sequence[PassedOver] = ()) -> None:
        """Remember what the checkpoint of ``step`` recorded, and the windows that were passed over behind it."""
        saved = record or SpikeRecord()
        self._losses.clear()
        self._losses.extend((step, loss) for loss in saved.losses)
        self.windows = (*saved.windows, *more)
