"""``logging.profile_steps``: a trace of some steps by torch.profiler, of every rank."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from megadeberta.storage import refuse_link

PROFILE_FOLDER = "profile"
"""In the output folder."""

logger = logging.getLogger(__name__)


class StepProfile:
    """Profiles the steps of a window; does nothing without one."""

    def __init__(self, steps: Sequence[int], *, output: Path, rank: int, device: torch.device) -> None:
        """
        Args:
            steps: the first and the last of the window, counted from 1; empty = none.
            output: folder of the run.
        """
        self._first, self._last = steps or (0, -1)
        self._folder = output / PROFILE_FOLDER
        self._rank = rank
        on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self._activities = [ProfilerActivity.CPU, *on_gpu]
        self._running: profile | None = None
        self._started_at = 0

    @property
    def is_running(self) -> bool:
        return self._running is not None

    def before_step(self, step: int) -> None:
        """Step ``step`` (counted from 1) is about to be launched."""
        if self._running is not None or not self._first <= step <= self._last:
            return
        self._running, self._started_at = profile(activities=self._activities), step
        self._running.start()

    def after_step(self, step: int) -> None:
        """Step ``step`` is done and has been read."""
        if step >= self._last:
            self.close(step)

    def close(self, step: int) -> None:
        """Write the trace of what was profiled up to ``step``. A disk that refuses is a warning: training goes on."""
        if self._running is None:
            return
        running, self._running = self._running, None
        running.stop()
        path = self._folder / f"steps-{self._started_at}-{step}-rank-{self._rank}.json.gz"
        try:
            refuse_link(self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
            refuse_link(path)
            running.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            logger.warning("%s was not written: %s", path, error)
            return
        logger.info("%s holds steps %d to %d, for chrome://tracing or Perfetto", path, self._started_at, step)
