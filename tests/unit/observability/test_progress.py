import math

import pytest

from megadeberta.config.batches import BatchSizes, BatchStage
from megadeberta.observability.progress import (
    Rates,
    Speedometer,
    format_count,
    format_duration,
    format_progress,
    format_terms,
)


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _speedometer(clock: _Clock, **values: object) -> Speedometer:
    settings = {"total_steps": 100, "sequence_length": 1000, "flops_per_token": 1e6, "peak_flops": 1e10}
    settings["batches"] = BatchSizes((), 2)
    return Speedometer(**{**settings, **values}, clock=clock)


def test_line_has_the_documented_form() -> None:
    line = format_progress(
        1200,
        10_000,
        loss=6.4121,
        terms={"mlm_loss": 6.4121, "mlm_accuracy": 0.1824},
        baselines={"mlm_loss": 6.5742},
        gradient_norm=0.941,
        lr=1e-4,
        rates=Rates(41_300.0, 0.3811, 2 * 3600 + 3 * 60),
    )
    assert line == "step 1200/10000 loss 6.412 (6.574) acc 0.182 grad 0.94 lr 1.0e-04 tok/s 41.3k mfu 38.1 % eta 2h03m"


def test_line_of_a_run_with_two_losses_shows_both() -> None:
    terms = {"mlm_loss": 2.3, "mlm_accuracy": 0.5, "masked_rate": 0.15, "rtd_loss": 0.084, "rtd_recall": 0.25}
    line = format_progress(
        1, 2, loss=6.5, terms=terms, baselines={"rtd_loss": 0.323}, gradient_norm=1, lr=1, rates=Rates(1.0, None, 0)
    )
    assert line == (
        "step 1/2 loss 6.500 mlm 2.300 acc 0.500 rtd 0.084 (0.323) rec 0.250 grad 1.00 lr 1.0e+00 tok/s 1 eta 0s"
    )


def test_a_term_that_is_undefined_is_a_dash() -> None:
    terms = {"mlm_loss": 2.3, "rtd_loss": 0.5, "rtd_precision": math.nan, "rtd_recall": 0.0}
    assert format_terms(terms, {"mlm_loss": 6.0}) == ["mlm 2.300 (6.000)", "rtd 0.500", "prec -", "rec 0.000"]


def test_line_without_a_known_peak_has_no_mfu() -> None:
    line = format_progress(
        1,
        2,
        loss=1,
        terms={"mlm_loss": 1, "mlm_accuracy": 0},
        baselines={},
        gradient_norm=1,
        lr=1,
        rates=Rates(1.0, None, 0),
    )
    assert line == "step 1/2 loss 1.000 acc 0.000 grad 1.00 lr 1.0e+00 tok/s 1 eta 0s"


def test_rates_count_the_steps_and_the_time_left_counts_the_clock() -> None:
    clock = _Clock()
    speed = _speedometer(clock)
    for _ in range(10):
        speed.add_step(0.5)
    clock.now += 20  # of which 15 seconds were validation
    rates = speed.read()
    assert rates.tokens_per_second == pytest.approx(4000)
    assert rates.mfu == pytest.approx(0.4)
    assert rates.eta_seconds == pytest.approx(90 * 2.0)


def test_each_reading_covers_the_steps_since_the_last() -> None:
    clock = _Clock()
    speed = _speedometer(clock, peak_flops=None)
    left = []
    for seconds in (9.0, 1.0, 0.5):
        speed.add_step(seconds)
        clock.now += seconds
        rates = speed.read()
        left.append(rates.eta_seconds)
    assert rates.tokens_per_second == pytest.approx(4000)
    assert rates.mfu is None
    # The first step of a start is slow, and says nothing of the others.
    assert left == pytest.approx([99 * 9.0, 98 * 1.0, 97 * (0.9 * 1.0 + 0.1 * 0.5)])


def test_time_left_after_a_resume_counts_the_steps_that_are_left() -> None:
    clock = _Clock()
    speed = _speedometer(clock, done=90)
    speed.add_step(1.0)
    clock.now += 1
    assert speed.read().eta_seconds == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (874.4, "874"),
        (999.6, "1.00k"),
        (1000, "1.00k"),
        (9994, "9.99k"),
        (9996, "10.0k"),
        (41_300, "41.3k"),
        (99_960, "100k"),
        (534_000, "534k"),
        (1_204_000, "1.20M"),
        (2.5e12, "2500G"),
        (float("nan"), "nan"),
    ],
)
def test_counts_have_three_figures(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (46.7, "47s"),
        (59.6, "1m00s"),
        (725, "12m05s"),
        (3599.6, "1h00m"),
        (7380, "2h03m"),
        (273_700, "3d04h"),
        (float("inf"), "0s"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_growing_batch_has_its_own_tokens_and_the_time_left_knows_what_is_to_come() -> None:
    clock = _Clock()
    stages = (BatchStage(steps=10, sequences=1),)
    meter = _speedometer(clock, total_steps=20, batches=BatchSizes(stages, 4), peak_flops=None)
    for _ in range(10):  # a second a sequence
        clock.now += 1.0
        meter.add_step(1.0)
    rates = meter.read()
    assert rates.tokens_per_second == pytest.approx(1000)
    assert rates.eta_seconds == pytest.approx(40.0)  # ten steps of four sequences
    clock.now += 4.0
    meter.add_step(4.0)
    rates = meter.read()
    assert rates.tokens_per_second == pytest.approx(1000)
    assert rates.eta_seconds == pytest.approx(36.0)
