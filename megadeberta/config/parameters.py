"""Numbers of parameters by arithmetic, without torch: what `train --dry-run` shows before anything is built."""

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig, RtdConfig


def count_parameters(model: ModelConfig, objective: ObjectiveConfig) -> dict[str, int]:
    """Trained parameters of each part of the model: "model", or "generator" and "discriminator" for RTD.

    A table that two parts share counts for the generator.
    """
    if objective.name != "rtd":
        return {"model": _token_model(model)}
    return {
        "generator": _token_model(objective.rtd.generator(model)),
        "discriminator": _discriminator(objective.rtd.discriminator(model), objective.rtd),
    }


def count_backbone(model: ModelConfig) -> int:
    """The encoder, as transformers' model without a head has it."""
    size = model.hidden_size
    width = model.embedding_width
    embeddings = _tables(model) + model.type_vocab_size * width + 2 * size
    if width != size:
        embeddings += width * size
    relative = 0
    if model.relative_attention:
        relative = 2 * model.relative_half_width * size + (2 * size if model.norm_rel_ebd == "layer_norm" else 0)
    convolution = 0
    if model.conv_kernel_size:
        convolution = size * size // model.conv_groups * model.conv_kernel_size + 3 * size
    return embeddings + relative + convolution + model.num_hidden_layers * _layer(model)


def _token_model(model: ModelConfig) -> int:
    size, width = model.hidden_size, model.embedding_width
    head = size * width + 3 * width + model.vocab_size
    positions = model.max_position_embeddings * size if model.enhanced_mask_decoder else 0
    return count_backbone(model) + positions + head


def _discriminator(model: ModelConfig, rtd: RtdConfig) -> int:
    shared = _tables(model) if rtd.embedding_sharing == "es" else 0
    return count_backbone(model) - shared + model.hidden_size**2 + 4 * model.hidden_size + 1


def _tables(model: ModelConfig) -> int:
    """The word table, and the absolute positions of the input."""
    rows = model.vocab_size + (model.max_position_embeddings if model.position_biased_input else 0)
    return rows * model.embedding_width


def _layer(model: ModelConfig) -> int:
    size, inner = model.hidden_size, model.intermediate_size
    key = size * size + (size if model.key_bias else 0)
    query = size * size + size
    attention = key + 3 * query  # query, value and output projections have the same shape
    if model.relative_attention and not model.share_att_key:
        attention += (key if "c2p" in model.pos_att_type else 0) + (query if "p2c" in model.pos_att_type else 0)
    feed_forward = 2 * size * inner + inner + size
    return attention + feed_forward + 4 * size
