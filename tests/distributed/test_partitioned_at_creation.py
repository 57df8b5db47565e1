"""Under ZeRO stage 3 with tensor parallelism no rank ever holds more than one shard of one parameter undivided."""

import torch
from torch import nn

from megadeberta.engine.build import partitioner
from megadeberta.engine.mpu import ModelParallelUnit
from megadeberta.engine.process_group import start_process_group
from megadeberta.layers.cuts import how_cut
from megadeberta.layers.objectives import list_layers
from megadeberta.model.initialize import fill_parameter, give_storage
from megadeberta.model.whole import WholeModel
from megadeberta.parallel.groups import make_groups
from megadeberta.parallel.tensor.apply import TensorParallel, apply_tensor_parallel
from tests.distributed.layouts import SEED, Layout
from tests.ranks import run_ranks

LAYOUT = Layout("rtd-gdes", tensor=2, data=2, zero=3, micro_batch=1)


def _check_born(rank: int, world_size: int) -> None:
    start_process_group(60.0)
    groups = make_groups(LAYOUT.topology, timeout_seconds=60.0)
    config, objective = LAYOUT.configs
    mpu = ModelParallelUnit(tensor=groups.tensor, data=groups.data)
    with torch.device("meta"):
        model = WholeModel(list_layers(config, objective))
    whole = {name: parameter.numel() for name, parameter in model.named_parameters()}
    apply_tensor_parallel(model, TensorParallel(groups.tensor, config.vocab_size))
    divide = partitioner(LAYOUT.block | {"bf16": {"enabled": True}}, mpu=mpu)
    made: list[nn.Parameter] = []

    def fill(name: str, parameter: nn.Parameter) -> None:
        if how_cut(name) is not None:
            assert parameter.numel() < 0.6 * whole[name]
        fill_parameter(name, parameter, seed=SEED, std=config.initializer_range)
        size = parameter.numel()
        divide(parameter)
        made.append(parameter)
        assert all(earlier.numel() == 0 for earlier in made)
        assert parameter.ds_tensor.numel() == -(-size // LAYOUT.data)
        assert parameter.ds_tensor.dtype == torch.bfloat16
        assert getattr(parameter, "tensor_model_parallel", False) == (how_cut(name) is not None)

    give_storage(model, fill)
    assert len(made) == len(list(model.parameters())) > 50


def test_a_divided_model_is_never_whole_in_one_rank() -> None:
    run_ranks(_check_born, LAYOUT.topology.world_size)
