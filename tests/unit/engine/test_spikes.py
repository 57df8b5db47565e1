"""What is called a spike, what a checkpoint remembers of it, and which samples are left."""

import random

import pytest

from megadeberta.config.spikes import PassedOver, SpikeRecord, sample_after
from megadeberta.config.training import NumericsConfig
from megadeberta.engine.spikes import LossSpikeError, SpikeWatch


def _window(first: int, stop: int) -> PassedOver:
    return PassedOver(first_sample=first, stop_sample=stop, step=9, loss=3.0, median=1.0)


def test_the_samples_that_are_left_come_in_their_order_and_once() -> None:
    rng = random.Random(5)
    for _ in range(50):
        batch, windows, taken = 4, [], set()
        for _ in range(rng.randrange(5)):
            first = sample_after(batch * rng.randrange(20), windows)
            windows.append(_window(first, first + batch * rng.randrange(1, 5)))
            taken.update(range(windows[-1].first_sample, windows[-1].stop_sample))
        left = [sample for sample in range(400) if sample not in taken]
        # A step begins at a multiple of the batch, and its samples follow one another.
        found = [sample_after(start, windows) + place for start in range(0, 120, batch) for place in range(batch)]
        assert found == left[:120]


def test_a_loss_far_above_the_median_is_a_spike_once_there_are_enough_before_it() -> None:
    watch = SpikeWatch(NumericsConfig(spike_factor=2.0, spike_window=3))
    for step, loss in enumerate([5.0, 50.0, 4.0, 9.9, 6.0], start=1):
        watch.add(step, loss)
    with pytest.raises(LossSpikeError, match=r"step 6: the loss 12.5 is 2.08 times the median 6 of the 3 steps"):
        watch.add(6, 12.5)
    watch.add(6, 11.9)
    quiet = SpikeWatch(NumericsConfig(spike_window=2))
    for step in range(1, 9):
        quiet.add(step, 10.0**step)
    assert quiet.record(8) is None


def test_a_checkpoint_brings_back_the_losses_of_its_step_and_the_windows() -> None:
    watch = SpikeWatch(NumericsConfig(spike_factor=2.0, spike_window=2))
    for step in range(1, 8):
        watch.add(step, float(step))
    saved = watch.record(5)
    assert saved == SpikeRecord(losses=(4.0, 5.0))
    watch.go_to(5, saved, more=[_window(20, 28)])
    assert watch.record(5) == SpikeRecord(losses=(4.0, 5.0), windows=(_window(20, 28),))
    with pytest.raises(LossSpikeError):
        watch.add(6, 9.1)
    off = SpikeWatch(NumericsConfig())
    off.go_to(5, watch.record(5))
    assert off.windows == (_window(20, 28),) == off.record(9).windows, "what was passed over stays so"
    watch.go_to(0, None)
    assert watch.record(0) is None
