"""Memory of whole layouts: ZeRO stages, offload, stages of a pipeline, shards, checkpointing."""

import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.config.load import load_run_config
from megadeberta.config.run import RunConfig
from megadeberta.layers.objectives import objective_of
from megadeberta.layers.optimizer_rules import rule_of
from megadeberta.layers.shapes import count_parameters
from megadeberta.plan.layout import Layout
from megadeberta.plan.memory import RankMemory, checkpoint_copy_bytes, forward_memory, fullest, memory_of_stages
from megadeberta.plan.stages import Recipe
from tests.models import run_config
from tests.unit.plan.small import layout

RECIPES = Path(__file__).parents[3] / "ds_configs"


def _xlarge(**zero: Any) -> RunConfig:
    return load_run_config(RECIPES / "deberta-v2-xlarge.json").with_deepspeed({"zero_optimization": zero})


def _memory(config: RunConfig, wanted: Layout) -> RankMemory:
    return fullest(memory_of_stages(Recipe(config), wanted, "triton"))


def test_memory_falls_with_the_zero_stage_and_the_optimizer_moves_to_the_host() -> None:
    config = _xlarge()
    stages = [_memory(config, layout(data=8, zero_stage=stage, micro_batch=8)) for stage in range(4)]
    offloading = _xlarge(offload_optimizer={"device": "cpu"})
    on_host = _memory(offloading, layout(data=8, zero_stage=2, micro_batch=8))
    count = sum(count_parameters(config.model, config.objective).values())
    share = -(-count // 8)
    assert [memory.parameters for memory in stages] == [2 * count] * 3 + [2 * share]
    # Added up in fp32, except without ZeRO.
    assert [memory.gradients for memory in stages] == [2 * count, 4 * count, 4 * share, 4 * share]
    assert [memory.optimizer for memory in stages] == [12 * count] + [12 * share] * 3
    assert (on_host.optimizer, on_host.on_host) == (0, 12 * share)


def test_muon_keeps_one_moment_of_matrices() -> None:
    config, wanted = _xlarge(), layout(data=8, zero_stage=1, micro_batch=8)
    muon = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"name": "muon"})})
    shapes = Recipe(config).shapes
    matrices = sum(math.prod(shape) for name, shape in shapes.items() if rule_of(name, "muon") == "muon")
    saved = _memory(config, wanted).optimizer - _memory(muon, wanted).optimizer
    assert saved == pytest.approx(4 * matrices / 8, rel=1e-6)


def test_a_copy_for_checkpoints_has_weights_and_moments_of_a_rank_s_share_and_is_shown() -> None:
    config = _xlarge()
    count = sum(count_parameters(config.model, config.objective).values())
    wanted = layout(data=8, zero_stage=1, micro_batch=8)
    assert checkpoint_copy_bytes(Recipe(config), wanted) == 0
    keep = config.checkpoint.model_copy(update={"asynchronous": True})
    recipe = Recipe(config.model_copy(update={"checkpoint": keep}))
    assert checkpoint_copy_bytes(recipe, wanted) == 12 * -(-count // 8)
    halved = checkpoint_copy_bytes(recipe, layout(pipeline=2, data=4, zero_stage=1, micro_batch=8))
    assert 12 * count / 8 < halved < 12 * count / 6  # the fuller stage
    arguments = ["train", str(RECIPES / "deberta-v2-xlarge.json"), "--dry-run", "--ranks", "8"]
    arguments += ["--set", "checkpoint.asynchronous=true"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "1.24 GiB to copy asynchronous checkpoints in host memory" in " ".join(done.output.split())


def test_a_stage_holds_as_many_micro_batches_as_are_in_flight() -> None:
    """1F1B: the first of four stages has four of them, the last one; fewer if the step has fewer."""
    config = _xlarge()
    for accumulation, in_flight in ((16, [4, 3, 2, 1]), (2, [2, 2, 2, 1])):
        cut = layout(pipeline=4, zero_stage=1, micro_batch=2, accumulation=accumulation)
        recipe = Recipe(config)
        batch = cut.micro_batch_of(config, attention="triton")
        updates = objective_of(config.objective).updates(config.objective)
        for stage, memory, number in zip(
            recipe.stages(cut), memory_of_stages(recipe, cut, "triton"), in_flight, strict=True
        ):
            assert memory.activations == number * forward_memory(stage, batch, updates=updates).kept


@pytest.mark.parametrize("objective", ["mlm", "rtd"])
def test_tensor_parallel_ranks_together_hold_one_model_and_copies_of_what_is_whole(objective: str) -> None:
    config = run_config(objective={"name": objective}, model={"num_hidden_layers": 4})
    count = sum(count_parameters(config.model, config.objective).values())
    whole, half = (_memory(config, layout(tensor=tensor, zero_stage=1)) for tensor in (1, 2))
    assert whole.parameters == 4 * count
    assert count / 2 < half.parameters / 4 < 0.6 * count
    assert half.activations < whole.activations


def test_sequence_parallelism_and_checkpointing_keep_less() -> None:
    config = _xlarge()
    plain, shared, recomputed = (
        _memory(config, layout(tensor=4, zero_stage=1, micro_batch=8, **options))
        for options in ({}, {"sequence_parallel": True}, {"activation_checkpointing": True})
    )
    assert shared.activations < 0.6 * plain.activations
    # One vector a token and layer instead of about ten; all else only for the layer that runs again.
    assert recomputed.activations < 0.3 * plain.activations
    assert recomputed.workspace > plain.workspace
    assert recomputed.device < plain.device


def test_stages_of_the_1_5_billion_model_add_up_to_it() -> None:
    config = load_run_config(RECIPES / "deberta-v2-xxlarge.json")
    stages = Recipe(config).stages(layout(pipeline=8, zero_stage=1, micro_batch=8))
    held = [(name, shape) for stage in stages for name, shape in stage.parameters.items() if name not in stage.copies]
    assert sum(math.prod(shape) for _, shape in held) == 1_567_828_068
    copied = {name for stage in stages for name in stage.copies}
    assert copied == {
        "embeddings.word_embeddings.weight",
        "relative.embedding.weight",
        "relative.layer_norm.weight",
        "relative.layer_norm.bias",
    }
    assert stages[-1].names[-2:] == ("mask_decoder", "mlm_head")
