"""Our tensors -> tensors of a Hugging Face or Microsoft folder: names, packing, and what each side lacks."""

from collections.abc import Mapping

from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.convert.formats import v1
from megadeberta.convert.formats.hf_config import V1, FileFormat, HfLayout, ModelKind
from megadeberta.convert.formats.names import (
    BACKBONE_PREFIX,
    INPUT_POSITION_TABLE,
    LEGACY_MLM_HEAD,
    MLM_HEAD,
    RELATIVE_TABLE,
    RTD_HEAD,
    WORD_TABLE,
    backbone_names,
    difference_names,
)


def to_hugging_face(config: ModelConfig, weights: dict[str, Tensor], layout: HfLayout) -> dict[str, Tensor]:
    """Our tensors under the names and in the packing of ``layout``.

    Row 0 of a bucketed relative table becomes a copy of row 1: training never reads it (distances are clipped to
    M - 1), but transformers does for keys M or more tokens to the right of the query.
    """
    names = backbone_names(config)
    backbone = {names[ours]: tensor for ours, tensor in weights.items() if ours in names}
    if config.position_buckets > 0 and config.relative_attention:
        table = backbone[names[RELATIVE_TABLE]].clone()
        table[0] = table[1]
        backbone[names[RELATIVE_TABLE]] = table
    if layout.kind == ModelKind.BACKBONE and config.enhanced_mask_decoder:
        del backbone[INPUT_POSITION_TABLE]
    if layout.model_type == V1:
        backbone = v1.pack(backbone, num_heads=config.num_attention_heads)
    elif not config.key_bias:
        backbone |= _zero_key_biases(backbone)
    if layout.kind == ModelKind.BACKBONE and layout.file_format == FileFormat.HUGGING_FACE:
        return backbone
    tensors = {BACKBONE_PREFIX + name: tensor for name, tensor in backbone.items()}
    return tensors | _head(weights, layout) | _differences(weights, layout)


def _head(weights: Mapping[str, Tensor], layout: HfLayout) -> dict[str, Tensor]:
    names = {
        ModelKind.MLM: LEGACY_MLM_HEAD if layout.legacy else MLM_HEAD,
        ModelKind.DISCRIMINATOR: RTD_HEAD,
        ModelKind.BACKBONE: {},
    }[layout.kind]
    return {theirs: weights[ours] for ours, theirs in names.items()}


def _differences(weights: Mapping[str, Tensor], layout: HfLayout) -> dict[str, Tensor]:
    """What microsoft/DeBERTa needs to go on with a discriminator: without it, it would start again from zero.

    transformers has no use for it, and a table of this name beside ``weight`` has misled people.
    """
    if layout.kind != ModelKind.DISCRIMINATOR or layout.file_format != FileFormat.MICROSOFT:
        return {}
    pairs = dict(difference_names(table) for table in (WORD_TABLE, INPUT_POSITION_TABLE))
    return {BACKBONE_PREFIX + theirs: weights[ours] for ours, theirs in pairs.items() if ours in weights}


def _zero_key_biases(backbone: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' v2 class has these biases; zero is what a model without them computes."""
    modules = (".key_proj.weight", ".pos_key_proj.weight")
    found = (name.removesuffix(".weight") for name in backbone if name.endswith(modules))
    return {f"{name}.bias": backbone[f"{name}.weight"].new_zeros(backbone[f"{name}.weight"].size(0)) for name in found}


def source_name(config: ModelConfig, ours: str, layout_type: str) -> str:
    """The name (without prefix) under which a folder of this type holds one of our tensors."""
    theirs = (backbone_names(config) | MLM_HEAD | RTD_HEAD)[ours]
    return v1.v1_name(theirs) if layout_type == V1 else theirs
