"""Memory of one rank: parameters, gradients and optimizer states by ZeRO stage, activations, logits and buffers.

The one memory model of the project: `megadeberta plan` and `train --dry-run` both use it. docs/plan.md has the formulas
and what they were measured against. Left out: what CUDA, NCCL and the allocator take (``plan --reserve``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig, part_of
from megadeberta.config.run import RunConfig
from megadeberta.layers import kept as activations
from megadeberta.layers.kept import Attention, Work
from megadeberta.layers.stages import StagePlan
from megadeberta.plan.layout import Layout
from megadeberta.plan.stages import Recipe
from megadeberta.plan.zero import zero_memory

_KEPT = {
    "embeddings": activations.embeddings_kept,
    "relative": activations.relative_kept,
    "mask_decoder": activations.mask_decoder_kept,
    "mlm_head": activations.mlm_head_kept,
    "rtd_head": activations.rtd_head_kept,
}


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank at the fullest moment of a step.

    activations: kept for the backward pass, of all micro batches in flight. logits: of the decoder over the vocabulary.
    buffers: of communication. workspace: of the layer that is running. on_host: optimizer states in the host's memory.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    workspace: int
    on_host: int

    @property
    def device(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self)) - self.on_host


@dataclass(frozen=True)
class ForwardMemory:
    """Bytes of one micro batch: kept activations, kept and momentary logits, what the running layer needs besides."""

    kept: int
    kept_logits: int
    peak_logits: int
    workspace: int


def memory_of_stages(recipe: Recipe, layout: Layout, attention: Attention) -> list[RankMemory]:
    """The fullest rank of every pipeline stage."""
    work = work_of(recipe.config, layout, attention)
    return [_stage_memory(recipe, layout, number, work=work) for number in range(layout.pipeline)]


def fullest(memories: Sequence[RankMemory]) -> RankMemory:
    """The rank that decides whether a layout fits."""
    return max(memories, key=lambda memory: memory.device)


def targets_of(objective: ObjectiveConfig, length: int) -> int:
    """Slots of a sequence that are predicted, the empty ones included."""
    share = {"ar": 1.0, "mlm_ar": 1.0}.get(objective.name, objective.mask_rate)
    return math.ceil(share * length)


def work_of(config: RunConfig, layout: Layout, attention: Attention) -> Work:
    """One micro batch on one rank."""
    length = config.data.sequence_length
    return Work(
        sequences=layout.micro_batch,
        length=length,
        targets=targets_of(config.objective, length),
        precision=config.engine.precision,
        attention=attention,
        tensor=layout.tensor,
        sequence_parallel=layout.sequence_parallel,
        selective_recompute=config.training.selective_recompute,
    )


def _stage_memory(recipe: Recipe, layout: Layout, number: int, *, work: Work) -> RankMemory:
    settings, stage = recipe.config.engine, recipe.stages(layout)[number]
    held = recipe.held(stage, layout.tensor)
    states = zero_memory(
        held.count,
        settings=settings,
        stage=layout.zero_stage,
        data_parallel=layout.data,
        largest_parameter=held.largest,
    )
    forward = forward_memory(recipe, stage, work, recompute=layout.activation_checkpointing)
    in_flight = layout.in_flight(number)
    kept = forward.kept * in_flight
    logits = max(forward.kept_logits * in_flight, forward.peak_logits)
    # The update needs fp32 gradients, but no activations any more.
    passing = _passing(recipe.config.model, layout, number, work)
    buffers = max(states.bucket + states.momentary + passing, states.update - kept - logits - forward.workspace)
    kept_on = settings.optimizer_device
    return RankMemory(
        parameters=states.parameters,
        gradients=states.gradients,
        optimizer=states.optimizer if kept_on == "none" else 0,
        activations=kept,
        logits=logits,
        buffers=buffers,
        workspace=forward.workspace,
        on_host=states.optimizer if kept_on == "cpu" else 0,
    )


def forward_memory(recipe: Recipe, stage: StagePlan, work: Work, *, recompute: bool) -> ForwardMemory:
    """Of one micro batch in the layers of one stage.

    recompute: activation checkpointing, which keeps only the input of every encoder layer.
    """
    kept: dict[str, int] = {}  # by part of the model
    sizes: dict[tuple[str, str], int] = {}
    errors = peak = recomputed = 0
    for layer in stage.names:
        part, model = part_of(layer), recipe.model_of(layer)
        kind = _kind(layer, model)
        if (part, kind) not in sizes:
            sizes[part, kind] = kept_by_layer(kind, model, work)
        stays = whole = sizes[part, kind]
        if recompute and kind in ("layer", "first layer", "mask_decoder"):
            stays = work.own_tokens * model.hidden_size * work.width
            recomputed = max(recomputed, whole - stays)
        if recompute and kind == "relative" and model.hidden_dropout_prob:
            # Every checkpoint holds the table before its dropout.
            stays += activations.relative_rows(model, work.length) * model.hidden_size * work.width
        kept[part] = kept.get(part, 0) + stays
        if kind == "mlm_head":
            errors += activations.logits_kept(model, work)
            peak = activations.logits_peak(model, work, sampled=part == GENERATOR)
    objective = recipe.config.objective
    is_decoupled = objective.name == "rtd" and objective.rtd.decoupled
    total = max(kept.values()) if is_decoupled else sum(kept.values())
    # A generator's logits are gone when its discriminator has kept its own activations.
    later = 0 if is_decoupled else kept.get(DISCRIMINATOR, 0)
    workspace = recomputed + activations.workspace(recipe.config.model, work)
    return ForwardMemory(total, errors, max(0, peak - later), workspace)


def kept_by_layer(kind: str, model: ModelConfig, work: Work) -> int:
    """Bytes that a layer of this kind keeps for one micro batch, without logits."""
    if kind == "sample":
        return 0
    if kind in _KEPT:
        return _KEPT[kind](model, work)
    return activations.layer_kept(model, work, convolution=kind == "first layer")


def _kind(layer: str, model: ModelConfig) -> str:
    name = layer.removeprefix(f"{part_of(layer)}.")
    if not name.startswith("layer."):
        return name
    return "first layer" if name == "layer.0" and model.conv_kernel_size else "layer"


def _passing(model: ModelConfig, layout: Layout, number: int, work: Work) -> int:
    """Hidden states on their way to the next stage, and a gradient on its way back."""
    if layout.pipeline == 1:
        return 0
    hidden = work.own_tokens * model.hidden_size * work.width
    is_last = number == layout.pipeline - 1
    return hidden * (1 + (0 if is_last else layout.in_flight(number)))
