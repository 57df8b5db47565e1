"""Save under one layout, go on under another: what the tests of resuming share."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from megadeberta.assembly import Assembly
from megadeberta.checkpoint import find_resumable
from megadeberta.checkpoint.content import WEIGHT, CheckpointContent
from megadeberta.checkpoint.resume import ResumePoint
from megadeberta.checkpoint.stages import save_at_once
from megadeberta.config.run import RunConfig
from megadeberta.engine.process_group import start_process_group
from megadeberta.engine.state.optimizer_state import OptimizerState
from megadeberta.engine.state.run_checkpoints import RunCheckpoints, find_own_checkpoint
from megadeberta.engine.state.run_checkpoints import run_record as describe_run
from megadeberta.engine.state.save_load import load_checkpoint, save_stages
from tests.distributed.checkpoint_toy import collectives, open_store, run_record
from tests.distributed.layouts import Layout, build, train_steps

SAVED_AFTER = 3
ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


class Outcome(NamedTuple):
    """Where a layout wrote what it held, and the (loss, norm) of the steps after."""

    folder: Path
    steps: list[tuple[float, float]]


def save(assembly: Assembly, root: Path) -> Path:
    """Write what the ranks hold after ``SAVED_AFTER`` steps; the folder."""
    ranks = collectives()
    state = OptimizerState(assembly.stepper.engine, assembly.parameters)
    run = run_record(ranks.world_size)
    return save_at_once(save_stages(state, open_store(root), SAVED_AFTER, run=run, collectives=ranks, required=True))


def load(assembly: Assembly, root: Path) -> None:
    """Take the state of the newest checkpoint there."""
    ranks = collectives()
    point = find_resumable(root, collectives=ranks, run=run_record(ranks.world_size))
    load_checkpoint(OptimizerState(assembly.stepper.engine, assembly.parameters), point, collectives=ranks)


def go_on(assembly: Assembly, layout: Layout, more: int) -> list[tuple[float, float]]:
    """The steps after the checkpoint."""
    return train_steps(assembly, layout, range(SAVED_AFTER, SAVED_AFTER + more))


def save_and_go_on(rank: int, world_size: int, layout: Layout, root: Path, more: int) -> Outcome:
    """On every rank: train, save, and ``more`` steps."""
    assembly = build(layout)
    train_steps(assembly, layout, range(SAVED_AFTER))
    return Outcome(save(assembly, root), go_on(assembly, layout, more))


def resume_and_go_on(rank: int, world_size: int, layout: Layout, source: Path, root: Path, more: int) -> Outcome:
    """On every rank: load the newest checkpoint below ``source``, save it below ``root``, and ``more`` steps."""
    assembly = build(layout)
    load(assembly, source)
    return Outcome(save(assembly, root), go_on(assembly, layout, more))


def config_into(layout: Layout, folder: Path, **model: object) -> RunConfig:
    """Of a run into ``folder``; ``model``: what its recipe says otherwise than the layout."""
    tokenizer = folder / "spm.model"
    tokenizer.write_bytes(b"the engine copies it, nothing reads it")
    config = layout.config
    sections = {
        "model": config.model.model_copy(update=model),
        "data": config.data.model_copy(update={"tokenizer": tokenizer}),
        "training": config.training.model_copy(update={"output_dir": folder / "run"}),
    }
    return config.model_copy(update=sections)


def start_run(layout: Layout, folder: Path, **model: object) -> tuple[Assembly, RunCheckpoints, ResumePoint | None]:
    """A rank of such a run as `megadeberta train` builds it, its checkpoints and the newest of them."""
    start_process_group(60.0)
    config, ranks = config_into(layout, folder, **model), collectives()
    run = describe_run(config, world_size=ranks.world_size, data_fingerprint={"shard": "toy"})
    found = find_own_checkpoint(config, run=run, collectives=ranks)
    assembly = build(layout, loads_checkpoint=found is not None)
    engine, parameters = assembly.stepper.engine, assembly.parameters
    return assembly, RunCheckpoints(engine, config, run=run, collectives=ranks, parameters=parameters), found


def assert_same_content(first: Path, second: Path) -> None:
    """Weights, moments and numbers of updates of two checkpoints, bit for bit."""
    one, two = CheckpointContent(first), CheckpointContent(second)
    assert set(one.names) == set(two.names)
    for kind in (WEIGHT, *ADAM_MOMENTS):
        expected, found = dict(one.whole(kind)), dict(two.whole(kind))
        assert [name for name in expected if not np.array_equal(expected[name], found[name])] == []
    assert {name: one.updates(name) for name in one.names} == {name: two.updates(name) for name in one.names}
