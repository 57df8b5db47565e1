"""Each loss beside what a model has that sees no context."""

import math

import pytest

from megadeberta.layers.terms import TERMS, baselines, legend


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.229, 0.5])
def test_replaced_tokens_are_compared_with_the_best_constant_probability(rate: float) -> None:
    found = baselines({"rtd_loss": 0.3, "replaced_rate": rate}, None)["rtd_loss"]
    losses = [-rate * math.log(p) - (1 - rate) * math.log(1 - p) for p in (n / 10_000 for n in range(1, 10_000))]
    assert found == pytest.approx(min(losses), abs=1e-6)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_where_all_tokens_are_of_one_class_nothing_is_to_be_told(rate: float) -> None:
    assert baselines({"rtd_loss": 0.3, "replaced_rate": rate}, None) == {"rtd_loss": 0.0}


def test_predicted_tokens_are_compared_with_word_frequencies_where_these_are_known() -> None:
    means = {"mlm_loss": 5.0, "ar_loss": 4.0, "mlm_accuracy": 0.1, "rtd_loss": 0.3, "replaced_rate": None}
    assert baselines(means, 6.5) == {"mlm_loss": 6.5, "ar_loss": 6.5}
    assert baselines(means, None) == {}


def test_every_label_of_the_log_is_in_the_legend() -> None:
    for entry in TERMS.values():
        if entry.label:
            text = legend([entry.name])
            assert text.startswith(f"{entry.label} ") and len(text) > len(entry.label) + 5
    assert legend(["rtd_loss"]) == "rtd RTD loss in nats per token (in brackets: entropy of the replaced fraction)"
