"""The layers of a recipe by name, with what each costs: the same list as the layer specs, without torch.

Counted are the matrix products, forward and backward, of one micro batch: weights, attention scores with their
relative terms, projections of the relative table, the decoder over the vocabulary. Not counted are normalisation,
look-ups and dropout, which are about in proportion to the rest, and the optimizer, which runs once a step.

Shapes: D hidden size · E embedding width · L length · V vocabulary.
"""

import math
from dataclasses import dataclass

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig, RtdConfig

WORD_TABLE = "embeddings.word_embeddings.weight"
POSITION_TABLE = "embeddings.position_embeddings.weight"

_FORWARD, _TRAINING, _RECOMPUTED = 2, 6, 8  # operations per multiply-add: forward; with backward; forward twice
_DECODER_PASSES = 2
_NOISE_OPERATIONS = 30  # elementwise ones for each entry of the vocabulary that a sample is drawn from


@dataclass(frozen=True)
class LayerCost:
    """One layer spec and its floating-point operations for one micro batch."""

    name: str
    operations: float
    tied: tuple[str, ...] = ()
    """Tables of other layers that it shares, by their owner's global parameter name."""
    table: str | None = None
    """The relative table's spec, which has to run in the same stage."""


@dataclass(frozen=True)
class MicroBatch:
    """What passes through the layers at once. ``slots``: target rows of one sequence, empty ones included."""

    sequences: int
    length: int
    slots: int
    recompute: bool

    @property
    def encoder_factor(self) -> int:
        return _RECOMPUTED if self.recompute else _TRAINING


def list_layers(
    model: ModelConfig,
    objective: ObjectiveConfig,
    *,
    sequence_length: int,
    micro_batch: int = 1,
    recompute: bool = False,
) -> list[LayerCost]:
    """Every layer spec that the objective trains, in order.

    Args:
        recompute: encoder layers run forward twice (activation checkpointing).
    """
    reads_leftwards = objective.name in ("ar", "mlm_ar")  # a micro batch has as many slots as its fullest sequence
    slots = sequence_length if reads_leftwards else math.ceil(objective.mask_rate * sequence_length)
    batch = MicroBatch(micro_batch, sequence_length, slots, recompute)
    if objective.name != "rtd":
        return _token_model(model, batch)
    generator, discriminator = objective.rtd.generator(model), objective.rtd.discriminator(model)
    noise = _NOISE_OPERATIONS * micro_batch * slots * model.vocab_size
    prefix = f"{DISCRIMINATOR}."
    return [
        *_token_model(generator, batch, prefix=f"{GENERATOR}."),
        LayerCost(f"{GENERATOR}.sample", noise),
        *_backbone(discriminator, batch, prefix=prefix, tied=_shared_tables(discriminator, objective.rtd)),
        LayerCost(f"{prefix}rtd_head", _TRAINING * micro_batch * sequence_length * (model.hidden_size + 1) ** 2),
    ]


def _token_model(model: ModelConfig, batch: MicroBatch, *, prefix: str = "") -> list[LayerCost]:
    size, width = model.hidden_size, model.embedding_width
    products = batch.sequences * batch.slots * width * (size + model.vocab_size)
    # A generator's logits are computed a second time, for the samples.
    factor = _TRAINING + (_FORWARD if prefix else 0)
    head = LayerCost(f"{prefix}mlm_head", factor * products, tied=(f"{prefix}{WORD_TABLE}",))
    return [*_backbone(model, batch, prefix=prefix), head]


def _backbone(
    model: ModelConfig, batch: MicroBatch, *, prefix: str = "", tied: tuple[str, ...] = ()
) -> list[LayerCost]:
    table = f"{prefix}relative" if model.relative_attention else None
    layers = [LayerCost(f"{prefix}embeddings", _projection(model, batch), tied=tied)]
    if table is not None:
        layers.append(LayerCost(table, 0.0))
    for number in range(model.num_hidden_layers - (1 if model.enhanced_mask_decoder else 0)):
        products = _layer_products(model, batch)
        if number == 0:
            kernel = model.conv_kernel_size * model.hidden_size**2 // model.conv_groups
            products += batch.sequences * batch.length * kernel
        layers.append(LayerCost(f"{prefix}layer.{number}", batch.encoder_factor * products, table=table))
    if model.enhanced_mask_decoder:
        operations = batch.encoder_factor * _decoder_products(model, batch)
        layers.append(LayerCost(f"{prefix}mask_decoder", operations, table=table))
    return layers


def _shared_tables(model: ModelConfig, rtd: RtdConfig) -> tuple[str, ...]:
    """Tables that the discriminator has from its generator."""
    if rtd.embedding_sharing == "nes":
        return ()
    tables = [WORD_TABLE, POSITION_TABLE] if model.position_biased_input else [WORD_TABLE]
    return tuple(f"{GENERATOR}.{name}" for name in tables)


def _projection(model: ModelConfig, batch: MicroBatch) -> float:
    """Operations of a word table that is narrower than the model."""
    if model.embedding_width == model.hidden_size:
        return 0.0
    return _TRAINING * batch.sequences * batch.length * model.embedding_width * model.hidden_size


def _layer_products(model: ModelConfig, batch: MicroBatch) -> float:
    """Multiply-adds of a plain encoder layer, forward."""
    size, length = model.hidden_size, batch.length
    terms, rows = _relative_terms(model, length)
    token = 4 * size**2 + 2 * size * model.intermediate_size + (2 * length + terms * rows) * size
    return batch.sequences * length * token + terms * rows * size**2


def _decoder_products(model: ModelConfig, batch: MicroBatch) -> float:
    """Multiply-adds of the enhanced mask decoder, forward: keys and values once, all else twice for the target rows."""
    size, length = model.hidden_size, batch.length
    terms, rows = _relative_terms(model, length)
    keys = batch.sequences * length * 2 * size**2 + terms * rows * size**2
    target = 2 * size**2 + 2 * size * model.intermediate_size + (2 * length + terms * rows) * size
    return keys + _DECODER_PASSES * batch.sequences * batch.slots * target


def _relative_terms(model: ModelConfig, length: int) -> tuple[int, int]:
    """Number of relative terms, and of table rows that a sequence can read."""
    if not model.relative_attention:
        return 0, 0
    return len(model.pos_att_type), min(2 * length - 1, 2 * model.relative_half_width)
