"""Useful floating-point operations per training token: what MFU counts."""

from collections.abc import Sequence

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.layer import TRAINING_OPERATIONS, Layer
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.objectives import list_layers, objective_of


def run_flops_per_token(model: ModelConfig, objective: ObjectiveConfig, *, sequence_length: int) -> float:
    """Forward and backward operations that the objective needs for one token of a full sequence.

    Counted are the matrix products of all layers. Not counted: recomputation, empty target rows, normalisation,
    look-ups, noise, and the projections of the relative table, which a whole batch shares.
    """
    targets = objective_of(objective).targets_per_sequence(objective, sequence_length)
    return layers_flops_per_token(
        list_layers(model, objective), sequence_length=sequence_length, targets_per_sequence=targets
    )


def layers_flops_per_token(layers: Sequence[Layer], *, sequence_length: int, targets_per_sequence: float) -> float:
    """The same for a list of layers, with this many target rows per sequence."""
    batch = MicroBatch(sequences=1, length=sequence_length, slots=0)
    products = sum(layer.multiply_adds(batch, rows=targets_per_sequence) for layer in layers)
    return TRAINING_OPERATIONS * products / sequence_length
