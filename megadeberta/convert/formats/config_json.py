"""``ModelConfig`` <-> the ``config.json`` of a model family."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from megadeberta.config.first_problem import first_problem
from megadeberta.config.model import ModelConfig
from megadeberta.convert.formats.family import ExportTarget, Family, FileFormat
from megadeberta.convert.formats.names import LEGACY_MLM_HEAD
from megadeberta.convert.formats.score_scale import NO_TERMS, position_names, position_terms
from megadeberta.errors import CheckpointError

MASK_DECODER_KEY = "enhanced_mask_decoder"
"""Keys of ours in config.json: transformers keeps and ignores them, ``convert import`` reads them."""
KEY_BIAS_KEY = "key_bias"

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Defaults differ between the code bases, so a config without one of these has no certain meaning."""
_SAME_NAME = (
    *_SIZES,
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "relative_attention",
    "max_relative_positions",
    "position_biased_input",
)
_ABSENT = {
    "relative_attention": False,
    "position_biased_input": True,
    "position_buckets": -1,
    "norm_rel_ebd": "none",
    "share_att_key": False,
    "conv_act": "tanh",
}
"""What is absent from a published config has the default of the code it is for, not ours."""


def to_model_config_json(config: ModelConfig, target: ExportTarget) -> dict[str, Any]:
    """The content of Microsoft's ``model_config.json``: its code wants a string in ``pos_att_type``."""
    values = to_config_json(config, target)
    return values | {"pos_att_type": values["pos_att_type"] or NO_TERMS}


def to_config_json(config: ModelConfig, target: ExportTarget) -> dict[str, Any]:
    """The content of ``config.json``."""
    family = target.family
    values: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [family.architecture(target.kind)],
        **{name: getattr(config, name) for name in _SAME_NAME},
        # transformers counts pos_att_type in the scale even without relative attention.
        "pos_att_type": "|".join(config.pos_att_type if config.relative_attention else ()) or None,
        **family.own_config(config),
    }
    if config.embedding_width != config.hidden_size:
        values["embedding_size"] = config.embedding_width
    values |= {
        "pooler_hidden_size": config.hidden_size,
        "pooler_dropout": 0.0,
        "pooler_hidden_act": "gelu",
        "legacy": family.written_mlm_head(config, target.file_format) is LEGACY_MLM_HEAD,
        "tie_word_embeddings": True,
        "dtype": "float32",
        MASK_DECODER_KEY: config.enhanced_mask_decoder,
        KEY_BIAS_KEY: config.key_bias,
    }
    if (opt_in := target.carried(config)) is not None:
        values["auto_map"] = opt_in.auto_map()
    if target.file_format == FileFormat.MICROSOFT:
        values["padding_idx"] = config.pad_token_id
    return values


def from_config_json(values: Mapping[str, Any], family: Family, *, mask_decoder: bool, source: str) -> ModelConfig:
    """Read a ``config.json`` of microsoft/DeBERTa or transformers.

    Args:
        mask_decoder: whether the model has the enhanced mask decoder, which no published config says.
        source: the file, for errors.

    Raises:
        CheckpointError: a setting that the models of this package do not have.
    """
    _check_supported(values, source)
    names = (*_SAME_NAME, *family.config_fields)
    fields = {name: values[name] for name in names if values.get(name) is not None}
    fields = _ABSENT | {"key_bias": family.key_bias} | fields
    if not fields.get("conv_kernel_size"):
        del fields["conv_act"]  # there is no convolution that it would be of
    fields["pos_att_type"] = position_terms(position_names(values, source))
    if isinstance(fields["norm_rel_ebd"], str):
        fields["norm_rel_ebd"] = "layer_norm" if "layer_norm" in fields["norm_rel_ebd"].lower() else "none"
    fields["embedding_size"] = _own_width(values)
    fields["enhanced_mask_decoder"] = mask_decoder
    if KEY_BIAS_KEY in values:
        fields["key_bias"] = values[KEY_BIAS_KEY]
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        raise CheckpointError(
            f"{source}: not a model that megadeberta has: {first_problem(error, show_value=True)}"
        ) from None


def _own_width(values: Mapping[str, Any]) -> int | None:
    width = values.get("embedding_size")
    return None if width == values.get("hidden_size") else width


def _check_supported(values: Mapping[str, Any], source: str) -> None:
    if missing := [name for name in _SIZES if values.get(name) is None]:
        raise CheckpointError(f"{source}: {missing[0]} is missing; a DeBERTa's config.json gives all of {_SIZES}")
    if values.get("talking_head"):
        raise CheckpointError(f"{source}: talking_head=true is not supported (no published model has it)")
    heads, size = values.get("num_attention_heads"), values.get("hidden_size")
    head_size = values.get("attention_head_size")
    if head_size is not None and isinstance(heads, int) and isinstance(size, int) and head_size * heads != size:
        raise CheckpointError(
            f"{source}: attention_head_size={head_size} times num_attention_heads={heads} is not hidden_size={size}; "
            "only equal head sizes are supported"
        )
    if values.get("tie_word_embeddings") is False:
        raise CheckpointError(f"{source}: tie_word_embeddings=false is not supported: the decoder is the word table")
