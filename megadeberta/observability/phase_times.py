"""Where the time of a run goes: the mean of each phase over the steps since the last such line."""

from collections.abc import Mapping

TIME_PREFIX = "seconds_"
"""Of the values in metrics.jsonl: ``seconds_forward``."""
SAVE, VALIDATION = "save", "validation"
"""What is measured beside the phases of a step."""
MEMORY = "gpu_memory_gib"
"""Most that tensors have held on rank 0's GPU since the record before, in GiB."""


def time_values(phases: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase, under the names that they have in metrics.jsonl."""
    return {f"{TIME_PREFIX}{name}": seconds for name, seconds in phases.items()}


class PhaseTimes:
    """Adds up what the steps took, until it is read."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._steps, self._seconds = 0, 0.0
        self._phases: dict[str, float] = {}
        self._between: dict[str, float] = {}

    def add_step(self, seconds: float, phases: Mapping[str, float]) -> None:
        """One more step, which took ``seconds`` in all, those of its phases among them."""
        self._steps += 1
        self._seconds += seconds
        for name, spent in phases.items():
            self._phases[name] = self._phases.get(name, 0.0) + spent

    def add_between(self, name: str, seconds: float) -> None:
        """A validation or a save."""
        self._between[name] = self._between.get(name, 0.0) + seconds

    def read(self) -> list[str]:
        """Items of a line, and a new start: ``1.05 s per step``, ``forward 0.31 s (30 %)``, ``save 2.10 s``.

        Empty where no phase was measured.
        """
        if not self._phases:
            return []
        whole = max(self._seconds, 1e-9)
        items = [f"{self._seconds / self._steps:.3g} s per step"]
        items += [
            f"{name} {spent / self._steps:.3g} s ({100 * spent / whole:.0f} %)" for name, spent in self._phases.items()
        ]
        items += [f"{name} {spent:.3g} s in all" for name, spent in self._between.items()]
        self._start()
        return items
