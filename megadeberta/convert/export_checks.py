"""What ``convert export`` refuses by its options, the place, and what files say of the weights. Without torch."""

import importlib.util
from pathlib import Path

from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, list_checkpoints
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig
from megadeberta.config.set_files import tokenizer_in
from megadeberta.convert.formats.families import choose_target
from megadeberta.convert.formats.family import FileFormat, ModelKind
from megadeberta.convert.published_folder import check_free
from megadeberta.errors import CheckpointError, ConfigError
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.weights.hub import check_ours
from megadeberta.weights.recorded import check_has_tokenizer, lacks, mask_head, parts_of, recorded_sections

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_export(
    checkpoint: Path, out: Path, *, kind: ModelKind | None, file_format: FileFormat, onnx: bool, overwrite: bool
) -> None:
    """Refuse what ``convert.export.export_checkpoint`` would, as far as no tensor is needed; its arguments.

    Raises:
        CheckpointError: weights that are damaged, without a tokenizer or without the part that is asked for.
        ConfigError: ``out`` is in use, or options that exclude each other.
    """
    check_ours(checkpoint)
    check_free(out, overwrite=overwrite)
    if onnx:
        check_onnx(file_format)
    folder, config, objective = recorded_sections(checkpoint)
    chosen = choose_kind(folder, config, objective, kind)
    part = objective_of(objective).models(config, objective)
    if chosen == ModelKind.MLM:
        of_part = part[mask_head(folder, list_layers(config, objective), objective).part]
    else:
        of_part = list(part.values())[-1]
    choose_target(of_part, chosen, file_format)
    check_has_tokenizer(folder, tokenizer_in(folder))


def choose_kind(folder: Path, config: ModelConfig, objective: ObjectiveConfig, asked: ModelKind | None) -> ModelKind:
    """What the export of these weights holds.

    Raises:
        CheckpointError: they have no such part.
    """
    parts = parts_of(config, objective)
    if asked is None:
        return ModelKind.DISCRIMINATOR if DISCRIMINATOR in parts else ModelKind.MLM
    for kind, part in ((ModelKind.GENERATOR, GENERATOR), (ModelKind.DISCRIMINATOR, DISCRIMINATOR)):
        if asked == kind and part not in parts:
            raise lacks(folder, config, objective, part)
    return ModelKind.MLM if asked == ModelKind.GENERATOR else asked


def check_onnx(file_format: FileFormat) -> None:
    """Refuse ``--onnx`` where it cannot be.

    Raises:
        ConfigError: not a model of transformers, or the first package that is missing.
    """
    if file_format != FileFormat.HUGGING_FACE:
        raise ConfigError("--onnx is of a model of transformers; export with --format hf")
    for name in _ONNX_PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--onnx needs the package {name}, which is not installed: pip install 'megadeberta[onnx]'"
            )


def kept_steps(run: Path, out: Path) -> dict[Path, Path]:
    """Every checkpoint that a run kept, oldest first, and the folder of its export.

    Raises:
        ConfigError: ``out`` holds an export itself, which would be published together with those of the steps.
        CheckpointError: the run has none.
    """
    if (out / "config.json").exists():
        raise ConfigError(f"{out}: holds an export, and --all-steps writes one folder per step; choose another folder")
    root = run / CHECKPOINTS_FOLDER
    names = sorted(list_checkpoints(root), key=lambda name: name.step)
    if not names:
        raise CheckpointError(f"{run}: holds no checkpoints of a run; --all-steps needs training.output_dir")
    return {root / str(name): out / str(name) for name in names}
