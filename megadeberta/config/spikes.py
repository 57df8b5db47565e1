"""Samples that a run passed over after its loss had jumped, as its checkpoints record them."""

from collections.abc import Iterable

from pydantic import Field

from megadeberta.config.section import Section


class PassedOver(Section):
    """One window of global samples that the run does not train on, whole steps of them, and the jump behind it."""

    first_sample: int = Field(ge=0)
    stop_sample: int = Field(gt=0)
    step: int = Field(ge=1, description="whose loss had jumped, counted from 1")
    loss: float = Field(description="of that step")
    median: float = Field(description="of the losses before it")


class SpikeRecord(Section):
    """What a checkpoint knows of its run's loss."""

    losses: tuple[float, ...] = Field((), description="of the last steps, which those to come are compared with")
    windows: tuple[PassedOver, ...] = Field((), description="in the order in which they were passed over")


def sample_after(position: int, windows: Iterable[PassedOver]) -> int:
    """The global sample at ``position`` among those that the run does not pass over; both counted from 0."""
    sample, known = position, 0
    for window in sorted(windows, key=lambda each: each.first_sample):
        first = max(window.first_sample, known)  # a run that went back further may pass over some a second time
        if first < window.stop_sample:
            sample += (window.stop_sample - first) * (sample >= first)
            known = window.stop_sample
    return sample
