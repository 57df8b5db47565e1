"""Our tensors -> tensors of a Hugging Face or Microsoft folder: names, packing, and what each side lacks."""

import functools
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
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
from megadeberta.errors import CheckpointError
from megadeberta.layers.catalogue import backbone_layers
from megadeberta.layers.heads import RtdHead
from megadeberta.layers.objectives import list_layers
from megadeberta.model.whole import WholeModel


@functools.lru_cache(maxsize=4)
def expected_shapes(
    config: ModelConfig, objective: ObjectiveConfig = ObjectiveConfig()
) -> Mapping[str, tuple[int, ...]]:
    """Shape of every tensor by our names: of the masked-language model, or of what the objective trains."""
    with torch.device("meta"):
        model = WholeModel(list_layers(config, objective))
    return _shapes(model)


@functools.lru_cache(maxsize=4)
def discriminator_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Shape of every tensor of a discriminator as a model of its own, with a whole word table."""
    with torch.device("meta"):
        model = WholeModel([*backbone_layers(config), RtdHead("rtd_head", config)])
    return _shapes(model)


def _shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    return MappingProxyType({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})


def compare_shapes(wanted: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not exactly the wanted ones.

    Raises:
        CheckpointError: the first name that is missing, unknown or of another shape.
    """
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found == wanted:
        return
    different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    name = different[0]
    raise CheckpointError(
        f"{source}: {len(different)} of {len(wanted)} tensors do not fit the model configuration, first {name}: "
        f"expected {wanted.get(name, 'no such tensor')}, found {found.get(name, 'none')}"
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
