"""The layers that models are lists of, in order: encoder, decoder and heads of one model, or of two that share tables.

Everything that has to know a model's layers walks such a list: the torch model (``model/whole.py``), pipeline stages,
shapes, costs, kept bytes, collectives. Which list a recipe trains, its objective says (``objectives.py``).
"""

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, RtdConfig
from megadeberta.layers.embeddings import POSITION_TABLE, WORD_TABLE, Embeddings
from megadeberta.layers.encoder import EncoderLayer
from megadeberta.layers.heads import MlmHead, RtdHead, Sample
from megadeberta.layers.layer import KINDS, Layer, Tie
from megadeberta.layers.mask_decoder import MaskDecoder
from megadeberta.layers.relative import RelativeTable

__all__ = [
    "KINDS",
    "POSITION_TABLE",
    "WORD_TABLE",
    "backbone_layers",
    "rtd_layers",
    "token_model_layers",
]

_MLM_TERMS = ("mlm_loss", "mlm_accuracy")
_RTD_TERMS = ("rtd_loss", "rtd_accuracy", "rtd_precision", "rtd_recall")
_SAMPLE_TERMS = ("masked_rate", "sampled_rate", "replaced_rate")


def backbone_layers(model: ModelConfig, *, prefix: str = "", embeddings: Embeddings | None = None) -> list[Layer]:
    """The encoder. With the enhanced mask decoder, its last layer is the decoder's.

    Args:
        prefix: before every name, e.g. ``generator.``.
        embeddings: in place of tables of the encoder's own.
    """
    layers: list[Layer] = [embeddings or Embeddings(f"{prefix}embeddings", model)]
    table = f"{prefix}relative" if model.relative_attention else None
    if table is not None:
        layers.append(RelativeTable(table, model))
    for number in range(model.num_hidden_layers - (1 if model.enhanced_mask_decoder else 0)):
        convolution = number == 0 and model.conv_kernel_size > 0
        layers.append(EncoderLayer(f"{prefix}layer.{number}", model, relative=table, convolution=convolution))
    if model.enhanced_mask_decoder:
        layers.append(MaskDecoder(f"{prefix}mask_decoder", model, relative=table))
    return layers


def token_model_layers(
    model: ModelConfig, *, prefix: str = "", terms: tuple[str, ...] = _MLM_TERMS, for_sampling: bool = False
) -> list[Layer]:
    """Encoder, decoder and the head that predicts tokens.

    Args:
        terms: that the head adds.
        for_sampling: its logits are handed on, to a draw.
    """
    ties = (Tie("decoder.weight", f"{prefix}{WORD_TABLE}"),)
    head = MlmHead(f"{prefix}mlm_head", model, ties=ties, terms=terms, for_sampling=for_sampling)
    return [*backbone_layers(model, prefix=prefix), head]


def rtd_layers(model: ModelConfig, rtd: RtdConfig) -> list[Layer]:
    """Generator, draw, discriminator and its head: one list, so that it can be cut anywhere."""
    generator, discriminator = rtd.generator(model), rtd.discriminator(model)
    prefix = f"{DISCRIMINATOR}."
    return [
        *token_model_layers(generator, prefix=f"{GENERATOR}.", for_sampling=True),
        Sample(f"{GENERATOR}.sample", generator, terms=_SAMPLE_TERMS, temperature=rtd.sampling_temperature),
        *backbone_layers(discriminator, prefix=prefix, embeddings=_discriminator_embeddings(discriminator, rtd)),
        RtdHead(f"{prefix}rtd_head", discriminator, terms=_RTD_TERMS),
    ]


def _discriminator_embeddings(model: ModelConfig, rtd: RtdConfig) -> Embeddings:
    """NES: tables of its own. ES: the generator's. GDES: the generator's, without gradient, plus a difference.

    Shared are the word and the absolute position table, nothing else (microsoft/DeBERTa ``rtd_task.py``).
    """
    name = f"{DISCRIMINATOR}.embeddings"
    if rtd.embedding_sharing == "nes":
        return Embeddings(name, model)
    is_disentangled = rtd.embedding_sharing == "gdes"
    tables = (WORD_TABLE, POSITION_TABLE) if model.position_biased_input else (WORD_TABLE,)
    attribute = "base" if is_disentangled else "weight"
    ties = tuple(
        Tie(table.removeprefix("embeddings.").replace("weight", attribute), f"{GENERATOR}.{table}") for table in tables
    )
    return Embeddings(name, model, ties=ties, table="delta" if is_disentangled else None)
