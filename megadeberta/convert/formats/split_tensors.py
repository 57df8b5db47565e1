"""The tensors of a Hugging Face or Microsoft folder, sorted into backbone, heads and the rest."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.formats.family import Family
from megadeberta.convert.formats.names import (
    INPUT_POSITION_TABLE,
    LEGACY_MLM_HEAD,
    MLM_HEAD,
    RELATIVE_NORM,
    WORD_TABLE,
    backbone_names,
    difference_names,
)
from megadeberta.errors import CheckpointError
from megadeberta.layers.shapes import parameter_shapes


@dataclass(frozen=True)
class SplitTensors:
    """The tensors of a folder, sorted by what they are."""

    backbone: dict[str, Tensor]
    """By v2 names."""
    mlm_head: dict[str, Tensor]
    rtd_head: dict[str, Tensor]
    """Both heads by our names."""
    differences: dict[str, Tensor]
    """By our names: what a discriminator adds to its generator's tables."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Name in the file -> why it has no place in any model of ours."""


def split_tensors(tensors: Mapping[str, Tensor], family: Family, config: ModelConfig) -> SplitTensors:
    """Sort a folder's tensors.

    Args:
        config: of the folder; whether it has a mask decoder does not matter here.

    Raises:
        CheckpointError: two spellings of one tensor, a packed one of another shape, or a decoder that is not tied to
            the word table.
    """
    backbone: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = _bare_backbone_name(name, family)
        if bare is None:
            others[name] = tensor
        elif bare in backbone:
            raise CheckpointError(f"the file holds {bare} twice, under two prefixes; remove one of them")
        else:
            backbone[bare] = tensor
    mlm_head, rtd_head, dropped = _split_heads(others, backbone, family)
    pairs = dict(difference_names(table) for table in (WORD_TABLE, INPUT_POSITION_TABLE))
    differences = {ours: backbone.pop(theirs) for ours, theirs in pairs.items() if theirs in backbone}
    for name in [n for n in backbone if n.endswith("position_ids")]:
        del backbone[name]
        dropped[name] = "an index buffer"
    return SplitTensors(family.unpack(backbone, config), mlm_head, rtd_head, differences, dropped)


def _bare_backbone_name(name: str, family: Family) -> str | None:
    for prefix in family.prefixes:
        bare = name.removeprefix(prefix)
        if name.startswith(prefix) and bare.startswith(("embeddings.", "encoder.")):
            return bare
    return None


def _split_heads(
    others: Mapping[str, Tensor], backbone: Mapping[str, Tensor], family: Family
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    mlm_names = _spelling(others, family.mlm_heads, set(MLM_HEAD))
    # The other two modules of this head may be spelt the same everywhere, so the classifier decides.
    rtd_names = _spelling(others, family.rtd_heads[::-1], {"rtd_head.classifier.weight"}) or family.rtd_heads[0]
    mlm_head, rtd_head = (
        {ours: others[theirs] for ours, theirs in names.items() if theirs in others} for names in (mlm_names, rtd_names)
    )
    known = {*mlm_names.values(), *rtd_names.values()}
    dropped = {name: _reason(name) for name in others if name not in known}
    if mlm_names is LEGACY_MLM_HEAD:
        dropped |= _tied_tensors(others, backbone)
    return mlm_head, rtd_head, dropped


def _spelling(
    others: Mapping[str, Tensor], spellings: Sequence[Mapping[str, str]], telling: Collection[str]
) -> Mapping[str, str]:
    """The first spelling in which one of the ``telling`` tensors, by our names, is there."""
    return next((names for names in spellings if any(names[ours] in others for ours in telling)), {})


def _tied_tensors(others: Mapping[str, Tensor], backbone: Mapping[str, Tensor]) -> dict[str, str]:
    tied_to = {
        "cls.predictions.decoder.weight": backbone.get(WORD_TABLE),
        "cls.predictions.decoder.bias": others.get("cls.predictions.bias"),
    }
    tied = {name: source for name, source in tied_to.items() if name in others and source is not None}
    for name, source in tied.items():
        if not torch.equal(others[name], source):
            raise CheckpointError(
                f"{name} differs from the tensor that it is tied to; only a decoder that is the word table, with "
                "one bias, can be imported"
            )
    return dict.fromkeys(tied, "tied: the same values as the tensor it is tied to")


def _reason(name: str) -> str:
    if name.startswith("mask_predictions."):
        return "a second spelling of the head for replaced token detection"
    if name.startswith(("pooler.", "classifier.", "qa_outputs.")):
        return "the head of a fine-tuned model"
    if name.startswith(("lm_predictions.", "cls.predictions.")):
        return "a second prediction head"
    return "not part of a model that this package trains"


def take_backbone(config: ModelConfig, split: SplitTensors, family: Family) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Backbone tensors under our names, and what has no place in this configuration with the reason.

    Raises:
        CheckpointError: the file has weights that the configuration has no place for, so one of the two is wrong.
    """
    shapes = parameter_shapes(config, ObjectiveConfig())
    names = {ours: theirs for ours, theirs in backbone_names(config).items() if ours in shapes}
    taken = {ours: split.backbone[theirs] for ours, theirs in names.items() if theirs in split.backbone}
    remaining = {name: t for name, t in split.backbone.items() if name not in {names[ours] for ours in taken}}
    dropped = {}
    for name, tensor in remaining.items():
        if name == INPUT_POSITION_TABLE:
            dropped[name] = "this model reads absolute positions neither at the input nor in a mask decoder"
        elif name.startswith(RELATIVE_NORM) and not config.relative_attention:
            dropped[name] = "normalises a relative table, and this model has none (relative_attention is false)"
        elif reason := family.why_superfluous(name, tensor, config):
            dropped[name] = reason
    if unknown := sorted(remaining.keys() - dropped.keys()):
        raise CheckpointError(
            f"{len(unknown)} tensors have no place in the model that config.json describes, first {unknown[0]}; "
            "the config.json belongs to other weights (layers, share_att_key, norm_rel_ebd, conv_kernel_size)"
        )
    return taken, dropped


def has_position_table(split: SplitTensors) -> bool:
    """Whether the file holds absolute positions; without them at the input, they are the mask decoder's."""
    return INPUT_POSITION_TABLE in split.backbone
