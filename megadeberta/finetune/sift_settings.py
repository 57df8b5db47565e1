"""Settings of SiFT. Never torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SiftSettings:
    """How much is asked of SiFT; the defaults are microsoft/DeBERTa's, with the weight of its scripts."""

    weight: float = 5.0
    """Of the loss (``vat_lambda``); 0 = plain fine-tuning."""
    start: float = 1e-2
    """The first perturbation is normal(0, start), clipped at twice that (``vat_init_perturbation``)."""
    step: float = 1e-4
    """No element of a token's perturbation moves further than this (``vat_learning_rate``)."""
