"""``megadeberta checkpoint average``: the mean of the weights of several checkpoints of a run, as a folder of weights.

Averages over the last checkpoints of a constant rate come near what a decay would give (Hägele et al. 2024).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megadeberta.checkpoint.content import AVERAGE, WEIGHT, CheckpointContent
from megadeberta.checkpoint.fragments import Fragment
from megadeberta.checkpoint.verify import verify_checkpoint
from megadeberta.config.set_files import TOKENIZER_FILE
from megadeberta.convert.formats.read_folder import ReportLine
from megadeberta.convert.import_folder import write_import
from megadeberta.errors import CheckpointError
from megadeberta.stages.averaged import average_fractions, chosen_checkpoints
from megadeberta.weights.source import load_weights


def average_checkpoints(
    run: Path, out: Path, *, last: int | None = None, ema: float | None = None, overwrite: bool = False
) -> dict[Path, float]:
    """Write the average of a run's checkpoints, each verified, to ``out``: as `megadeberta convert import` does.

    Args:
        run: training.output_dir.
        last: how many of the newest; all if not given.
        ema: decay of an exponential average that begins with the oldest; None = the plain mean.

    Returns:
        The checkpoints, oldest first, and their fractions of the average.

    Raises:
        CheckpointError: one is not sound, they are of different models, or there are fewer.
        ConfigError: ``out`` exists.
    """
    folders = chosen_checkpoints(run, last)
    for folder in folders:
        verify_checkpoint(folder)
    fractions = average_fractions(len(folders), ema)
    newest = load_weights(folders[-1])
    contents = [CheckpointContent(folder) for folder in folders]
    weights = {name: _mean(name, tensor.shape, contents, fractions) for name, tensor in newest.weights.items()}
    reason = f"average of {', '.join(folder.name for folder in folders)}"
    write_import(
        out,
        newest.config,
        weights,
        [ReportLine("taken", name, name, reason) for name in weights],
        spm=newest.tokenizer or folders[-1] / TOKENIZER_FILE,
        objective=newest.objective,
        overwrite=overwrite,
    )
    return dict(zip(folders, fractions, strict=True))


def take_average(run: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the average that a run kept while it trained (``training.ema_decay``) to ``out``; the checkpoint it is of.

    Args:
        run: training.output_dir, or a ``step-N`` folder.

    Raises:
        CheckpointError: the checkpoint is not sound, or has none.
        ConfigError: ``out`` exists.
    """
    source = load_weights(run)
    content = CheckpointContent(source.folder)
    names = [name for name in source.weights if content.updates(name) is not None]
    if not names or not all(content.holds(AVERAGE, name) for name in names):
        raise CheckpointError(
            f"{source.folder}: holds no average of the weights; a run keeps one with training.ema_decay, and "
            "`megadeberta checkpoint average` without --trained makes one of several checkpoints"
        )
    averaged = dict(_whole(content, names))
    write_import(
        out,
        source.config,
        {name: averaged.get(name, tensor) for name, tensor in source.weights.items()},
        [ReportLine("taken", name, name, f"average kept by {source.folder.name}") for name in source.weights],
        spm=source.tokenizer or source.folder / TOKENIZER_FILE,
        objective=source.objective,
        overwrite=overwrite,
    )
    return source.folder


def _whole(content: CheckpointContent, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    for name, weight in content.whole():
        if name in names:
            values = np.empty(weight.size, dtype=np.float32)
            content.read(AVERAGE, Fragment(name=name, shape=weight.shape, start=0, stop=weight.size), values)
            yield name, torch.from_numpy(values).view(weight.shape)


def _mean(name: str, shape: torch.Size, contents: Sequence[CheckpointContent], fractions: Sequence[float]) -> Tensor:
    """One parameter's average, summed in float64."""
    total = np.zeros(shape.numel(), dtype=np.float64)
    part = np.empty(shape.numel(), dtype=np.float32)
    whole = Fragment(name=name, shape=tuple(shape), start=0, stop=part.size)
    for content, fraction in zip(contents, fractions, strict=True):
        content.read(WEIGHT, whole, part)
        total += fraction * part.astype(np.float64)
    return torch.from_numpy(total.astype(np.float32)).view(shape)
