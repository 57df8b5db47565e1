"""Stopped and resumed = uninterrupted, bit for bit, for every ZeRO stage and precision; dropout on."""

from pathlib import Path

import pytest
import torch

from megadeberta.engine.state import save_load
from megadeberta.errors import CheckpointError, DivergenceError
from tests.distributed.full_weights import gather_weights
from tests.distributed.layouts import Layout, train_steps
from tests.distributed.resuming import start_run
from tests.ranks import run_ranks

STEPS, STOP = 8, 4
BF16 = (("bf16", {"enabled": True}),)


def _run(rank: int, world_size: int, folder: Path, layout: Layout, stops: list[int]) -> tuple[int, list, dict]:
    """Resume if there is something, save at each of ``stops``; (first step, losses, fp32 weights)."""
    assembly, checkpoints, found = start_run(layout, folder)
    first = checkpoints.resume(found)
    trace = []
    for stop in stops:
        trace += train_steps(assembly, layout, range(first + len(trace), stop))
        checkpoints.save(stop, required=True)
    weights = gather_weights(assembly.stepper.engine)
    return first, trace, {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


LAYOUTS = [
    Layout("v3", micro_batch=2),
    *(Layout("v3", data=2, zero=stage, micro_batch=2) for stage in (1, 2, 3)),
    *(Layout("v3", data=2, zero=stage, micro_batch=2, more=BF16) for stage in (1, 3)),
    # Its loss scale comes down while gradients overflow, and goes up again: both must survive.
    pytest.param(
        Layout("v3", zero=1, more=(("fp16", {"enabled": True, "initial_scale_power": 24, "loss_scale_window": 2}),)),
        marks=pytest.mark.campaign,
    ),
    Layout("rtd-gdes", data=2, zero=2, micro_batch=2),
    Layout("rtd-gdes-decoupled", data=2, zero=2, micro_batch=2),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, layout: Layout) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    _, expected, weights = run_ranks(_run, layout.data, whole, layout, [STEPS])[0]
    _, before, _ = run_ranks(_run, layout.data, parts, layout, [STOP])[0]
    first, after, resumed_weights = run_ranks(_run, layout.data, parts, layout, [STEPS])[0]
    assert first == STOP
    assert before + after == expected
    assert resumed_weights == weights


def _resume_only(rank: int, world_size: int, folder: Path, layout: Layout, changes: dict[str, object]) -> int:
    _, checkpoints, found = start_run(layout, folder, **changes)
    return checkpoints.resume(found)


def test_checkpoint_of_another_model_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    layout = Layout("v3", zero=1)
    run_ranks(_run, 1, tmp_path, layout, [2])
    with pytest.raises(
        CheckpointError, match=r"of another run: model.layer_norm_eps is '1e-05' here and '1e-07' there"
    ):
        run_ranks(_resume_only, 1, tmp_path, layout, {"layer_norm_eps": 1e-5})


def _poison(rank: int, world_size: int, folder: Path, layout: Layout) -> tuple[str, int, str]:
    """Save twice, then with a NaN in a weight of the last rank; resume where such a save went through."""
    assembly, checkpoints, _ = start_run(layout, folder)
    train_steps(assembly, layout, range(2))
    checkpoints.save(1, required=True)
    piece = checkpoints._state.owned()[-1]
    if rank == world_size - 1:
        checkpoints._state.tensor(piece, "weight")[-1] = torch.nan
        checkpoints._state.release(changed=True)
    try:
        checkpoints.save(2, required=True)
        refused = ""
    except DivergenceError as error:
        refused = str(error)
    with pytest.MonkeyPatch.context() as patch:  # as a version without the check saved it
        patch.setattr(save_load, "find_not_finite", lambda *_: "")
        checkpoints.save(2, required=True)
    _, other, found = start_run(layout, folder)
    return refused, other.resume(found), piece.local.name


@pytest.mark.parametrize("layout", [Layout("v3", micro_batch=2), Layout("v3", data=2, zero=1, micro_batch=2)], ids=str)
def test_a_weight_that_is_not_finite_is_never_saved_and_never_resumed_from(tmp_path: Path, layout: Layout) -> None:
    results = run_ranks(_poison, layout.data, tmp_path, layout)
    name = results[-1][2]
    for refused, step, _ in results:
        assert refused.startswith(f"step 2: {name} (weight) holds values that are not finite on rank {layout.data - 1}")
        assert step == 1
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["latest", "step-1", "step-2"]
