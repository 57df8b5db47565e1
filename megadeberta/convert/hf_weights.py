"""Tensors of ours <-> tensors of a Hugging Face folder: names, packing, and what each side lacks."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.convert import v1
from megadeberta.convert.hf_config import V1, HfLayout, ModelKind
from megadeberta.convert.names import (
    BACKBONE_PREFIX,
    LEGACY_MLM_HEAD,
    MLM_HEAD,
    RELATIVE_TABLE,
    backbone_names,
)
from megadeberta.errors import CheckpointError
from megadeberta.model.whole import WholeModel, mlm_specs

_HF_POSITION_TABLE = "embeddings.position_embeddings.weight"


@functools.lru_cache(maxsize=4)
def expected_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Shape of every tensor of the masked-language model by our names."""
    with torch.device("meta"):
        model = WholeModel(mlm_specs(config))
    return MappingProxyType({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})


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
        del backbone[_HF_POSITION_TABLE]
    if layout.model_type == V1:
        backbone = v1.pack(backbone, num_heads=config.num_attention_heads)
    elif not config.key_bias:
        backbone |= _zero_key_biases(backbone)
    if layout.kind == ModelKind.BACKBONE:
        return backbone
    head_names = LEGACY_MLM_HEAD if layout.legacy else MLM_HEAD
    return {BACKBONE_PREFIX + name: tensor for name, tensor in backbone.items()} | {
        theirs: weights[ours] for ours, theirs in head_names.items()
    }


def _zero_key_biases(backbone: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' v2 class has these biases; zero is what a model without them computes."""
    modules = (".key_proj.weight", ".pos_key_proj.weight")
    found = (name.removesuffix(".weight") for name in backbone if name.endswith(modules))
    return {f"{name}.bias": backbone[f"{name}.weight"].new_zeros(backbone[f"{name}.weight"].size(0)) for name in found}


@dataclass(frozen=True)
class SplitTensors:
    """The tensors of a folder, sorted by what they are."""

    backbone: dict[str, Tensor]
    """v2-style names without prefix."""
    head: dict[str, Tensor]
    """Our names."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Name in the file -> why it has no place here."""


def split_tensors(tensors: dict[str, Tensor], *, model_type: str, num_heads: int) -> SplitTensors:
    """Sort a folder's tensors into backbone, prediction head and the rest.

    Raises:
        CheckpointError: two spellings of one tensor, or a decoder that is not tied to the word table.
    """
    backbone: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = _bare_backbone_name(name)
        if bare is None:
            others[name] = tensor
        elif bare in backbone:
            raise CheckpointError(f"the file holds {bare} twice, under two prefixes; remove one of them")
        else:
            backbone[bare] = tensor
    head, dropped = _split_head(others, backbone)
    for name in [n for n in backbone if n.endswith(("position_ids", "_embeddings._weight"))]:
        del backbone[name]
        dropped[name] = "an index buffer" if name.endswith("ids") else "the discriminator's delta, not a table"
    if model_type == V1:
        backbone = v1.unpack(backbone, num_heads=num_heads)
    return SplitTensors(backbone, head, dropped)


def _bare_backbone_name(name: str) -> str | None:
    for prefix in (BACKBONE_PREFIX, "bert.", ""):
        bare = name.removeprefix(prefix)
        if name.startswith(prefix) and bare.startswith(("embeddings.", "encoder.")):
            return bare
    return None


def _split_head(others: dict[str, Tensor], backbone: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    spelling = next((names for names in (MLM_HEAD, LEGACY_MLM_HEAD) if any(n in others for n in names.values())), {})
    head = {ours: others[theirs] for ours, theirs in spelling.items() if theirs in others}
    dropped = {}
    for name, tensor in others.items():
        if name in spelling.values():
            continue
        dropped[name] = _reason(name)
        tied_to = {
            "cls.predictions.decoder.weight": backbone.get("embeddings.word_embeddings.weight"),
            "cls.predictions.decoder.bias": others.get("cls.predictions.bias"),
        }.get(name)
        if spelling is LEGACY_MLM_HEAD and tied_to is not None:
            if not torch.equal(tensor, tied_to):
                raise CheckpointError(
                    f"{name} differs from the tensor that it is tied to; only a decoder that is the word table, with "
                    "one bias, can be imported"
                )
            dropped[name] = "tied: the same values as the tensor it is tied to"
    return head, dropped


def _reason(name: str) -> str:
    if name.startswith("mask_predictions."):
        return "the head for replaced token detection"
    if name.startswith(("pooler.", "classifier.", "qa_outputs.")):
        return "the head of a fine-tuned model"
    if name.startswith(("lm_predictions.", "cls.predictions.")):
        return "a second prediction head"
    return "not part of a masked-language model"


def take_backbone(config: ModelConfig, split: SplitTensors) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Backbone tensors under our names, and what has no place in this configuration with the reason.

    Raises:
        CheckpointError: the file has weights that the configuration has no place for, so one of the two is wrong.
    """
    wanted = expected_shapes(config)
    names = {ours: theirs for ours, theirs in backbone_names(config).items() if ours in wanted}
    taken = {ours: split.backbone[theirs] for ours, theirs in names.items() if theirs in split.backbone}
    left = {name: t for name, t in split.backbone.items() if name not in {names[ours] for ours in taken}}
    dropped = {}
    for name, tensor in left.items():
        if name == _HF_POSITION_TABLE:
            dropped[name] = "this model reads absolute positions neither at the input nor in a mask decoder"
        elif not config.key_bias and name.endswith("key_proj.bias") and not tensor.any():
            dropped[name] = "all zero: the model has no key biases"
    if unknown := sorted(left.keys() - dropped.keys()):
        raise CheckpointError(
            f"{len(unknown)} tensors have no place in the model that config.json describes, first {unknown[0]}; "
            "the config.json belongs to other weights (layers, share_att_key, norm_rel_ebd, conv_kernel_size)"
        )
    return taken, dropped


def has_position_table(split: SplitTensors) -> bool:
    """Whether the file holds absolute positions; without them at the input, they are the mask decoder's."""
    return _HF_POSITION_TABLE in split.backbone


def source_name(config: ModelConfig, ours: str, layout_type: str) -> str:
    """The name (without prefix) under which a folder of this type holds one of our tensors."""
    theirs = (backbone_names(config) | MLM_HEAD)[ours]
    return v1.v1_name(theirs) if layout_type == V1 else theirs
