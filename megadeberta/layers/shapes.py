"""Names and shapes of the trained parameters by arithmetic, without torch: what a plan and a dry run count with.

The same as building the model on torch's meta device (tests/unit/config/test_published_recipes.py), in milliseconds.

Shapes: V vocabulary · E embedding width · D hidden size · I intermediate size.
"""

import math
from collections.abc import Iterator

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig, RtdConfig, part_of

Shapes = dict[str, tuple[int, ...]]
"""Shape of every parameter by its global name, in the order of the layers. A tied parameter is there once."""
_NamedShapes = Iterator[tuple[str, tuple[int, ...]]]


def parameter_shapes(model: ModelConfig, objective: ObjectiveConfig) -> Shapes:
    """Every parameter that the objective trains."""
    if objective.name != "rtd":
        return dict(_token_model(model, ""))
    generator, discriminator = objective.rtd.generator(model), objective.rtd.discriminator(model)
    return {
        **dict(_token_model(generator, f"{GENERATOR}.")),
        **dict(_discriminator(discriminator, objective.rtd, f"{DISCRIMINATOR}.")),
    }


def count_parameters(model: ModelConfig, objective: ObjectiveConfig) -> dict[str, int]:
    """Trained parameters of each part of the model: "model", or "generator" and "discriminator" for RTD.

    A table that two parts share counts for the generator.
    """
    counts: dict[str, int] = {}
    for name, shape in parameter_shapes(model, objective).items():
        part = part_of(name) or "model"
        counts[part] = counts.get(part, 0) + math.prod(shape)
    return counts


def count_backbone(model: ModelConfig) -> int:
    """The encoder, as transformers' model without a head has it."""
    heads = ("mlm_head.", "mask_decoder.position_embeddings.")
    shapes = dict(_token_model(model, ""))
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith(heads))


def _token_model(model: ModelConfig, prefix: str) -> _NamedShapes:
    size, width = model.hidden_size, model.embedding_width
    yield from _embeddings(model, f"{prefix}embeddings.")
    yield from _encoder(model, prefix)
    yield from _linear(f"{prefix}mlm_head.dense", width, size)
    yield from _layer_norm(f"{prefix}mlm_head.layer_norm", width)
    yield f"{prefix}mlm_head.decoder.bias", (model.vocab_size,)


def _discriminator(model: ModelConfig, rtd: RtdConfig, prefix: str) -> _NamedShapes:
    table = {"nes": "weight", "gdes": "delta", "es": None}[rtd.embedding_sharing]
    yield from _embeddings(model, f"{prefix}embeddings.", table=table)
    yield from _encoder(model, prefix)
    yield from _layer_norm(f"{prefix}rtd_head.layer_norm", model.hidden_size)
    yield from _linear(f"{prefix}rtd_head.dense", model.hidden_size, model.hidden_size)
    yield from _linear(f"{prefix}rtd_head.classifier", 1, model.hidden_size)


def _embeddings(model: ModelConfig, prefix: str, *, table: str | None = "weight") -> _NamedShapes:
    """table: what the word and position tables are called here; None = they are another part's."""
    size, width = model.hidden_size, model.embedding_width
    if table is not None:
        yield f"{prefix}word_embeddings.{table}", (model.vocab_size, width)
        if model.position_biased_input:
            yield f"{prefix}position_embeddings.{table}", (model.max_position_embeddings, width)
    if model.type_vocab_size:
        yield f"{prefix}token_type_embeddings.weight", (model.type_vocab_size, width)
    if width != size:
        yield f"{prefix}embed_proj.weight", (size, width)
    yield from _layer_norm(f"{prefix}layer_norm", size)


def _encoder(model: ModelConfig, prefix: str) -> _NamedShapes:
    if model.relative_attention:
        yield f"{prefix}relative.embedding.weight", (2 * model.relative_half_width, model.hidden_size)
        if model.norm_rel_ebd == "layer_norm":
            yield from _layer_norm(f"{prefix}relative.layer_norm", model.hidden_size)
    plain = model.num_hidden_layers - (1 if model.enhanced_mask_decoder else 0)
    for number in range(plain):
        yield from _layer(model, f"{prefix}layer.{number}.", convolution=number == 0 and model.conv_kernel_size > 0)
    if model.enhanced_mask_decoder:
        yield from _layer(model, f"{prefix}mask_decoder.layer.", convolution=False)
        yield f"{prefix}mask_decoder.position_embeddings.weight", (model.max_position_embeddings, model.hidden_size)


def _layer(model: ModelConfig, prefix: str, *, convolution: bool) -> _NamedShapes:
    size, inner = model.hidden_size, model.intermediate_size
    attention = f"{prefix}self_attention.attention."
    terms = model.pos_att_type if model.relative_attention and not model.share_att_key else ()
    yield from _linear(f"{attention}query_proj", size, size)
    yield from _linear(f"{attention}key_proj", size, size, bias=model.key_bias)
    yield from _linear(f"{attention}value_proj", size, size)
    if "c2p" in terms:
        yield from _linear(f"{attention}pos_key_proj", size, size, bias=model.key_bias)
    if "p2c" in terms:
        yield from _linear(f"{attention}pos_query_proj", size, size)
    yield from _linear(f"{prefix}self_attention.dense", size, size)
    yield from _layer_norm(f"{prefix}self_attention.layer_norm", size)
    yield from _linear(f"{prefix}feed_forward.up", inner, size)
    yield from _linear(f"{prefix}feed_forward.down", size, inner)
    yield from _layer_norm(f"{prefix}feed_forward.layer_norm", size)
    if convolution:
        yield f"{prefix}convolution.conv.weight", (size, size // model.conv_groups, model.conv_kernel_size)
        yield f"{prefix}convolution.conv.bias", (size,)
        yield from _layer_norm(f"{prefix}convolution.layer_norm", size)


def _linear(name: str, rows: int, columns: int, *, bias: bool = True) -> _NamedShapes:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _layer_norm(name: str, size: int) -> _NamedShapes:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)
