"""Estimated memory of one rank: weights, gradients, optimizer states by ZeRO stage, and activations of a micro batch.

For the plain attention, which keeps its probabilities for the backward pass. Left out: what the allocator, NCCL and
CUDA itself take, 1 to 2 GiB.
"""

import math
from dataclasses import dataclass

from megadeberta.config.deepspeed_block import BatchAlgebra, is_enabled, offloads_optimizer, zero_stage
from megadeberta.config.model import ModelConfig
from megadeberta.config.parameters import count_parameters
from megadeberta.config.run import RunConfig

_FP32 = 4
_ADAM = 3 * _FP32  # master copy and two moments
# Vectors of hidden and of intermediate width that one token of one layer keeps for the backward pass.
_HIDDEN_KEPT, _INNER_KEPT = 11, 2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank. ``on_host``: optimizer states that DeepSpeed keeps in the host's memory."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    on_host: int

    @property
    def device(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(config: RunConfig, algebra: BatchAlgebra) -> MemoryEstimate:
    """What one rank needs at the fullest moment of a step."""
    block = config.deepspeed
    stage, ranks = zero_stage(block), algebra.data_parallel
    half = is_enabled(block, "bf16") or is_enabled(block, "fp16")
    width = 2 if half else _FP32
    count = sum(count_parameters(config.model, config.objective).values())
    optimizer = count * (_ADAM if half or stage else _ADAM - _FP32) // (ranks if stage >= 1 else 1)
    on_host = optimizer if offloads_optimizer(block) else 0
    return MemoryEstimate(
        weights=count * width // (ranks if stage >= 3 else 1),
        gradients=count * width // (ranks if stage >= 2 else 1),
        optimizer=optimizer - on_host,
        activations=_activations(config, algebra.micro_batch, width),
        on_host=on_host,
    )


def _activations(config: RunConfig, micro_batch: int, width: int) -> int:
    model, objective, length = config.model, config.objective, config.data.sequence_length
    share = {"ar": 1.0, "mlm_ar": 1.0}.get(objective.name, objective.mask_rate)
    targets = math.ceil(share * length)
    if objective.name != "rtd":
        return micro_batch * (_layers_kept(model, length, width) + _logits_kept(model, targets))
    generator, discriminator = objective.rtd.generator(model), objective.rtd.discriminator(model)
    first = _layers_kept(generator, length, width) + _logits_kept(generator, targets)
    second = _layers_kept(discriminator, length, width)
    return micro_batch * (max(first, second) if objective.rtd.decoupled else first + second)


def _layers_kept(model: ModelConfig, length: int, width: int) -> int:
    """Bytes of one sequence in all layers."""
    vectors = length * width * (_HIDDEN_KEPT * model.hidden_size + _INNER_KEPT * model.intermediate_size)
    # Probabilities in fp32 and in the run's precision, after dropout, and the two masks of a byte each.
    pairs = model.num_attention_heads * length**2 * (_FP32 + 2 * width + 2)
    return model.num_hidden_layers * (vectors + pairs)


def _logits_kept(model: ModelConfig, targets: int) -> int:
    """Logits, their log softmax and the gradient, in fp32."""
    return 3 * _FP32 * targets * model.vocab_size
