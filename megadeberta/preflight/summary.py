"""A run in a few lines, for the dry run and the first lines of the log; recipe.json has all that it resolves to."""

import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator

from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, list_checkpoints
from megadeberta.config.blend import BlendSegment
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.recipes import first_sentence
from megadeberta.config.run import RunConfig
from megadeberta.config.terminal import line_width
from megadeberta.data.check import DataFacts
from megadeberta.errors import CheckpointError
from megadeberta.layers.objectives import list_layers
from megadeberta.layers.shapes import count_parameters
from megadeberta.layers.terms import legend
from megadeberta.preflight.blend import plan_sources
from megadeberta.preflight.run import PreparedRun
from megadeberta.topology import Topology

Row = tuple[str, str]
"""A label and what there is to say about it."""
_LABEL_WIDTH = 11
_NO_TERMINAL = 10_000


def summary(config: RunConfig, algebra: BatchAlgebra, topology: Topology) -> list[Row]:
    """What can be said without the data: model, length, layout, optimizer, output."""
    counts = count_parameters(config.model, config.objective)
    parts = "" if len(counts) == 1 else " = " + " + ".join(f"{count:,} {part}" for part, count in counts.items())
    model, schedule, optimizer = config.model, config.schedule, config.optimizer
    length, steps = config.data.sequence_length, config.training.steps
    ranks = "1 rank" if topology.world_size == 1 else f"{topology.world_size} ranks"
    warmup = f"{schedule.warmup_steps:,} steps of warm-up" if schedule.warmup_steps else "no warm-up"
    return [
        ("run", config.name + (f": {first_sentence(config.description)}" if config.description else "")),
        (
            "model",
            f"{config.objective.name}, {model.num_hidden_layers} layers of width {model.hidden_size}, vocabulary "
            f"{model.vocab_size:,}: {sum(counts.values()):,} parameters{parts}",
        ),
        (
            "batch",
            f"{algebra.global_batch} sequences of {length} tokens per step = {algebra.micro_batch} micro batch x "
            f"{algebra.accumulation} accumulation x {algebra.data_parallel} data-parallel ranks",
        ),
        *([("", f"sequences per step: {config.batches.describe()}")] if config.training.batch_stages else []),
        ("length", f"{steps:,} steps = {_count(config.batches.samples(steps) * length)} tokens"),
        (
            "optimizer",
            f"learning rate {optimizer.lr:g}, {schedule.name}, {warmup}; weight decay {optimizer.weight_decay:g}",
        ),
        ("layout", f"{ranks} = {_describe_layout(config, topology)}"),
        ("output", _describe_output(config)),
    ]


def data_rows(config: RunConfig, data: DataFacts, blend: tuple[BlendSegment, ...]) -> list[Row]:
    """What there is to train on, and how often the run meets it."""
    if data.valid_chunks:
        scored = min(data.valid_chunks, config.training.eval_sequences * len(data.valid))
        held_out = f"{data.valid_chunks:,} validation sequences, {scored:,} of them scored"
    else:
        held_out = "no validation"
    rows = [
        (
            "data",
            f"{data.train_tokens:,} training tokens in {data.train_chunks:,} sequences per epoch, {held_out}, "
            f"{data.num_pieces:,} vocabulary entries",
        )
    ]
    for source in plan_sources(config, data.train, blend):
        name = f"source {source.name}: {source.tokens:,} tokens, " if source.name else ""
        fraction = f"{source.fraction:.4%} of the samples, " if source.name else ""
        rows.append(("", f"{name}{fraction}{source.epochs:.3f} epochs in the run"))
    trained_on = {source.content for source in data.train.values()}
    for name, held in data.valid.items():
        if held.content in trained_on:
            which = f"validation source {name}" if name else "the validation text"
            rows.append(("", f"{which} is trained on too: its loss will not tell how well unseen text is predicted"))
    return rows


def start_lines(prepared: PreparedRun) -> list[str]:
    """For the log of a run that begins."""
    config = prepared.config
    rows = summary(config, prepared.algebra, prepared.topology)
    names = [name for layer in list_layers(config.model, config.objective) for name in layer.terms]
    shown = legend(names) + ", grad norm of the gradient, lr learning rate, tok/s tokens per second"
    rows.append(("log", shown + ", mfu fraction of the devices' peak, eta time left"))
    return show(
        [*rows[:2], *data_rows(prepared.config, prepared.data, prepared.blend), *rows[2:]], width=line_width(os.environ)
    )


def show(rows: Iterable[Row], *, width: int | None = None) -> list[str]:
    """Lines that fit ``width`` columns, else the terminal, else one line per row; a longer word is not broken."""
    width = width or shutil.get_terminal_size((_NO_TERMINAL, 0)).columns
    indent = " " * _LABEL_WIDTH
    return [line for label, text in rows for line in _wrapped(f"{label:{_LABEL_WIDTH}}{text}", indent, width)]


def _wrapped(text: str, indent: str, width: int) -> Iterator[str]:
    yield from textwrap.wrap(
        text, max(width, 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _describe_layout(config: RunConfig, topology: Topology) -> str:
    settings, parallel = config.engine, config.parallel
    options = [name for name in ("sequence_parallel", "activation_checkpointing") if getattr(parallel, name)]
    sums = f"gradients added up in {settings.accumulation_type}, over ranks in {settings.reduction_type}"
    return (
        f"tensor {topology.tensor} x pipeline {topology.pipeline} x data {topology.data}, ZeRO {settings.zero_stage}, "
        f"{settings.precision}, {sums}" + "".join(f", {name}" for name in options)
    )


def _describe_output(config: RunConfig) -> str:
    folder = config.training.output_dir
    try:
        found = list_checkpoints(folder / CHECKPOINTS_FOLDER)
    except (CheckpointError, OSError):
        found = []
    if not found:
        return f"{folder}, a checkpoint every {config.checkpoint.interval:,} steps"
    return f"{folder}, which has checkpoints: the run goes on from {found[0]} if that is intact"


def _count(number: int) -> str:
    """``2,048,000``, ``131M``, ``2.1B``."""
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**7, "M")):
        if number >= unit:
            scale = 10**6 if name == "M" else unit
            return f"{number / scale:.4g}{name}"
    return f"{number:,}"
