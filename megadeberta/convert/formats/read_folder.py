"""A Hugging Face or Microsoft folder -> tensors under our names, with a line for every tensor of the file."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.formats.config_json import MASK_DECODER_KEY, from_config_json
from megadeberta.convert.formats.families import family_of
from megadeberta.convert.formats.family import Family
from megadeberta.convert.formats.names import (
    MLM_HEAD,
    POSITION_TABLE_OF_DECODER,
    RTD_HEAD,
    WORD_TABLE,
    backbone_names,
)
from megadeberta.convert.formats.places import config_path, read_config
from megadeberta.convert.formats.score_scale import (
    WHY_SCALED,
    is_of_microsoft,
    is_query,
    position_names,
    position_terms,
    query_factor,
)
from megadeberta.convert.formats.split_tensors import SplitTensors, has_position_table, split_tensors, take_backbone
from megadeberta.errors import CheckpointError
from megadeberta.layers.shapes import Shapes, parameter_shapes
from megadeberta.weights.shapes import compare_shapes, discriminator_shapes, shapes_of
from megadeberta.weights.tensor_file import check_finite, read_model_tensors

Action = Literal["taken", "created", "dropped"]


@dataclass(frozen=True)
class ReportLine:
    """What became of one tensor, and why."""

    action: Action
    ours: str | None
    theirs: str | None
    reason: str

    def with_note(self, notes: Mapping[str, str]) -> "ReportLine":
        """The same with what else became of the tensor, by our name."""
        note = notes.get(self.ours or "")
        return self if note is None else dataclasses.replace(self, reason=f"{self.reason}; {note}")


@dataclass(frozen=True)
class ImportedModel:
    """The tensors of a folder under our names; incomplete when ``missing`` names some."""

    family: Family
    config: ModelConfig
    weights: dict[str, Tensor]
    missing: list[str]
    lines: list[ReportLine]
    differences: dict[str, Tensor] = field(default_factory=dict)
    """Of a discriminator: what it adds to its generator's tables, where the file says so."""

    @property
    def has_head(self) -> bool:
        return MLM_HEAD.keys() <= self.weights.keys()

    @property
    def needs_positions(self) -> bool:
        return POSITION_TABLE_OF_DECODER in self.missing


def read_hf_folder(place: Path, *, mask_decoder: bool | None = None) -> ImportedModel:
    """Read a model that predicts tokens: configuration and weights, checked and in fp32, under our names.

    Args:
        place: a folder, or one file of weights with its configuration beside it.
        mask_decoder: whether the model has the enhanced mask decoder. None: what an export of ours says; for other
            folders yes if the file has an absolute position table that is not read at the input (as Microsoft's), and
            no otherwise.

    Raises:
        CheckpointError: the weights are missing, damaged, unsafe, not finite or not those of the configuration.
    """
    contents = _read(place)
    family, split = contents.family, contents.split
    if contents.has_mask_decoder() if mask_decoder is None else mask_decoder:
        contents = dataclasses.replace(contents, config=contents.read_config(mask_decoder=True))
    taken, dropped = contents.take_backbone()
    dropped |= _why_dropped(split.rtd_head, family.rtd_heads[0], "the head for replaced token detection")
    dropped |= dict.fromkeys(split.differences, "the discriminator's difference from its generator, not a table")
    if split.differences and WORD_TABLE not in split.backbone:
        raise CheckpointError(
            f"{contents.source}: holds a discriminator's difference (_weight) but no word table; the table is in the "
            "generator's folder: give that one with --generator"
        )
    taken |= split.mlm_head
    creatable = _creatable(contents.config) - (MLM_HEAD.keys() if split.mlm_head else frozenset())
    missing = creatable - taken.keys()
    expected = parameter_shapes(contents.config, ObjectiveConfig())
    _check_shapes(expected, taken, contents.source, may_lack=missing)
    return contents.imported(taken, missing, dropped)


def read_discriminator(place: Path) -> ImportedModel:
    """Read a model that detects replaced tokens. ``weights`` has its whole tables, less those that the file gives as
    a difference alone, and its head, which may be missing.

    Raises:
        CheckpointError: see :func:`read_hf_folder`.
    """
    contents = _read(place)
    family, split = contents.family, contents.split
    expected = discriminator_shapes(contents.config)
    taken, dropped = contents.take_backbone()
    dropped |= _why_dropped(split.mlm_head, family.mlm_heads[0], "predicts tokens, which is the generator's task")
    taken |= split.rtd_head
    missing = frozenset() if split.rtd_head else frozenset(RTD_HEAD)
    table_of = {name: name.replace(".delta", ".weight") for name in split.differences}
    unused = [name for name, table in table_of.items() if table not in expected]
    dropped |= dict.fromkeys(unused, "a discriminator reads no absolute positions")
    differences = {name: tensor.float() for name, tensor in split.differences.items() if name not in unused}
    for name, difference in differences.items():
        if tuple(difference.shape) != expected[table_of[name]]:
            raise CheckpointError(
                f"{contents.source}: {name} has shape {tuple(difference.shape)}, its table {expected[table_of[name]]}; "
                "the file is not one of microsoft/DeBERTa's"
            )
    whole = {table_of[name] for name in differences}
    _check_shapes(expected, taken, contents.source, may_lack=missing | (whole - taken.keys()))
    return dataclasses.replace(contents.imported(taken, missing, dropped), differences=differences)


@dataclass(frozen=True)
class _Contents:
    """What a folder holds, before it is known which of its tensors are wanted."""

    config_file: Path
    values: dict[str, Any]
    """The content of ``config_file``."""
    family: Family
    config: ModelConfig
    split: SplitTensors
    source: str
    """The file of the tensors, for errors."""

    def read_config(self, *, mask_decoder: bool) -> ModelConfig:
        return from_config_json(self.values, self.family, mask_decoder=mask_decoder, source=str(self.config_file))

    def has_mask_decoder(self) -> bool:
        if MASK_DECODER_KEY in self.values:
            return self.values[MASK_DECODER_KEY] is True
        return has_position_table(self.split) and not self.values.get("position_biased_input", True)

    def take_backbone(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The backbone under our names, and what was dropped so far with the reason."""
        with _named(self.source):
            taken, dropped = take_backbone(self.config, self.split, self.family)
        return taken, self.split.dropped | dropped

    def imported(self, taken: dict[str, Tensor], missing: Collection[str], dropped: dict[str, str]) -> ImportedModel:
        theirs = backbone_names(self.config)
        theirs = {ours: self.family.stored_name(name) for ours, name in theirs.items()}
        theirs |= {**self.family.mlm_heads[0], **self.family.rtd_heads[0]}
        factor = self._query_factor()
        note = f", times {factor:.6f}: {WHY_SCALED}"
        weights, lines = {}, []
        for ours, tensor in taken.items():
            is_scaled = factor != 1 and is_query(ours)
            weights[ours] = (tensor.float() * factor if is_scaled else tensor.float()).contiguous()
            lines.append(ReportLine("taken", ours, theirs[ours], f"{tensor.dtype}{note if is_scaled else ''}"))
        lines += [ReportLine("dropped", None, name, reason) for name, reason in dropped.items()]
        return ImportedModel(self.family, self.config, weights, sorted(missing), lines)

    def _query_factor(self) -> float:
        """What makes the scores of the file's code those of ours: see ``score_scale``."""
        names = position_names(self.values, str(self.config_file))
        counted = len(position_terms(names)) if is_of_microsoft(self.values) else self.family.counted_terms(names)
        return query_factor(self.config, counted)


def _read(place: Path) -> _Contents:
    """The configuration is the one without mask decoder."""
    config_file = config_path(place)
    values = read_config(config_file)
    tensors, path = read_model_tensors(place)
    family = family_of(values, tensors, str(config_file))
    config = from_config_json(values, family, mask_decoder=False, source=str(config_file))
    source = str(path)
    check_finite(tensors, source)
    with _named(source):
        split = split_tensors(tensors, family, config)
    return _Contents(config_file, values, family, config, split, source)


@contextlib.contextmanager
def _named(source: str) -> Iterator[None]:
    """Put the file's name ahead of an error about its tensors."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _why_dropped(head: Mapping[str, Tensor], names: Mapping[str, str], reason: str) -> dict[str, str]:
    return {names[ours]: reason for ours in head}


def _check_shapes(shapes: Shapes, taken: dict[str, Tensor], source: str, *, may_lack: Collection[str]) -> None:
    expected = {name: shape for name, shape in shapes.items() if name not in may_lack}
    compare_shapes(expected, shapes_of(taken), source)


def _creatable(config: ModelConfig) -> frozenset[str]:
    """What a published file may lack: it is not part of the backbone."""
    head = frozenset(MLM_HEAD)
    return head | {POSITION_TABLE_OF_DECODER} if config.enhanced_mask_decoder else head
