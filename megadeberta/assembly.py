"""One rank's share of a run: the one place where model, layout and engine meet.

``train.py`` trains what is assembled here, and so do the tests that compare layouts.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import distributed, nn

from megadeberta.batch import batch_fields
from megadeberta.config.run import RunConfig
from megadeberta.convert.start import start_folder
from megadeberta.engine.build import build_engine, partitioner, working_type
from megadeberta.engine.collectives import TorchCollectives
from megadeberta.engine.fp32_products import set_tf32
from megadeberta.engine.mpu import ModelParallelUnit
from megadeberta.engine.pipeline import build_pipeline_engine
from megadeberta.engine.pipeline_step import PipelineStepper
from megadeberta.engine.state.local_parameters import LocalParameter, TensorSlice
from megadeberta.engine.state.place_tensors import place_tensors
from megadeberta.engine.step import Stepper
from megadeberta.engine.weight_average import keep_average
from megadeberta.engine.whole_step import WholeStepper
from megadeberta.layers.objectives import list_layers, updates_of
from megadeberta.layers.recipe import micro_batch_of, resolved
from megadeberta.layers.shapes import Shapes, parameter_shapes
from megadeberta.layers.stages import plan_stages, shared_parameters
from megadeberta.model.apex_switch import select_apex
from megadeberta.model.attention_backend import select_attention, select_recompute, select_residual_norm
from megadeberta.model.compiled_layers import select_compile
from megadeberta.model.dropout import set_sites
from megadeberta.model.initialize import fill_parameter, give_storage, mark_unset
from megadeberta.model.kernel_choice.cache import KernelCache
from megadeberta.model.kernel_choice.choose import AttentionChoice, choose_attention
from megadeberta.model.kernel_choice.facts import trial_facts
from megadeberta.model.kernel_choice.trial import RecipeTrial
from megadeberta.model.logit_kernels import select_logits
from megadeberta.model.whole import WholeModel
from megadeberta.ops.attention.backends import untested_triton
from megadeberta.parallel.groups import Groups, make_groups
from megadeberta.parallel.pipeline.packing import term_names
from megadeberta.parallel.pipeline.stage import Stage
from megadeberta.parallel.tensor.apply import TensorParallel, apply_tensor_parallel
from megadeberta.topology import Topology
from megadeberta.weights.initial import initial_values

Fill = Callable[[str, nn.Parameter], None]
"""Gives a parameter, or this rank's shard of it, its values, by its global name."""


logger = logging.getLogger(__name__)

_TRIAL_SECONDS = 300.0
"""After which a rank that tries kernels takes what it has: others wait for it."""


@dataclass(frozen=True)
class Assembly:
    """What a rank needs to train.

    parameters: what it holds of the model, as checkpoints describe it. attention: the implementations taken.
    """

    stepper: Stepper
    groups: Groups
    parameters: list[LocalParameter]
    attention: AttentionChoice

    @property
    def data_rank(self) -> int:
        """Which share of the batch this rank computes."""
        return self.groups.place.data

    @property
    def reads_data(self) -> bool:
        """Whether this rank is given batches: of a pipeline only the first stage is."""
        return self.groups.place.stage == 0


def assemble(
    config: RunConfig, topology: Topology, device: torch.device, *, loads_checkpoint: bool = False
) -> Assembly:
    """Groups, model, engine and stepper of this rank. Collective over the world.

    Args:
        loads_checkpoint: all weights will come from a checkpoint, so none is drawn, and no import is read.

    Raises:
        ConfigError, CheckpointError: the same on every rank.
    """
    config = resolved(config, topology)
    timeout = config.parallel.timeout_seconds
    for line in (set_tf32(config.training.tf32, device), untested_triton() if device.type == "cuda" else None):
        if line:
            logger.info("%s", line)
    groups = make_groups(topology, timeout_seconds=timeout)
    shapes = parameter_shapes(config.model, config.objective)
    fill = mark_unset if loads_checkpoint else _filler(config, shapes, device)
    build = _pipeline if topology.pipeline > 1 else _whole
    attention = _choose_attention(config, device)
    stepper = build(config, groups, fill, device, attention)
    parameters = _describe(stepper.engine.module, shapes, groups)
    place_tensors(
        stepper.engine,
        parameters,
        config.optimizer,
        place=groups.place,
        tensor=groups.tensor,
        data=groups.data,
        ranks=TorchCollectives(device),
    )
    if config.training.ema_decay is not None:
        keep_average(stepper.engine.basic_optimizer, config.training.ema_decay)
    return Assembly(stepper, groups, parameters, attention)


def _whole(
    config: RunConfig, groups: Groups, fill: Fill, device: torch.device, attention: AttentionChoice
) -> WholeStepper:
    """All layers in one module, sharded or not, under any ZeRO stage."""
    mpu = ModelParallelUnit(tensor=groups.tensor, data=groups.data) if groups.topology.tensor > 1 else None
    with torch.device("meta"):
        layers = list_layers(config.model, config.objective)
        model = WholeModel(layers, recompute=config.parallel.activation_checkpointing)
    partition = partitioner(config.deepspeed, mpu=mpu)

    def fill_and_partition(name: str, parameter: nn.Parameter) -> None:
        fill(name, parameter)
        partition(parameter)

    _make_real(model, config, groups, fill_and_partition, device, attention)
    engine = build_engine(
        model,
        config.optimizer,
        block=config.deepspeed,
        timeout_seconds=config.parallel.timeout_seconds,
        mpu=mpu,
    )
    return WholeStepper(
        engine,
        updates=updates_of(config),
        batch_fields=batch_fields(config.data, config.objective),
        settings=config.engine,
        topology=groups.topology,
        device=device,
        host_group=groups.host,
        skip_limit=config.numerics.skip_limit,
        batches=config.batches,
        mpu=mpu,
    )


def _pipeline(
    config: RunConfig, groups: Groups, fill: Fill, device: torch.device, attention: AttentionChoice
) -> PipelineStepper:
    """The layers of this rank's stage."""
    topology, fields = groups.topology, batch_fields(config.data, config.objective)
    layers = list_layers(config.model, config.objective)
    plans = plan_stages(layers, micro_batch_of(config), topology.pipeline)
    with torch.device("meta"):
        stage = Stage(
            plans,
            groups.place.stage,
            batch_fields=fields,
            recompute=config.parallel.activation_checkpointing,
        )
    _make_real(stage, config, groups, fill, device, attention)
    engine = build_pipeline_engine(
        stage,
        config.optimizer,
        topology=topology,
        shared=shared_parameters(plans),
        block=config.deepspeed,
        timeout_seconds=config.parallel.timeout_seconds,
    )
    return PipelineStepper(
        engine,
        updates=updates_of(config),
        batch_fields=fields,
        settings=config.engine,
        topology=topology,
        device=device,
        terms=term_names(layers),
        host_group=groups.host,
        skip_limit=config.numerics.skip_limit,
        batches=config.batches,
    )


def _make_real(
    model: nn.Module, config: RunConfig, groups: Groups, fill: Fill, device: torch.device, attention: AttentionChoice
) -> None:
    """From the meta device to this rank's shard with its values, on its device and in the type that it computes with.

    The master weights that DeepSpeed makes of them are those of the rounded values, whenever they are rounded.

    The order of the passes:

    1. Shards first: some modules are swapped for others, and what the later passes set on a module would go with it.
    2. The attention backend before the residual norm, which follows it unless the recipe says otherwise.
    3. Logits, recomputation and apex anywhere between: they touch nothing that another pass reads.
    4. Sites when all modules are there: each one that draws has a site of its own, by its global name.
    5. Compiled layers behind them, as their programs take the sites for inputs.
    6. Storage last: on the meta device the passes before it cost nothing, a shard is cut before there is memory for the
       whole, and under ZeRO-3 a parameter is partitioned as soon as it has its values and must stay from then on.
    """
    training, dtype = config.training, working_type(config.engine.precision)
    passes: tuple[Callable[[nn.Module], str | None], ...] = (
        partial(_shard, config=config, groups=groups),
        partial(select_attention, backend=attention.backend, device=device, rows=attention.rows_backend),
        partial(select_residual_norm, setting=training.residual_norm, device=device, attention=attention.backend),
        partial(
            select_logits,
            setting=training.logits,
            device=device,
            dtype=dtype,
            agree=partial(_largest, device),
        ),
        partial(select_recompute, selective=training.selective_recompute),
        partial(select_apex, switch=training.apex, device=device, agree=partial(_largest, device)),
        lambda module: set_sites(module.named_modules(), seed=training.seed),
        partial(select_compile, switch=training.compile, device=device, agree=partial(_largest, device)),
        partial(give_storage, fill=fill, device=device, dtype=dtype),
    )
    for run_pass in passes:
        line = run_pass(model)
        if line is not None:
            logger.info("%s", line)


def _shard(model: nn.Module, *, config: RunConfig, groups: Groups) -> None:
    """Swap the layers for this rank's shards of them, where ranks share tensors."""
    if groups.topology.tensor > 1:
        plan = TensorParallel(groups.tensor, config.model.vocab_size, config.parallel.sequence_parallel)
        apply_tensor_parallel(model, plan)


def _choose_attention(config: RunConfig, device: torch.device) -> AttentionChoice:
    dtype = working_type(config.engine.precision)
    patience = min(_TRIAL_SECONDS, config.parallel.timeout_seconds / 2)
    return choose_attention(
        config.training.attention,
        device.type,
        trial=RecipeTrial(config, dtype=dtype, device=device, patience=patience),
        facts=partial(trial_facts, config, dtype=dtype, device=device),
        cache=KernelCache.of(os.environ),
        ranks=TorchCollectives(device),
    )


def _largest(device: torch.device, number: float) -> float:
    """Of all ranks'. All-reduces over the world."""
    shared = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    return float(shared)


def _filler(config: RunConfig, shapes: Shapes, device: torch.device) -> Fill:
    """Initial values by parameter name, or those of an imported checkpoint. One broadcast for the latter."""
    training, std = config.training, config.model.initializer_range
    if training.init_from is not None:
        folder = start_folder(config, TorchCollectives(device))
        return initial_values(shapes, folder, tokenizer=config.data.tokenizer)
    return lambda name, parameter: fill_parameter(name, parameter, seed=training.seed, std=std)


def _describe(module: nn.Module, shapes: Shapes, groups: Groups) -> list[LocalParameter]:
    is_first_shard = groups.place.tensor == 0
    described = []
    for name, parameter in module.named_parameters():
        shard = getattr(parameter, "shard", None)
        is_copy = getattr(parameter, "ds_pipe_replicated", False)
        described.append(
            LocalParameter(
                name,
                parameter,
                tuple(shapes[name]),
                None if shard is None else TensorSlice(shard.dim, shard.start, shard.stop),
                is_owner=not is_copy and (shard is not None or is_first_shard),
            )
        )
    return described
