"""``convert import``: a Hugging Face or Microsoft folder -> a folder of our weights."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.convert.hf_config import MASK_DECODER_KEY, from_hf_config
from megadeberta.convert.hf_weights import (
    SplitTensors,
    expected_shapes,
    has_position_table,
    source_name,
    split_tensors,
    take_backbone,
)
from megadeberta.convert.names import MLM_HEAD, POSITION_TABLE_OF_DECODER
from megadeberta.convert.published_folder import publish_folder
from megadeberta.convert.source import MODEL_JSON, SPM, check_shapes
from megadeberta.convert.tensor_file import SAFETENSORS, check_finite, read_folder_tensors
from megadeberta.errors import CheckpointError
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel, mlm_specs

log = logging.getLogger(__name__)

REPORT = "import_report.json"
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

    @property
    def has_head(self) -> bool:
        return MLM_HEAD.keys() <= self.weights.keys()

    @property
    def needs_positions(self) -> bool:
        return POSITION_TABLE_OF_DECODER in self.missing


def import_folder(
    folder: Path,
    out: Path,
    *,
    allow_new: bool = False,
    mask_decoder: bool | None = None,
    seed: int = 1234,
    overwrite: bool = False,
) -> list[ReportLine]:
    """Convert ``folder`` into ``out`` with ``model.safetensors``, ``model.json``, the report and the tokenizer.

    Args:
        allow_new: draw the prediction head or the decoder's absolute positions by name where the file has none.
        mask_decoder: see :func:`read_hf_folder`.
        seed: of the tensors that are drawn.

    Returns:
        One line for every tensor of the file and of the model.

    Raises:
        CheckpointError: the weights are missing, damaged, unsafe, not finite or not those of the configuration.
    """
    imported = read_hf_folder(folder, mask_decoder=mask_decoder)
    created = _create(imported, folder, allow_new=allow_new, seed=seed)
    reason = f"not in the file: drawn from seed {seed} and its name, untrained"
    lines = imported.lines + [ReportLine("created", name, None, reason) for name in created]
    weights = imported.weights | created

    def fill(target: Path) -> None:
        ordered = {name: weights[name] for name in expected_shapes(imported.config)}
        safetensors.torch.save_file(ordered, target / SAFETENSORS, metadata={"format": "pt"})
        _write_json(target / MODEL_JSON, imported.config.model_dump(mode="json"))
        _write_json(target / REPORT, [vars(line) for line in lines])
        if (folder / SPM).is_file():
            shutil.copyfile(folder / SPM, target / SPM)

    publish_folder(out, fill, overwrite=overwrite, marker=MODEL_JSON)
    return lines


def read_hf_folder(folder: Path, *, mask_decoder: bool | None = None) -> ImportedModel:
    """Read a folder's configuration and weights, checked and in fp32, under our names.

    Args:
        mask_decoder: whether the model has the enhanced mask decoder. None: what an export of ours says; for other
            folders yes if the file has an absolute position table that is not read at the input (as Microsoft's), and
            no otherwise.

    Raises:
        CheckpointError: see :func:`import_folder`.
    """
    config_file = folder / "config.json"
    values = _read_config(config_file)
    config = from_hf_config(values, mask_decoder=False, source=str(config_file))
    tensors, file_name = read_folder_tensors(folder)
    source = str(folder / file_name)
    check_finite(tensors, source)
    try:
        split = split_tensors(tensors, model_type=values["model_type"], num_heads=config.num_attention_heads)
        if _has_mask_decoder(values, split, mask_decoder):
            config = from_hf_config(values, mask_decoder=True, source=str(config_file))
        taken, dropped = take_backbone(config, split)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    taken |= split.head
    missing = _creatable(config) - taken.keys() if not split.head else _creatable(config) - _HEAD - taken.keys()
    check_shapes(config, taken, source, may_lack=missing)
    lines = [
        ReportLine("taken", ours, source_name(config, ours, values["model_type"]), str(tensor.dtype))
        for ours, tensor in taken.items()
    ]
    lines += [ReportLine("dropped", None, name, reason) for name, reason in (split.dropped | dropped).items()]
    weights = {name: tensor.float().contiguous() for name, tensor in taken.items()}
    return ImportedModel(config, weights, sorted(missing), lines)


_HEAD = frozenset(MLM_HEAD)


def _creatable(config: ModelConfig) -> frozenset[str]:
    """What a published file may lack: it is not part of the backbone."""
    return _HEAD | {POSITION_TABLE_OF_DECODER} if config.enhanced_mask_decoder else _HEAD


def _has_mask_decoder(values: dict[str, Any], split: SplitTensors, asked: bool | None) -> bool:
    if asked is not None:
        return asked
    if MASK_DECODER_KEY in values:
        return values[MASK_DECODER_KEY] is True
    return has_position_table(split) and not values.get("position_biased_input", True)


def _create(imported: ImportedModel, folder: Path, *, allow_new: bool, seed: int) -> dict[str, Tensor]:
    """Initial values of what is missing, exactly those that a new run with this seed would start from."""
    if not imported.missing:
        return {}
    if not allow_new:
        raise CheckpointError(
            f"{folder}: has no {', '.join(imported.missing)}; add --allow-new to start them from random values"
            + (", or --no-mask-decoder to do without absolute positions" if imported.needs_positions else "")
        )
    log.warning("NOT FROM THE FILE but freshly drawn, untrained: %s", ", ".join(imported.missing))
    model = WholeModel(mlm_specs(imported.config))
    initialize(model, seed=seed, std=imported.config.initializer_range)
    return {name: model.get_parameter(name).detach() for name in imported.missing}


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


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
