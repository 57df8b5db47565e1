"""Parameters of every stage and rank of a plan are those of the real model on torch's meta device."""

from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from megadeberta.config.load import load_run_config
from megadeberta.config.run import RunConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.model.whole import WholeModel
from megadeberta.parallel.pipeline.stage import Stage
from megadeberta.parallel.tensor.apply import TensorParallel, apply_tensor_parallel
from megadeberta.plan.stages import Recipe, local_shapes
from tests.ranks import run_ranks
from tests.unit.plan.small import layout

RECIPES = Path(__file__).parents[3] / "ds_configs"
FIELDS = ("input_ids", "attention_mask", "masked_positions", "masked_labels", "sample_numbers")
Shapes = dict[str, tuple[int, ...]]


def _shapes(module: torch.nn.Module) -> Shapes:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(("recipe", "stages"), [("deberta-v2-xxlarge", 8), ("deberta-v3-large", 4)])
def test_stages_hold_what_the_pipeline_builds(recipe: str, stages: int) -> None:
    config = load_run_config(RECIPES / f"{recipe}.json")
    plans = Recipe(config).stages(layout(pipeline=stages, zero_stage=1, micro_batch=4))
    for number, plan in enumerate(plans):
        with torch.device("meta"):
            built = Stage(plans, number, batch_fields=FIELDS)
        assert _shapes(built) == local_shapes(plan, tensor=1, rank=0)


def _sharded(rank: int, world_size: int, config: RunConfig, tensor: int) -> list[Shapes]:
    """Local shapes of each of ``tensor`` ranks; the collectives of the fake group do nothing."""
    found = []
    for each in range(tensor):
        distributed.init_process_group("fake", store=FakeStore(), rank=each, world_size=tensor)
        with torch.device("meta"):
            model = WholeModel(list_layers(config.model, config.objective))
        apply_tensor_parallel(model, TensorParallel(distributed.group.WORLD, config.model.vocab_size))
        found.append(_shapes(model))
        distributed.destroy_process_group()
    return found


@pytest.mark.parametrize(("recipe", "tensor"), [("deberta-v2-xxlarge", 8), ("deberta-v3-base", 3)])
def test_ranks_hold_what_tensor_parallelism_leaves_them(recipe: str, tensor: int) -> None:
    config = load_run_config(RECIPES / f"{recipe}.json")
    (plan,) = Recipe(config).stages(layout(tensor=tensor))
    (measured,) = run_ranks(_sharded, 1, config, tensor, distributed=False)
    assert measured == [local_shapes(plan, tensor=tensor, rank=rank) for rank in range(tensor)]
