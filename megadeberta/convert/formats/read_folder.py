"""A Hugging Face or Microsoft folder -> tensors under our names, with a line for every tensor of the file."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.formats.hf_config import MASK_DECODER_KEY, from_hf_config, with_model_type
from megadeberta.convert.formats.hf_weights import source_name
from megadeberta.convert.formats.names import MLM_HEAD, POSITION_TABLE_OF_DECODER, RTD_HEAD, WORD_TABLE
from megadeberta.convert.formats.split_tensors import SplitTensors, has_position_table, split_tensors, take_backbone
from megadeberta.errors import CheckpointError
from megadeberta.layers.shapes import Shapes, parameter_shapes
from megadeberta.weights.shapes import compare_shapes, discriminator_shapes, shapes_of
from megadeberta.weights.tensor_file import check_finite, read_folder_tensors

CONFIG_NAMES = ("config.json", "model_config.json")
"""transformers' name, and that of microsoft/DeBERTa (``cache_utils.py``)."""

Action = Literal["taken", "created", "dropped"]


@dataclass(frozen=True)
class ReportLine:
    """What became of one tensor, and why."""

    action: Action
    ours: str | None
    theirs: str | None
    reason: str


@dataclass(frozen=True)
class ImportedModel:
    """The tensors of a folder under our names; incomplete when ``missing`` names some."""

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


def read_hf_folder(folder: Path, *, mask_decoder: bool | None = None) -> ImportedModel:
    """Read a model that predicts tokens: configuration and weights, checked and in fp32, under our names.

    Args:
        mask_decoder: whether the model has the enhanced mask decoder. None: what an export of ours says; for other
            folders yes if the file has an absolute position table that is not read at the input (as Microsoft's), and
            no otherwise.

    Raises:
        CheckpointError: the weights are missing, damaged, unsafe, not finite or not those of the configuration.
    """
    values, config, split, source = _read(folder)
    if _has_mask_decoder(values, split, mask_decoder):
        config = _config(values, folder, mask_decoder=True)
    taken, dropped = _take(config, split, source)
    dropped |= _why_dropped(split.rtd_head, RTD_HEAD, "the head for replaced token detection")
    dropped |= dict.fromkeys(split.differences, "the discriminator's difference from its generator, not a table")
    if split.differences and WORD_TABLE not in split.backbone:
        raise CheckpointError(
            f"{source}: holds a discriminator's difference (_weight) but no word table; the table is in the "
            "generator's folder: give that one with --generator"
        )
    taken |= split.mlm_head
    creatable = _creatable(config) - (MLM_HEAD.keys() if split.mlm_head else frozenset())
    missing = creatable - taken.keys()
    _check_shapes(parameter_shapes(config, ObjectiveConfig()), taken, source, may_lack=missing)
    return _imported(config, taken, missing, dropped, model_type=values["model_type"])


def read_discriminator(folder: Path) -> ImportedModel:
    """Read a model that detects replaced tokens. ``weights`` has its whole tables, less those that the file gives as
    a difference alone, and its head, which may be missing.

    Raises:
        CheckpointError: see :func:`read_hf_folder`.
    """
    values, config, split, source = _read(folder)
    wanted = discriminator_shapes(config)
    taken, dropped = _take(config, split, source)
    dropped |= _why_dropped(split.mlm_head, MLM_HEAD, "predicts tokens, which is the generator's task")
    taken |= split.rtd_head
    missing = frozenset() if split.rtd_head else frozenset(RTD_HEAD)
    table_of = {name: name.replace(".delta", ".weight") for name in split.differences}
    unused = [name for name, table in table_of.items() if table not in wanted]
    dropped |= dict.fromkeys(unused, "a discriminator reads no absolute positions")
    differences = {name: tensor.float() for name, tensor in split.differences.items() if name not in unused}
    for name, difference in differences.items():
        if tuple(difference.shape) != wanted[table_of[name]]:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(difference.shape)}, its table {wanted[table_of[name]]}; "
                "the file is not one of microsoft/DeBERTa's"
            )
    whole = {table_of[name] for name in differences}
    _check_shapes(wanted, taken, source, may_lack=missing | (whole - taken.keys()))
    found = _imported(config, taken, missing, dropped, model_type=values["model_type"])
    return dataclasses.replace(found, differences=differences)


def _read(folder: Path) -> tuple[dict[str, Any], ModelConfig, SplitTensors, str]:
    """Configuration as it is and as ours, without mask decoder; the tensors; and the file's name, for errors."""
    config_file = config_path(folder)
    values = _read_config(config_file)
    tensors, file_name = read_folder_tensors(folder)
    values = with_model_type(values, tensors)
    config = from_hf_config(values, mask_decoder=False, source=str(config_file))
    source = str(folder / file_name)
    check_finite(tensors, source)
    try:
        split = split_tensors(tensors, model_type=values["model_type"], num_heads=config.num_attention_heads)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    return values, config, split, source


def _config(values: Mapping[str, Any], folder: Path, *, mask_decoder: bool) -> ModelConfig:
    return from_hf_config(values, mask_decoder=mask_decoder, source=str(config_path(folder)))


def _take(config: ModelConfig, split: SplitTensors, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        taken, dropped = take_backbone(config, split)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    return taken, split.dropped | dropped


def _why_dropped(head: Mapping[str, Tensor], names: Mapping[str, str], reason: str) -> dict[str, str]:
    return {names[ours]: reason for ours in head}


def _check_shapes(wanted: Shapes, taken: dict[str, Tensor], source: str, *, may_lack: Collection[str]) -> None:
    expected = {name: shape for name, shape in wanted.items() if name not in may_lack}
    compare_shapes(expected, shapes_of(taken), source)


def _imported(
    config: ModelConfig,
    taken: dict[str, Tensor],
    missing: Collection[str],
    dropped: dict[str, str],
    *,
    model_type: str,
) -> ImportedModel:
    lines = [
        ReportLine("taken", ours, source_name(config, ours, model_type), str(tensor.dtype))
        for ours, tensor in taken.items()
    ]
    lines += [ReportLine("dropped", None, name, reason) for name, reason in dropped.items()]
    weights = {name: tensor.float().contiguous() for name, tensor in taken.items()}
    return ImportedModel(config, weights, sorted(missing), lines)


def _creatable(config: ModelConfig) -> frozenset[str]:
    """What a published file may lack: it is not part of the backbone."""
    head = frozenset(MLM_HEAD)
    return head | {POSITION_TABLE_OF_DECODER} if config.enhanced_mask_decoder else head


def _has_mask_decoder(values: Mapping[str, Any], split: SplitTensors, asked: bool | None) -> bool:
    if asked is not None:
        return asked
    if MASK_DECODER_KEY in values:
        return values[MASK_DECODER_KEY] is True
    return has_position_table(split) and not values.get("position_biased_input", True)


def config_path(folder: Path) -> Path:
    """The configuration of a folder; transformers' name if there is none, for the error that follows."""
    return next((folder / name for name in CONFIG_NAMES if (folder / name).is_file()), folder / CONFIG_NAMES[0])


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing; give a folder of transformers or microsoft/DeBERTa") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, expected a JSON object")
    return values
