"""``ModelConfig`` <-> Hugging Face ``config.json``."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from megadeberta.config.first_problem import first_problem
from megadeberta.config.model import ModelConfig
from megadeberta.errors import CheckpointError


class ModelKind(StrEnum):
    """What an export holds."""

    MLM = "mlm"
    BACKBONE = "backbone"
    DISCRIMINATOR = "discriminator"


class FileFormat(StrEnum):
    """Whose program the folder is for; both read the same tensor names."""

    HUGGING_FACE = "hf"
    MICROSOFT = "microsoft"


@dataclass(frozen=True)
class HfLayout:
    """How a folder names and packs the tensors of one model."""

    model_type: str
    kind: ModelKind
    legacy: bool
    file_format: FileFormat = FileFormat.HUGGING_FACE

    @property
    def architecture(self) -> str:
        family = "DebertaV2" if self.model_type == V2 else "Deberta"
        return f"{family}ForMaskedLM" if self.kind == ModelKind.MLM else f"{family}Model"


V1, V2 = "deberta", "deberta-v2"
MASK_DECODER_KEY = "enhanced_mask_decoder"
"""Keys of ours in config.json: transformers keeps and ignores them, ``convert import`` reads them."""
KEY_BIAS_KEY = "key_bias"

_SAME_NAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
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
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Defaults differ between the code bases, so a config without one of these has no certain meaning."""
_V2_ONLY = ("position_buckets", "norm_rel_ebd", "share_att_key")
_CONVOLUTION = ("conv_kernel_size", "conv_groups", "conv_act")

_ABSENT = {
    "relative_attention": False,
    "position_biased_input": True,
    "position_buckets": -1,
    "norm_rel_ebd": "none",
    "share_att_key": False,
    "pos_att_type": (),
    "conv_act": "tanh",
}
"""What is absent from a published config has the default of the code it is for, not ours."""


def choose_layout(config: ModelConfig, kind: ModelKind, file_format: FileFormat = FileFormat.HUGGING_FACE) -> HfLayout:
    """The class of transformers that computes this model; microsoft/DeBERTa has one for all.

    Keys without bias, separate position projections, linear distances and a plain table are v1 (``deberta``); all
    else is ``deberta-v2``. The head is the non-legacy one, except that transformers builds that one ``H -> H``, so an
    embedding width of its own needs the legacy one.
    """
    plain_table = config.position_buckets < 1 and config.norm_rel_ebd == "none" and not config.share_att_key
    is_v1 = not config.key_bias and plain_table and not config.conv_kernel_size
    legacy = file_format == FileFormat.HUGGING_FACE and config.embedding_width != config.hidden_size
    return HfLayout(V1 if is_v1 else V2, kind, legacy, file_format)


def to_hf_config(config: ModelConfig, layout: HfLayout) -> dict[str, Any]:
    """The content of ``config.json``."""
    values: dict[str, Any] = {"model_type": layout.model_type, "architectures": [layout.architecture]}
    values |= {name: getattr(config, name) for name in _SAME_NAME}
    # transformers counts pos_att_type in the scale and builds the table's LayerNorm even without relative attention.
    terms = config.pos_att_type if config.relative_attention else ()
    values["pos_att_type"] = "|".join(terms) or None
    if layout.model_type == V2:
        values |= {
            "position_buckets": config.position_buckets if config.position_buckets > 0 else -1,
            "norm_rel_ebd": config.norm_rel_ebd if config.relative_attention else "none",
            "share_att_key": config.share_att_key,
            "attention_head_size": config.head_size,
        }
        if config.conv_kernel_size:
            values |= {name: getattr(config, name) for name in _CONVOLUTION}
    if config.embedding_width != config.hidden_size:
        values["embedding_size"] = config.embedding_width
    values |= {
        "pooler_hidden_size": config.hidden_size,
        "pooler_dropout": 0.0,
        "pooler_hidden_act": "gelu",
        "legacy": layout.legacy,
        "tie_word_embeddings": True,
        "dtype": "float32",
        MASK_DECODER_KEY: config.enhanced_mask_decoder,
        KEY_BIAS_KEY: config.key_bias,
    }
    if layout.file_format == FileFormat.MICROSOFT:
        values["padding_idx"] = config.pad_token_id
    return values


def with_model_type(values: Mapping[str, Any], tensor_names: Iterable[str]) -> dict[str, Any]:
    """The configuration with a ``model_type``, which microsoft/DeBERTa leaves out: v1 if projections are packed."""
    if values.get("model_type") is not None:
        return dict(values)
    packed = any(name.endswith(".in_proj.weight") for name in tensor_names)
    return {**values, "model_type": V1 if packed else V2}


def from_hf_config(values: Mapping[str, Any], *, mask_decoder: bool, source: str) -> ModelConfig:
    """Read a ``config.json`` of microsoft/DeBERTa or transformers.

    Args:
        mask_decoder: whether the model has the enhanced mask decoder, which no published config says.
        source: the file, for errors.

    Raises:
        CheckpointError: not a DeBERTa, or one with parts that this package does not have.
    """
    _check_supported(values, source)
    is_v1 = values.get("model_type") == V1
    names = (*_SAME_NAME, *(() if is_v1 else (*_V2_ONLY, *_CONVOLUTION)))
    fields = {name: values[name] for name in names if values.get(name) is not None}
    fields = _ABSENT | {"key_bias": not is_v1} | fields
    if not fields.get("conv_kernel_size"):
        del fields["conv_act"]  # of nothing
    terms = values.get("pos_att_type") or ()
    fields["pos_att_type"] = terms if isinstance(terms, str) else tuple(terms)
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
    model_type = values.get("model_type")
    if model_type not in (V1, V2):
        raise CheckpointError(
            f"{source}: model_type is {model_type!r}; only {V1!r} (v1) and {V2!r} (v2 and v3) can be imported"
        )
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
