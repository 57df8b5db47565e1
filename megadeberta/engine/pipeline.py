"""A pipeline stage becomes a DeepSpeed pipeline engine.

DeepSpeed moves the tensors, runs the schedule and reduces gradients; what it does not know is which parameters the
stages share by our names, and three of its assumptions do not hold here (see the private functions).
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.runtime.utils import combine_grad_norm_groups
from torch import Tensor, distributed, nn

from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.build import build_engine
from megadeberta.topology import Coordinates, Topology


class PipelinedModel(PipelineModule):
    """DeepSpeed's module around one stage, which all its work is left to.

    Parameter names are those of the stage, without a number in front. ``optimizer`` is DeepSpeed's, once it is there.
    """

    optimizer: Any = None

    def __init__(self, stage: nn.Module, *, topology: Topology, shared: Mapping[str, Sequence[int]]) -> None:
        """Makes process groups: collective over the world.

        Args:
            shared: parameters that several stages hold, by name, with these stages; the first is the owner.
        """
        # Before the parent's constructor, which asks for the groups of shared parameters.
        self._shared = dict(shared)
        self._ranks = topology
        self._place = topology.coordinates(distributed.get_rank())
        layers = [stage if number == self._place.stage else nn.Identity() for number in range(topology.pipeline)]
        axes = PipeModelDataParallelTopology(num_pp=topology.pipeline, num_mp=topology.tensor, num_dp=topology.data)
        with contextlib.redirect_stdout(None):  # it prints a table of its own layers
            super().__init__(layers, topology=axes, partition_method="uniform")

    @property
    def stage(self) -> nn.Module:
        return self.forward_funcs[0]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the stage, under the global names."""
        yield from self.stage.named_parameters(prefix, recurse, remove_duplicate)

    def _index_tied_modules(self) -> dict[str, dict[str, Any]]:
        """The shared parameters that this stage holds, with the ranks that hold the same shard of them."""
        groups = self._tie_groups()
        here = {name: stages for name, stages in self._shared.items() if self._place.stage in stages}
        comms = {}
        for name, stages in here.items():
            ranks, group = groups[tuple(stages)]
            parameter: Any = self.stage.get_parameter(name)
            # The gradient norm counts the owner's copy only.
            parameter.ds_pipe_replicated = self._place.stage != stages[0]
            comms[name] = {"ranks": ranks, "group": group, "module": nn.ParameterList([parameter])}
        return comms

    def _tie_groups(self) -> dict[tuple[int, ...], tuple[list[int], distributed.ProcessGroup]]:
        """This rank's group for each set of stages that share something; every rank takes part in making all."""
        groups = {}
        for stages in sorted({tuple(stages) for stages in self._shared.values()}):
            for data in range(self._ranks.data):
                for tensor in range(self._ranks.tensor):
                    ranks = [self._ranks.rank(Coordinates(stage, data, tensor)) for stage in stages]
                    group = distributed.new_group(ranks)
                    if self.global_rank in ranks:
                        groups[stages] = (ranks, group)
        return groups

    def _synchronize_tied_weights(self) -> None:
        """Nothing: every copy was filled under its global name, so all are equal."""

    def get_tied_weights_and_groups(self) -> list[tuple[SimpleNamespace, distributed.ProcessGroup]]:
        """What ``ReduceTiedGrads`` sums over the stages, before the data-parallel reduction.

        In place of parameters come objects with their gradients: DeepSpeed 0.19.8 looks in one attribute alone
        (``_exec_reduce_tied_grads``), and gradients that are accumulated in another precision are in another one.
        """
        pairs = []
        for comm in self.tied_comms.values():
            (parameter,) = comm["module"]
            gradient = _gradient_of(parameter, self.optimizer)
            pairs.append((SimpleNamespace(grad=gradient, _hp_grad=gradient), comm["group"]))
        return pairs


def _gradient_of(parameter: Any, optimizer: Any) -> Tensor:
    """What the optimizer is going to read as the gradient; zeros where no backward pass reached the parameter.

    A copy that its stage reads without gradient (the base of disentangled sharing) still has to be updated as the
    others are, so it takes part in the sum.
    """
    if isinstance(optimizer, BF16_Optimizer):
        for number, group in enumerate(optimizer.bf16_groups):
            for place, held in enumerate(group):
                if held is parameter and not optimizer.fp32_groups_has_gradients[number][place]:
                    parameter.grad = torch.zeros_like(parameter)
                    optimizer._update_hp_grad(parameter, number, place, clear_lp_grads=False)
        return parameter._hp_grad
    attribute = "grad_accum" if optimizer.use_grad_accum_attribute else "grad"
    if getattr(parameter, attribute) is None:
        dtype = optimizer.gradient_accumulation_dtype if optimizer.use_grad_accum_attribute else None
        setattr(parameter, attribute, torch.zeros_like(parameter, dtype=dtype))
    return getattr(parameter, attribute)


def build_pipeline_engine(
    stage: nn.Module,
    optimizer: OptimizerConfig,
    *,
    topology: Topology,
    shared: Mapping[str, Sequence[int]],
    block: Mapping[str, Any],
    timeout_seconds: float,
) -> PipelineEngine:
    """Wrap this rank's stage, which is initialised; collective over the world.

    Args:
        shared: parameters that several stages hold, by name, with these stages; the first is the owner.

    Raises:
        ConfigError: DeepSpeed refuses the block; the same on every rank.
    """
    model = PipelinedModel(stage, topology=topology, shared=shared)
    engine = build_engine(model, optimizer, block=block, timeout_seconds=timeout_seconds)
    model.optimizer = engine.optimizer
    engine._allocate_or_extend_buffers = functools.partial(_new_buffer, engine.device)
    if hasattr(engine.optimizer, "scaled_global_norm"):
        engine.optimizer.scaled_global_norm = functools.partial(_norm_of_all_groups, engine.optimizer)
    return engine


def _new_buffer(device: torch.device, _index: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A buffer for one received tensor.

    DeepSpeed 0.19.8 shares one buffer between the activations and the gradients of the same index without regard to
    their types (``_allocate_or_extend_buffers``), and the second tensor of one border may be ids and of the next a
    loss. Shapes are announced once a step, so this allocates once a step too.
    """
    return torch.empty(list(shape), dtype=dtype, device=device)


def _norm_of_all_groups(optimizer: deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer) -> Tensor:
    """The gradient norm with one reduction over stages and tensor shards.

    DeepSpeed 0.19.8 makes one for each parameter group (``scaled_global_norm``); stages with generator and
    discriminator have more groups than those with one of them, and would wait for each other forever.
    """
    if optimizer.cpu_offload:
        parameters = [parameter for group in optimizer.params_in_partition for parameter in group]
        return combine_grad_norm_groups([optimizer.complete_grad_norm_calculation_for_cpu_offload(parameters)])
    gradients, parameters = [], []
    for number, group in enumerate(optimizer.params_in_partition):
        pieces = [piece for piece in optimizer.averaged_gradients[number] if not getattr(piece, "_zero_padding", False)]
        gradients += pieces[: len(group)]  # a rank without a share of the group has one piece of zeros
        parameters += group
    return combine_grad_norm_groups([optimizer.get_grad_norm_direct(gradients, parameters)])
