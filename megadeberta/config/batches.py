"""How many sequences each step of a run has: a pure function of the step, the same under every layout."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import Field

from megadeberta.config.section import Section


class BatchStage(Section):
    """Some steps, one after the other, with a batch of their own."""

    steps: int = Field(gt=0, description="how many")
    sequences: int = Field(gt=0, description="of each of them, of all ranks together")


@dataclass(frozen=True)
class BatchSizes:
    """Sequences of every step of a run: those of its stages, and after them one size to the end."""

    stages: Sequence[BatchStage]
    last: int

    def at(self, step: int) -> int:
        """Of step ``step``, counted from 0."""
        for stage in self.stages:
            if step < stage.steps:
                return stage.sequences
            step -= stage.steps
        return self.last

    def samples(self, steps: int) -> int:
        """Of the first ``steps`` steps together."""
        return sum(count * sequences for count, sequences in self.stretches(steps))

    def stretches(self, steps: int) -> Iterator[tuple[int, int]]:
        """The first ``steps`` steps as pairs of how many follow each other and the sequences of each."""
        for stage in self.stages:
            count = min(steps, stage.steps)
            if count:
                yield count, stage.sequences
            steps -= count
        if steps:
            yield steps, self.last

    def steps_within(self, samples: int) -> int:
        """How many whole steps so many samples are enough for."""
        steps = 0
        for stage in self.stages:
            count = min(stage.steps, samples // stage.sequences)
            steps, samples = steps + count, samples - count * stage.sequences
            if count < stage.steps:
                return steps
        return steps + samples // self.last

    @property
    def sizes(self) -> list[int]:
        """The different ones, in the order of the steps."""
        return list(dict.fromkeys([*(stage.sequences for stage in self.stages), self.last]))

    @property
    def divisor(self) -> int:
        """The largest number of sequences of which every batch is a multiple."""
        return math.gcd(*self.sizes)

    def describe(self) -> str:
        """``8 for 100 steps, 16 for 200, then 32``; the size alone where there is one."""
        first = [f"{stage.sequences:,} for {stage.steps:,} steps" for stage in self.stages]
        return ", ".join([*first, f"then {self.last:,}"]) if first else f"{self.last:,}"
