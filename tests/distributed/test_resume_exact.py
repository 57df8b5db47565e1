"""Stopped and resumed = uninterrupted, bit for bit, for every ZeRO stage and precision; dropout on."""

from pathlib import Path

import pytest
import torch

from megadeberta.config.load import parse_run_config
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.run import RunConfig
from megadeberta.engine.collectives import TorchCollectives
from megadeberta.engine.state.local_parameters import whole_parameters
from megadeberta.engine.state.run_checkpoints import RunCheckpoints
from megadeberta.errors import CheckpointError
from tests.distributed.full_weights import gather_weights
from tests.distributed.toy_run import CONFIG, global_batch, share_of, toy_block, toy_engine
from tests.ranks import run_ranks

STEPS, STOP = 8, 4
PRECISIONS = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}}


def _recipe(folder: str, block: dict[str, object], **model: object) -> RunConfig:
    tokenizer = Path(folder) / "spm.model"
    tokenizer.write_bytes(b"the engine copies it, nothing reads it")
    recipe = {
        "name": "toy",
        "model": CONFIG.model_dump() | model,
        "data": {"train": "none", "tokenizer": str(tokenizer), "sequence_length": 24},
        "optimizer": {"lr": 3e-3},
        "training": {"steps": STEPS, "output_dir": f"{folder}/run"},
        "deepspeed": block,
    }
    return parse_run_config(recipe, source="toy")


def _run(
    rank: int,
    world_size: int,
    folder: str,
    block: dict[str, object],
    stop: int,
    objective: ObjectiveConfig = ObjectiveConfig(),
) -> tuple[int, list, dict]:
    """Resume if there is something, run to ``stop``, save; (first step, losses, fp32 weights)."""
    stepper, _ = toy_engine(block, dropout=0.1, objective=objective)
    config = _recipe(folder, block)
    checkpoints = RunCheckpoints(
        stepper.engine,
        config,
        data_fingerprint={"shard": "toy"},
        collectives=TorchCollectives(torch.device("cpu")),
        parameters=whole_parameters(stepper.engine.module.named_parameters()),
    )
    first = checkpoints.resume()
    trace = []
    for step in range(first, stop):
        share = share_of(global_batch(step), rank=rank, world_size=world_size, micro_batch=2)
        targets, _ = stepper.share_counts(share, stop_requested=False)
        result = stepper.train_step(share, step=step, targets=targets, lr=3e-3)
        trace.append((result.loss, result.grad_norm))
    checkpoints.save(stop, required=True)
    weights = gather_weights(stepper.engine)
    return first, trace, {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


CASES = [(1, 0, "fp32"), (2, 1, "fp32"), (2, 2, "fp32"), (2, 3, "fp32"), (2, 1, "bf16"), (2, 3, "bf16")]


@pytest.mark.parametrize(("ranks", "stage", "precision"), CASES)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, ranks: int, stage: int, precision: str) -> None:
    block = toy_block(zero_stage=stage, micro_batch=2, **PRECISIONS[precision])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    _, expected, weights = run_ranks(_run, ranks, str(whole), block, STEPS)[0]
    _, before, _ = run_ranks(_run, ranks, str(parts), block, STOP)[0]
    first, after, resumed_weights = run_ranks(_run, ranks, str(parts), block, STEPS)[0]
    assert first == STOP
    assert before + after == expected
    assert resumed_weights == weights


@pytest.mark.parametrize("decoupled", [False, True])
def test_resumed_replaced_token_detection_equals_the_uninterrupted_one(tmp_path: Path, decoupled: bool) -> None:
    objective = ObjectiveConfig(name="rtd", rtd={"decoupled": decoupled, "generator_layers": 2})
    block = toy_block(zero_stage=2, micro_batch=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    _, expected, weights = run_ranks(_run, 2, str(whole), block, STEPS, objective)[0]
    _, before, _ = run_ranks(_run, 2, str(parts), block, STOP, objective)[0]
    first, after, resumed_weights = run_ranks(_run, 2, str(parts), block, STEPS, objective)[0]
    assert first == STOP
    assert before + after == expected
    assert resumed_weights == weights


def _resume_only(rank: int, world_size: int, folder: str, block: dict[str, object], changes: dict) -> int:
    stepper, _ = toy_engine(block)
    config = _recipe(folder, block, **changes)
    collectives = TorchCollectives(torch.device("cpu"))
    return RunCheckpoints(
        stepper.engine,
        config,
        data_fingerprint={"shard": "toy"},
        collectives=collectives,
        parameters=whole_parameters(stepper.engine.module.named_parameters()),
    ).resume()


def test_checkpoint_of_another_model_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    block = toy_block(zero_stage=1, micro_batch=2)
    run_ranks(_run, 1, str(tmp_path), block, 2)
    with pytest.raises(
        CheckpointError, match=r"of another run: model.layer_norm_eps is '1e-05' here and '1e-07' there"
    ):
        run_ranks(_resume_only, 1, str(tmp_path), block, {"layer_norm_eps": 1e-5})
