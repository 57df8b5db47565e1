"""Our tensors -> those of a Hugging Face or Microsoft folder."""

from collections.abc import Mapping

from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.convert.formats.family import ExportTarget, FileFormat, ModelKind
from megadeberta.convert.formats.names import (
    INPUT_POSITION_TABLE,
    RELATIVE_TABLE,
    WORD_TABLE,
    backbone_names,
    difference_names,
)
from megadeberta.ops.attention.distance_rows import nearest_read_rows


def export_tensors(config: ModelConfig, weights: Mapping[str, Tensor], target: ExportTarget) -> dict[str, Tensor]:
    """Our tensors under the names and in the packing of ``target``.

    A row of the relative table that no distance reads becomes a copy of the nearest one that is read: training clips
    distances to M - 1, but transformers does not, and reads such rows for keys M or more tokens away.
    """
    names = backbone_names(config)
    backbone = {names[ours]: tensor for ours, tensor in weights.items() if ours in names}
    if config.relative_attention:
        backbone[names[RELATIVE_TABLE]] = backbone[names[RELATIVE_TABLE]][table_rows(config)]
    if target.kind == ModelKind.BACKBONE and config.enhanced_mask_decoder:
        del backbone[INPUT_POSITION_TABLE]
    backbone = target.family.pack(backbone, config)
    if target.kind == ModelKind.BACKBONE and target.file_format == FileFormat.HUGGING_FACE:
        return backbone
    prefix = target.family.prefixes[0]
    tensors = {prefix + name: tensor for name, tensor in backbone.items()}
    head = {theirs: weights[ours] for ours, theirs in _head_names(config, target).items()}
    differences = {prefix + theirs: tensor for theirs, tensor in _differences(weights, target).items()}
    return tensors | head | differences


def table_rows(config: ModelConfig) -> list[int]:
    """Which row of our relative table each row of an export is; all but a few are themselves."""
    return nearest_read_rows(num_buckets=config.position_buckets, max_distance=config.relative_span)


def _head_names(config: ModelConfig, target: ExportTarget) -> Mapping[str, str]:
    if target.kind == ModelKind.MLM:
        return target.family.written_mlm_head(config, target.file_format)
    return target.family.rtd_heads[0] if target.kind == ModelKind.DISCRIMINATOR else {}


def _differences(weights: Mapping[str, Tensor], target: ExportTarget) -> dict[str, Tensor]:
    """What microsoft/DeBERTa needs to go on with a discriminator: without it, it would start again from zero.

    transformers has no use for it, and a table of this name beside ``weight`` has misled people.
    """
    if target.kind != ModelKind.DISCRIMINATOR or target.file_format != FileFormat.MICROSOFT:
        return {}
    names = dict(difference_names(table) for table in (WORD_TABLE, INPUT_POSITION_TABLE))
    return {theirs: weights[ours] for ours, theirs in names.items() if ours in weights}
