"""Memory of one rank: parameters, gradients and optimizer states by ZeRO stage, activations, logits and buffers.

The one memory model of the project: `megadeberta plan` and `train --dry-run` both use it. docs/plan.md has the formulas
and what they were measured against. Left out: what CUDA, NCCL and the allocator take (``plan --reserve``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from megadeberta.config.model import ModelConfig
from megadeberta.layers.kept import workspace
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.objectives import Update, objective_of
from megadeberta.layers.stages import StagePlan
from megadeberta.plan.layout import Layout
from megadeberta.plan.stages import Held, Recipe
from megadeberta.plan.zero import FP32_BYTES, zero_memory


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
        """Bytes on the device: all but what is on the host."""
        return sum(getattr(self, field.name) for field in fields(self)) - self.on_host


@dataclass(frozen=True)
class ForwardMemory:
    """Bytes of one micro batch: kept activations, kept and momentary logits, what the running layer needs besides."""

    kept: int
    kept_logits: int
    peak_logits: int
    workspace: int


def memory_of_stages(recipe: Recipe, layout: Layout, attention: str) -> list[RankMemory]:
    """The fullest rank of every pipeline stage."""
    batch = layout.micro_batch_of(recipe.config, attention=attention)
    return [_stage_memory(recipe, layout, number, batch=batch) for number in range(layout.pipeline)]


def fullest(memories: Sequence[RankMemory]) -> RankMemory:
    """The rank that decides whether a layout fits."""
    return max(memories, key=lambda memory: memory.device)


def checkpoint_copy_bytes(recipe: Recipe, layout: Layout) -> int:
    """Host memory of the rank that needs most of it for checkpoints that are written beside training: fp32 weights and
    moments of what the rank writes, its data-parallel share under every ZeRO stage. 0 where they are written at once.
    """
    if not recipe.config.checkpoint.asynchronous:
        return 0
    held = [recipe.held(stage, layout.tensor) for stage in recipe.stages(layout)]
    return max(round(-(-each.count // layout.data) * (1 + each.moments)) * FP32_BYTES for each in held)


def _stage_memory(recipe: Recipe, layout: Layout, number: int, *, batch: MicroBatch) -> RankMemory:
    settings, stage = recipe.settings(layout), recipe.stages(layout)[number]
    held = recipe.held(stage, layout.tensor)
    states = zero_memory(
        held.count,
        settings=settings,
        num_moments=held.moments,
        data_parallel=layout.data,
        largest_parameter=held.largest,
        is_pipelined=layout.pipeline > 1,
    )
    objective = recipe.config.objective
    forward = forward_memory(stage, batch, updates=objective_of(objective).updates(objective))
    in_flight = layout.in_flight(number)
    kept = forward.kept * in_flight
    logits = max(forward.kept_logits * in_flight, forward.peak_logits)
    # The update needs fp32 gradients, but no activations any more.
    passing = _passing(recipe.config.model, layout, number, batch)
    update = states.update + _put_together(held, layout)
    buffers = max(states.bucket + states.momentary + passing, update - kept - logits - forward.workspace)
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


def _put_together(held: Held, layout: Layout) -> int:
    """Bytes of the largest tensor that an optimizer has to see whole, where its parts are on several ranks: weight,
    gradient and moments, the local shard beside the whole."""
    is_divided = layout.tensor > 1 or (layout.zero_stage > 0 and layout.data > 1)
    copies = 1 + (layout.tensor > 1)
    return round(held.largest_divided * (2 + held.moments) * copies) * FP32_BYTES if is_divided else 0


def forward_memory(stage: StagePlan, batch: MicroBatch, *, updates: Sequence[Update]) -> ForwardMemory:
    """Of one micro batch in the layers of one stage.

    Args:
        updates: of an optimizer step: each keeps what its part of the model needs, one after the other.
    """
    kept: dict[str, int] = {}  # by part of the model
    logits = peak = recomputed = 0
    peak_part = ""
    for layer in stage.layers:
        stays = whole = layer.kept_bytes(batch)
        if batch.activation_checkpointing:
            stays = layer.checkpointed_bytes(batch)
            recomputed = max(recomputed, whole - stays)
        kept[layer.part] = kept.get(layer.part, 0) + stays
        logits += layer.kept_logits(batch)
        if layer.peak_logits(batch) > peak:
            peak, peak_part = layer.peak_logits(batch), layer.part
    is_one_update = len(updates) == 1
    total = sum(kept.values()) if is_one_update else max(kept.values())
    # A part's logits are gone when the parts behind it have kept their own activations.
    parts = list(kept)
    later = sum(kept[part] for part in parts[parts.index(peak_part) + 1 :]) if peak and is_one_update else 0
    return ForwardMemory(total, logits, max(0, peak - later), recomputed + workspace(stage.layers[0].model, batch))


def _passing(model: ModelConfig, layout: Layout, number: int, batch: MicroBatch) -> int:
    """Hidden states on their way to the next stage, and a gradient on its way back."""
    if layout.pipeline == 1:
        return 0
    hidden = batch.own_tokens * model.hidden_size * batch.element_bytes
    is_last = number == layout.pipeline - 1
    return hidden * (1 + (0 if is_last else layout.in_flight(number)))
