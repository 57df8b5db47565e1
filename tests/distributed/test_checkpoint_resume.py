"""Save and load through DeepSpeed: bit-exact on every ZeRO stage and precision, refused where it must be."""

from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from megadeberta.checkpoint import find_resumable, verify_checkpoint
from megadeberta.checkpoint.stages import save_at_once
from megadeberta.engine.optimizer import STATE_FORMATS, StateFormat
from megadeberta.engine.state.save_load import load_checkpoint, save_stages
from tests.distributed.checkpoint_toy import build_engine, collectives, open_store, run_record, state_of, train
from tests.ranks import run_ranks


def _train_save_train(rank: int, world_size: int, root: str, zero_stage: int, precision: str) -> tuple[str, list[str]]:
    engine = build_engine(zero_stage, precision)
    train(engine, 3)
    run = run_record(world_size, zero_stage, precision)
    folder = save_at_once(
        save_stages(state_of(engine), open_store(root), 3, run=run, collectives=collectives(), required=True)
    )
    return str(folder), train(engine, 4)


def _resume_train(rank: int, world_size: int, root: str, zero_stage: int, precision: str) -> list[str]:
    engine = build_engine(zero_stage, precision, seed=99)
    run = run_record(world_size, zero_stage, precision)
    point = find_resumable(Path(root), collectives=collectives(), run=run)
    assert point is not None
    assert point.step == 3
    load_checkpoint(state_of(engine), point, collectives=collectives())
    assert engine.global_steps == 3
    return train(engine, 4)


@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [(0, "fp32"), (0, "bf16"), (0, "fp16"), (1, "fp16"), (2, "bf16"), (3, "fp32"), (3, "fp16")],
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, zero_stage: int, precision: str
) -> None:
    saved = run_ranks(_train_save_train, 2, str(tmp_path), zero_stage, precision)
    resumed = run_ranks(_resume_train, 2, str(tmp_path), zero_stage, precision)
    for rank in range(2):
        assert resumed[rank] == saved[rank][1]
    folder = Path(saved[0][0])
    manifest = verify_checkpoint(folder)
    assert {part.rank for record in manifest.files.values() for part in record.parts} == {0, 1}
    assert {path.name for path in folder.iterdir()} == {"node-0.safetensors", "index.json", "manifest.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-3"]
    assert not [path for path in folder.iterdir() if path.stat().st_mode & 0o111]


def _resume_rmsprop(rank: int, world_size: int, root: str, zero_stage: int) -> tuple[list[str], list[str], list[str]]:
    """Four steps after a save, the same four from the checkpoint, and the states in it."""
    STATE_FORMATS[torch.optim.RMSprop] = StateFormat(("square_avg",))
    run = run_record(world_size, zero_stage)
    engine = build_engine(zero_stage, optimizer=torch.optim.RMSprop)
    train(engine, 3)
    folder = save_at_once(
        save_stages(state_of(engine), open_store(root), 3, run=run, collectives=collectives(), required=True)
    )
    assert folder is not None
    other = build_engine(zero_stage, seed=99, optimizer=torch.optim.RMSprop)
    point = find_resumable(Path(root), collectives=collectives(), run=run)
    assert point is not None
    load_checkpoint(state_of(other), point, collectives=collectives())
    tensors = load_file(folder / "node-0.safetensors")
    states = {key.split("/")[1] for key in tensors if not key.endswith("/record")}
    return train(engine, 4), train(other, 4), sorted(states)


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_an_optimizer_with_one_moment_needs_nothing_but_its_line_of_the_table(tmp_path: Path, zero_stage: int) -> None:
    for uninterrupted, resumed, states in run_ranks(_resume_rmsprop, 2, str(tmp_path), zero_stage):
        assert resumed == uninterrupted
        assert states == ["square_avg", "weight"]
