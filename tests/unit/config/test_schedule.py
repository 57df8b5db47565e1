"""Learning-rate schedules: values of microsoft/DeBERTa, continuity, end values."""

from typing import get_args

import pytest

from megadeberta.config.schedule import learning_rate_factor
from megadeberta.config.training import ScheduleConfig

TOTAL, WARMUP = 1_000_000, 10_000


def _factor(name: str, step: int, **changes: object) -> float:
    schedule = ScheduleConfig.model_validate({"name": name, "warmup_steps": WARMUP} | changes)
    return learning_rate_factor(schedule, step=step, total_steps=TOTAL)


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (0, 0),
        (1, 1e-4),
        (5000, 0.5),
        (9999, 0.9999),
        (10_000, 0.99),
        (10_001, 0.989999),
        (500_000, 0.5),
        (999_999, 1e-6),
    ],
)
def test_linear_has_the_values_of_the_reference(step: int, value: float) -> None:
    assert _factor("linear", step) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("step", "value"), [(10_000, 1.0), (505_000, 0.5), (999_999, 1 / 990_000)])
def test_linear_shift_is_continuous_at_the_end_of_warm_up(step: int, value: float) -> None:
    assert _factor("linear_shift", step) == pytest.approx(value, abs=1e-12)


def test_cosine_is_half_way_in_the_middle_and_reaches_its_end_ratio() -> None:
    assert _factor("cosine", 505_000) == pytest.approx(0.5)
    assert _factor("cosine", TOTAL, end_ratio=0.1) == pytest.approx(0.1)


def test_wsd_is_flat_until_the_last_tenth_and_then_linear() -> None:
    assert _factor("wsd", 10_000) == _factor("wsd", 900_000) == 1.0
    assert _factor("wsd", 950_000) == pytest.approx(0.5)
    assert _factor("wsd", 950_000, end_ratio=0.2) == pytest.approx(0.6)


def test_wsd_decays_over_as_many_steps_as_asked() -> None:
    assert _factor("wsd", 999_900, decay_steps=100) == 1.0
    assert _factor("wsd", 999_950, decay_steps=100) == 0.5
    assert _factor("wsd", 999_999, decay_steps=100) == pytest.approx(0.01)


@pytest.mark.parametrize(("done", "factor"), [(0, 1.0), (1, 0.9), (25, 0.5), (64, 0.2), (100, 0.0)])
def test_the_shape_1_sqrt_drops_by_the_root_of_what_is_done(done: int, factor: float) -> None:
    found = _factor("wsd", TOTAL - 100 + done, decay_steps=100, decay_shape="1-sqrt")
    assert found == pytest.approx(factor, abs=1e-12)
    assert _factor("wsd", TOTAL - 100 + done, decay_steps=100, decay_shape="1-sqrt", end_ratio=0.1) == pytest.approx(
        0.1 + 0.9 * factor
    )


def test_constant_stays_at_the_peak() -> None:
    assert _factor("constant", 10_000) == _factor("constant", 999_999) == 1.0


@pytest.mark.parametrize("name", ["linear", "linear_shift", "cosine", "wsd", "constant"])
def test_a_longer_run_has_the_same_warm_up(name: str) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=100)
    short = [learning_rate_factor(schedule, step=s, total_steps=1000) for s in range(100)]
    assert short == [learning_rate_factor(schedule, step=s, total_steps=5000) for s in range(100)]


@pytest.mark.parametrize("name", get_args(ScheduleConfig.model_fields["name"].annotation))
def test_every_name_of_the_recipe_has_a_shape(name: str) -> None:
    factors = [
        learning_rate_factor(ScheduleConfig(name=name, warmup_steps=2), step=step, total_steps=10) for step in range(11)
    ]
    assert factors[0] == 0 and all(0 <= factor <= 1 for factor in factors)
