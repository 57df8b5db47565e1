"""The loss that terms make."""

import math

import pytest

from megadeberta.engine.terms import Terms
from megadeberta.layers.objectives import Update

JOINT = (Update(None, {"mlm_loss": 1.0, "rtd_loss": 50.0}),)
ONE_BY_ONE = (Update("generator", {"mlm_loss": 1.0}), Update("discriminator", {"rtd_loss": 50.0}))


@pytest.mark.parametrize("updates", [JOINT, ONE_BY_ONE])
def test_the_total_is_the_weighted_sum_of_the_means_however_it_is_updated(updates: tuple[Update, ...]) -> None:
    terms = Terms(
        {"mlm_loss": 12.0, "mlm_accuracy": 3.0, "rtd_loss": 2.0}, {"mlm_loss": 4, "mlm_accuracy": 4, "rtd_loss": 8}
    )
    assert terms.means == {"mlm_loss": 3.0, "mlm_accuracy": 0.75, "rtd_loss": 0.25}
    assert terms.total(updates) == 3.0 + 50.0 * 0.25


def test_a_term_without_a_target_has_no_mean_and_adds_nothing() -> None:
    terms = Terms({"mlm_loss": 0.0, "rtd_loss": 2.0}, {"mlm_loss": 0, "rtd_loss": 8})
    assert terms.means == {"rtd_loss": 0.25}
    assert terms.total(JOINT) == 12.5
    assert math.isnan(terms.total(ONE_BY_ONE[:1]))
