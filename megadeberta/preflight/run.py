"""Everything about a run that can be checked without torch, in a second, before any process waits for another."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from megadeberta.checkpoint.durable import format_bytes
from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, list_checkpoints
from megadeberta.config.blend import BlendSegment
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.load import load_run_config
from megadeberta.config.run import RunConfig
from megadeberta.config.set_files import TRAIN_NAME, shard_exists
from megadeberta.config.training import OptimizerName, TrackerName
from megadeberta.data.check import DataFacts, check_data, vocabulary_size
from megadeberta.data.missing import check_nothing_is_missing, is_unprepared
from megadeberta.errors import CheckpointError, ConfigError, StorageError
from megadeberta.layers.optimizer_rules import checkpoint_bytes
from megadeberta.layers.recipe import resolved
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.preflight.blend import planned_blend
from megadeberta.preflight.resume import check_rates, check_resumable
from megadeberta.preflight.validate import validate_run
from megadeberta.rank.machine import check_compiler, check_writable
from megadeberta.storage import free_bytes
from megadeberta.topology import Topology
from megadeberta.weights.fit import check_fits
from megadeberta.weights.hub import MODEL_JSON, check_start
from megadeberta.weights.safetensors_file import SAFETENSORS


@dataclass(frozen=True)
class PreparedRun:
    """A recipe that passed every check, and what the checks found."""

    config: RunConfig
    algebra: BatchAlgebra
    topology: Topology
    data: DataFacts
    blend: tuple[BlendSegment, ...]
    """Of the training data, as the newest checkpoint lets expect; empty where it is one prefix."""
    source: str


def load_recipe(recipe: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """``config.load.load_run_config`` with vocabulary sizes taken from tokenizers, where a recipe says auto.

    Raises:
        ConfigError, DataError: the same on every rank.
    """
    return load_run_config(recipe, overrides, vocabulary_size=vocabulary_size)


def check_recipe(
    recipe: Path, overrides: Sequence[str], *, world_size: int
) -> tuple[RunConfig, BatchAlgebra, Topology]:
    """Load, validate and resolve, without looking at the data or the output folder.

    Raises:
        ConfigError: the same on every rank.
        DataError: model.vocab_size is auto, and the tokenizer cannot be read.
    """
    config = load_recipe(recipe, overrides)
    algebra, topology = validate_run(config, world_size=world_size, source=str(recipe))
    return resolved(config, topology), algebra, topology


def lacks_data(config: RunConfig) -> bool:
    """Whether its data is still to be prepared; a path with a mistake in it is another matter."""
    return is_unprepared(config.data)


def prepare_run(recipe: Path, overrides: Sequence[str], *, world_size: int) -> PreparedRun:
    """Load, validate, open the shards and try the output folder.

    Raises:
        ConfigError, DataError, CheckpointError, StorageError: the same on every rank, as all read the same files.
    """
    config, algebra, topology = check_recipe(recipe, overrides, world_size=world_size)
    check_nothing_is_missing(config.data)
    facts = check_data(config.data, config.model.vocab_size)
    check_resumable(config)
    check_rates(config)
    _check_start(config)
    blend = planned_blend(config, facts.train)
    _check_trackers(config.logging.trackers)
    _check_optimizer(config.optimizer.name)
    check_compiler(config.engine.needs_compiler)
    _check_output(config.training.output_dir)
    _check_room(config)
    return PreparedRun(config, algebra, topology, facts, blend, str(recipe))


def _check_start(config: RunConfig) -> None:
    """Whether ``training.init_from`` names weights; a run that has checkpoints needs them no more."""
    source = config.training.init_from
    if source is None or list_checkpoints(config.training.output_dir / CHECKPOINTS_FOLDER):
        return
    try:
        check_start(source)
    except CheckpointError as error:
        raise CheckpointError(f"training.init_from={source}: {error}") from None
    if (source / MODEL_JSON).is_file():
        check_fits(source, parameter_shapes(config.model, config.objective), tokenizer=config.data.tokenizer)


def _check_output(folder: Path) -> None:
    """A folder of its own that can be written: what else uses it would lose files, or be taken for the run."""
    what = "a set of token files" if shard_exists(folder / TRAIN_NAME) else None
    configs = (folder / "config.json", folder / MODEL_JSON)
    if what is None and (folder / SAFETENSORS).is_file() and any(path.is_file() for path in configs):
        what = "a model"
    if what is not None:
        raise ConfigError(f"training.output_dir={folder} holds {what}; give the run a folder of its own")
    check_writable(folder)


def _check_room(config: RunConfig) -> None:
    """Whether the next checkpoint fits, before a run trains towards it."""
    folder = config.training.output_dir
    newest = next(iter(list_checkpoints(folder / CHECKPOINTS_FOLDER)), None)
    needed, free = checkpoint_bytes(config), free_bytes(folder)
    if free < needed and (newest is None or newest.step < config.training.steps):
        raise StorageError(
            f"{folder}: a checkpoint of this run takes {format_bytes(needed)}, and {format_bytes(free)} are free; make "
            "room or choose another training.output_dir"
        )


def _check_optimizer(name: OptimizerName) -> None:
    if name in ("lamb", "stable_adamw") and find_spec("pytorch_optimizer") is None:
        raise ConfigError(
            f"optimizer.name={name!r} is of the package pytorch_optimizer, which is not installed here; pip install "
            "'megadeberta[optimizers]', or use optimizer.name=adamw or muon"
        )


def _check_trackers(names: Sequence[TrackerName]) -> None:
    """A tracker may fail later, and training goes on; one that is asked for and not installed is a mistake."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                f"logging.trackers names {name}, which is not installed here; pip install 'megadeberta[{name}]', or "
                "leave it out"
            )
