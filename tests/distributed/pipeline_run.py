"""The toy run of ``toy_run.py`` through a pipeline, and its single process, for tests that compare the two."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.parameters import parameter_shapes
from megadeberta.engine.build import build_engine
from megadeberta.engine.phases import Batch, training_phases
from megadeberta.engine.pipeline import build_pipeline_engine
from megadeberta.engine.pipeline_step import PipelineStepper
from megadeberta.engine.process_group import start_process_group
from megadeberta.engine.step import EvalResult, Stepper
from megadeberta.model.dropout import set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel, build_specs
from megadeberta.parallel.pipeline.balance import plan_stages, shared_parameters
from megadeberta.parallel.pipeline.costs import list_layers
from megadeberta.parallel.pipeline.packing import term_names
from megadeberta.parallel.pipeline.stage import Stage
from megadeberta.topology import Topology
from tests.distributed.toy_run import CONFIG, GLOBAL_BATCH, LENGTH, OPTIMIZER, global_batch, share_of, toy_block

SEED = 5
V1 = {
    "position_biased_input": True,
    "enhanced_mask_decoder": False,
    "type_vocab_size": 2,
    "key_bias": False,
    "share_att_key": False,
    "position_buckets": -1,
    "norm_rel_ebd": "none",
}
RTD = {"name": "rtd", "rtd": {"loss_weight": 10.0, "generator_layers": 2}}


@dataclass(frozen=True)
class Case:
    """What is trained, whatever the layout."""

    model: dict[str, object]
    objective: dict[str, object]
    dropout: float = 0.1
    packed: bool = False
    steps: int = 20

    @property
    def config(self) -> ModelConfig:
        dropout = {"hidden_dropout_prob": self.dropout, "attention_probs_dropout_prob": self.dropout}
        return ModelConfig.model_validate(CONFIG.model_dump() | dropout | self.model)

    @property
    def goal(self) -> ObjectiveConfig:
        return ObjectiveConfig.model_validate(self.objective)

    def batch(self, step: int) -> Batch:
        batch = global_batch(step)
        if self.objective.get("name") == "mlm_ar":
            batch["prefix_lengths"] = torch.tensor([LENGTH, 0, 3, LENGTH] * (GLOBAL_BATCH // 4))
        if self.packed:
            batch["document_starts"] = torch.where(torch.arange(LENGTH) < 9, 0, 9).repeat(GLOBAL_BATCH, 1)
        return batch


@dataclass(frozen=True)
class Layout:
    """How the ranks share the work."""

    pipeline: int = 1
    tensor: int = 1
    micro_batch: int = 1
    recompute: bool = False
    block: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What must be equal: loss and gradient norm of every step, validation, and the weights that this rank holds."""

    steps: list[tuple[float, float]]
    validation: dict[str, tuple[float, int]]
    weights: dict[str, NDArray[np.float32]]


def run_case(rank: int, world_size: int, case: Case, layout: Layout) -> Outcome:
    """Train ``case`` under ``layout``; the data-parallel degree is what is left of ``world_size``."""
    topology = Topology.of_world(world_size, pipeline=layout.pipeline, tensor=layout.tensor)
    place = topology.coordinates(rank)
    block = toy_block(zero_stage=1, micro_batch=layout.micro_batch, **dict(layout.block))
    stepper, model = (
        _pipeline(case, layout, topology, place.stage, block) if layout.pipeline > 1 else _whole(case, block)
    )
    reads = place.stage == 0
    steps = []
    for step in range(case.steps):
        share = _share(case.batch(step), place.data, topology.data, layout.micro_batch) if reads else []
        targets, stop = stepper.share_counts(share, stop_requested=False)
        assert not stop
        result = stepper.train_step(share, step=step, targets=targets, lr=OPTIMIZER.lr)
        assert result.applied
        steps.append((result.loss, result.grad_norm))
    validation = stepper.evaluate(_held_out(case) if reads and place.data == 0 else [])
    weights = {name: parameter.detach().float().numpy().copy() for name, parameter in model.named_parameters()}
    return Outcome(steps, _terms(validation), weights)


def _whole(case: Case, block: dict[str, object]) -> tuple[Stepper, torch.nn.Module]:
    device = start_process_group(60.0)
    model = _filled(WholeModel(build_specs(case.config, case.goal)), case)
    engine = build_engine(model, OPTIMIZER, block=block, timeout_seconds=60.0)
    return Stepper(engine, phases=training_phases(case.goal), device=device), model


def _pipeline(
    case: Case, layout: Layout, topology: Topology, stage: int, block: dict[str, object]
) -> tuple[PipelineStepper, torch.nn.Module]:
    device = start_process_group(60.0)
    fields = list(case.batch(0))
    layers = list_layers(case.config, case.goal, sequence_length=LENGTH, micro_batch=layout.micro_batch)
    plans = plan_stages(layers, parameter_shapes(case.config, case.goal), topology.pipeline)
    specs = build_specs(case.config, case.goal)
    model = _filled(Stage(specs, plans, stage, batch_fields=fields, recompute=layout.recompute), case)
    engine = build_pipeline_engine(
        model, OPTIMIZER, topology=topology, shared=shared_parameters(plans), block=block, timeout_seconds=60.0
    )
    stepper = PipelineStepper(
        engine,
        phases=training_phases(case.goal),
        device=device,
        topology=topology,
        batch_fields=fields,
        terms=term_names([layer.name for layer in layers], fields),
    )
    return stepper, model


def _filled(model: torch.nn.Module, case: Case) -> torch.nn.Module:
    initialize(model, seed=SEED, std=case.config.initializer_range)
    set_sites(model.named_modules(), seed=SEED)
    return model


def _share(batch: Batch, data: int, degree: int, micro_batch: int) -> list[Batch]:
    """Micro batches with no more slots than they need, as the loader makes them."""
    parts = share_of(batch, rank=data, world_size=degree, micro_batch=micro_batch)
    for part in parts:
        used = max(1, int((part["masked_labels"] != 0).sum(1).max()))
        part |= {name: part[name][:, :used] for name in ("masked_positions", "masked_labels")}
    return parts


def _held_out(case: Case) -> list[Batch]:
    """Batches of five, five and three sequences."""
    parts = [case.batch(10_000), {name: tensor[:5] for name, tensor in case.batch(10_001).items()}]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return [{name: tensor[start : start + 5] for name, tensor in joined.items()} for start in (0, 5, 10)]


def _terms(result: EvalResult) -> dict[str, tuple[float, int]]:
    return {name: (total, result.terms.counts[name]) for name, total in result.terms.sums.items()}
