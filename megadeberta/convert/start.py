"""``training.init_from``: a folder of our weights, or a model that ``convert import`` reads, imported first."""

import logging
from pathlib import Path

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, list_checkpoints
from megadeberta.config.objective import DISCRIMINATOR
from megadeberta.config.run import RunConfig
from megadeberta.convert.formats.places import config_path, find_generator
from megadeberta.convert.import_folder import import_folder
from megadeberta.convert.import_parts import import_parts
from megadeberta.errors import CheckpointError, MegadebertaError
from megadeberta.layers.objectives import objective_of
from megadeberta.weights.hub import MODEL_JSON, find_model

log = logging.getLogger(__name__)

START_FOLDER = "start"
"""In the output folder of a run: what the import of ``training.init_from`` wrote."""
_FAILED = "failed: "


def start_folder(config: RunConfig, ranks: Collectives) -> Path:
    """The folder of our weights that the run starts from. Rank 0 imports; one broadcast.

    Raises:
        CheckpointError: the same on every rank.
    """
    said = ranks.broadcast_text(_prepare(config) if ranks.rank == 0 else None)
    if said.startswith(_FAILED):
        raise CheckpointError(said.removeprefix(_FAILED))
    return Path(said)


def _prepare(config: RunConfig) -> str:
    """The folder's path, or why there is none."""
    source = config.training.init_from
    assert source is not None
    out = config.training.output_dir / START_FOLDER
    has_checkpoint = bool(list_checkpoints(config.training.output_dir / CHECKPOINTS_FOLDER))
    try:
        if (source / MODEL_JSON).is_file() or (source.is_dir() and not config_path(source).is_file()):
            return str(source)
        if not (has_checkpoint and (out / MODEL_JSON).is_file()):
            _import(config, find_model(source), out)
            log.info("training.init_from=%s is imported to %s", source, out)
    except MegadebertaError as error:
        options = "; `megadeberta convert import` has this option" if "add --" in str(error) else ""
        return f"{_FAILED}training.init_from={source}: {error}{options}"
    return str(out)


def _import(config: RunConfig, place: Path, out: Path) -> None:
    if DISCRIMINATOR not in objective_of(config.objective).models(config.model, config.objective):
        import_folder(place, out, overwrite=True)
        return
    generator = find_generator(place, None)
    if generator is None:
        raise CheckpointError(
            f"{place} holds a discriminator and no generator, and objective {config.objective.name} trains both; "
            f"`megadeberta convert import {config.training.init_from} OUT --new-generator` starts one: give OUT"
        )
    sharing = config.objective.rtd.embedding_sharing
    import_parts(place, out, generator=generator, sharing=sharing, overwrite=True)
