"""Which checkpoints of a run ``checkpoint average`` takes, and how much of each. Without torch."""

from collections.abc import Sequence
from pathlib import Path

from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, list_checkpoints
from megadeberta.errors import CheckpointError, ConfigError


def average_fractions(count: int, ema: float | None) -> Sequence[float]:
    """Of ``count`` checkpoints, oldest first; they add up to 1.

    Raises:
        ConfigError: the decay is not between 0 and 1.
    """
    if ema is None:
        return [1 / count] * count
    if not 0 < ema < 1:
        raise ConfigError(f"--ema {ema:g}: is the decay per checkpoint, between 0 and 1, such as 0.8")
    return [ema ** (count - 1), *((1 - ema) * ema ** (count - 1 - place) for place in range(1, count))]


def chosen_checkpoints(run: Path, last: int | None) -> list[Path]:
    """The newest of each step, oldest first; the bytes are not looked at.

    Args:
        run: training.output_dir.
        last: how many steps, the newest; None = all.

    Raises:
        CheckpointError: there are fewer, or fewer than two.
    """
    root = run / CHECKPOINTS_FOLDER
    newest = {name.step: name for name in reversed(list_checkpoints(root))}
    found = sorted(newest.values())
    wanted = len(found) if last is None else last
    if len(found) < max(wanted, 2):
        raise CheckpointError(
            f"{root}: has {len(found)} checkpoints, an average needs {max(wanted, 2)}; checkpoint.keep_last and "
            "keep_every say how many a run keeps"
        )
    return [root / str(name) for name in found[-wanted:]]
