"""``convert import``: a folder that predicts tokens -> a folder of our weights."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.set_files import TOKENIZER_FILE
from megadeberta.convert.formats.places import folder_of
from megadeberta.convert.formats.read_folder import ReportLine, read_hf_folder
from megadeberta.convert.new_vocabulary import onto_vocabulary
from megadeberta.convert.published_folder import publish_folder, write_json
from megadeberta.data.tokenizer import find_tokenizer, load_tokenizer
from megadeberta.errors import CheckpointError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.layers.layer import Layer
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from megadeberta.weights.hub import MODEL_JSON
from megadeberta.weights.recorded import OBJECTIVE_JSON
from megadeberta.weights.safetensors_file import SAFETENSORS
from megadeberta.weights.vocabulary import check_tokenizer_fits

log = logging.getLogger(__name__)

REPORT = "import_report.json"


def import_folder(
    place: Path,
    out: Path,
    *,
    allow_new: bool = False,
    mask_decoder: bool | None = None,
    tokenizer: Path | None = None,
    seed: int = 1234,
    overwrite: bool = False,
) -> list[ReportLine]:
    """Convert a model into ``out`` with ``model.safetensors``, ``model.json``, the report and the tokenizer.

    Args:
        place: a folder, or one file of weights with its configuration beside it.
        allow_new: draw the prediction head or the decoder's absolute positions by name where the file has none.
        mask_decoder: see :func:`read_hf_folder`.
        tokenizer: another vocabulary for the weights, see :func:`megadeberta.convert.new_vocabulary.onto_vocabulary`.
        seed: of the tensors that are drawn.

    Returns:
        One line for every tensor of the file and of the model.

    Raises:
        CheckpointError: the weights are missing, damaged, unsafe, not finite or not those of the configuration.
    """
    imported = read_hf_folder(place, mask_decoder=mask_decoder)
    folder = folder_of(place)
    spm = find_tokenizer(folder) or folder / TOKENIZER_FILE
    if tokenizer is None:
        check_tokenizer_fits(spm, imported.config)
    if imported.missing and not allow_new:
        raise CheckpointError(
            f"{place}: has no {', '.join(imported.missing)}; add --allow-new to start them from random values"
            + (", or --no-mask-decoder to do without absolute positions" if imported.needs_positions else "")
        )
    layers, std = token_model_layers(imported.config), imported.config.initializer_range
    created = draw_initial_values(layers, imported.missing, seed=seed, std=std)
    reason = f"not in the file: drawn from seed {seed} and its name, untrained"
    lines = imported.lines + [ReportLine("created", name, None, reason) for name in created]
    weights = imported.weights | created
    config = imported.config
    if tokenizer is not None:
        weights, config, rows = onto_vocabulary(weights, config, ObjectiveConfig(), old=spm, new=tokenizer, seed=seed)
        lines, spm = [line.with_note(rows) for line in lines], tokenizer
    write_import(out, config, weights, lines, spm=spm, overwrite=overwrite)
    return lines


def write_import(
    out: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    lines: Sequence[ReportLine],
    *,
    spm: Path,
    objective: ObjectiveConfig | None = None,
    overwrite: bool = False,
) -> None:
    """Write the folder, which appears whole or not at all: weights, configuration, report and, if there, tokenizer."""

    def fill(target: Path) -> None:
        ordered = {name: weights[name] for name in parameter_shapes(config, objective or ObjectiveConfig())}
        safetensors.torch.save_file(ordered, target / SAFETENSORS, metadata={"format": "pt"})
        write_json(target / MODEL_JSON, config.model_dump(mode="json"))
        if objective is not None:
            write_json(target / OBJECTIVE_JSON, objective.model_dump(mode="json"))
        write_json(target / REPORT, [vars(line) for line in lines])
        if spm.exists():
            tokenizer = load_tokenizer(spm)
            (target / tokenizer.file_name).write_bytes(tokenizer.content)

    publish_folder(out, fill, overwrite=overwrite, marker=MODEL_JSON)


def draw_initial_values(layers: Sequence[Layer], names: Sequence[str], *, seed: int, std: float) -> dict[str, Tensor]:
    """Values of parameters that no file holds: those that a new run of these layers and this seed starts from."""
    if not names:
        return {}
    first = f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
    log.warning("%d tensors NOT FROM A FILE but freshly drawn, untrained (%s): see %s", len(names), first, REPORT)
    model = WholeModel(layers)
    initialize(model, seed=seed, std=std)
    return {name: model.get_parameter(name).detach() for name in names}
