"""What a start would go on from, as far as names and manifests tell without verifying a checkpoint."""

from pathlib import Path

from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, checkpoint_path, list_checkpoints, read_pointer
from megadeberta.checkpoint.manifest import Manifest, read_manifest
from megadeberta.checkpoint.rate_jump import refuse_jump
from megadeberta.config.run import RunConfig
from megadeberta.errors import CheckpointError, ConfigError


def expected_checkpoint(config: RunConfig) -> tuple[Path, Manifest] | None:
    """The run's newest checkpoint, or that of ``training.continue_from`` where it has none; None where there is none,
    or a damaged one: what is wrong with it, resuming says."""
    root, source = config.training.output_dir / CHECKPOINTS_FOLDER, config.training.continue_from
    try:
        if source is not None and not list_checkpoints(root):
            return source, read_manifest(source)
        path = checkpoint_path(root, read_pointer(root) or str(list_checkpoints(root)[0]))
        return path, read_manifest(path)
    except (CheckpointError, OSError, IndexError):
        return None


def check_rates(config: RunConfig) -> None:
    """
    Raises:
        ConfigError: a learning rate would jump where the run goes on (``checkpoint/rate_jump.py``).
    """
    found = expected_checkpoint(config)
    # Of another model it is of another run, which resuming says.
    if found is not None and found[1].run.config.get("model") == config.model.model_dump(mode="json"):
        refuse_jump(config, found[1].run.config, found[1].step, checkpoint=str(found[0]))


def check_resumable(config: RunConfig) -> None:
    """Whether there is anything to resume from, where the recipe demands it; whether it is sound is checked later.

    Raises:
        CheckpointError, ConfigError: there is nothing, or it is behind the end of the run.
    """
    root = config.training.output_dir / CHECKPOINTS_FOLDER
    if config.checkpoint.resume == "required" and not list_checkpoints(root):
        raise CheckpointError(f"{root}: there is no checkpoint to resume from; start with checkpoint.resume=auto")
    source = config.training.continue_from
    if source is None or list_checkpoints(root):
        return
    inside = list_checkpoints(source / CHECKPOINTS_FOLDER)
    if inside:
        raise CheckpointError(
            f"training.continue_from={source}: is a run; give one of its checkpoints, such as "
            f"{source / CHECKPOINTS_FOLDER / str(inside[0])}"
        )
    step = read_manifest(source).step
    if step >= config.training.steps:
        raise ConfigError(
            f"training.continue_from={source} is of step {step}, and training.steps={config.training.steps} counts "
            "from the beginning of that run: set it above"
        )
