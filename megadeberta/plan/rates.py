"""How fast a GPU computes and what of its communication is hidden: a few constants, fitted to published step times.

``python benchmarks/plan_published.py`` compares the rows that they were fitted to; docs/plan.md has the table. Each is
one number for all models, layouts and machines; what differs between machines is in ``Cluster`` and ``gpus.py``.
"""

from dataclasses import dataclass

REFERENCE_WIDTH = 2048
"""Hidden size for which ``Cluster.tflops`` is given."""
HALF_WIDTH = 1200
"""Hidden size at which the elementwise work of a layer takes as long as its matrix products. Products per token grow
with the square of the width, all else with the width itself, so the rate of a whole layer is r w / (w + HALF_WIDTH)."""
DIVIDED = 0.85
"""Fraction of that elementwise work that tensor parallelism divides with the products (scores, gelu); the rest
(LayerNorm, residual) every rank does whole."""
WEIGHT_BYTES = 20
"""Memory traffic for each weight in each micro batch: read in forward and backward (2 x 2 bytes), gradient written,
read and added to an fp32 one (2 + 2 + 8), and cast or gathered once (4)."""
HIDDEN = 0.85
"""Of communication beside computation, how much is hidden: it takes memory bandwidth and multiprocessors from it."""
RING_SECONDS, RING_SECONDS_BETWEEN_NODES = 3.4e-6, 14e-6
"""Of one step of a ring, whatever its size: NCCL's own tables (nccl ``graph/tuning.cc`` ``hwLat``, ring, simple)."""


@dataclass(frozen=True)
class Assumptions:
    """What the engine does besides computing. Defaults are those of DeepSpeed 0.19.8 and this code."""

    host_seconds: float = 2e-3
    """What the host needs to start the kernels of one encoder layer, forward and backward: a floor for small micro
    batches. An assumption; Megatron's BERT takes 4 to 8 ms with unfused attention."""
    zero3_seconds: float = 3e-6
    """Host time of ZeRO 3 for each parameter, rank and micro batch: DeepSpeed 0.19.8 loops over both in Python
    (``reduce_scatter_coalesced``, ``AllGatherCoalescedHandle.wait``). 9.5 us were measured on a slow core with torch's
    fake process group from 8 to 256 ranks; a server's core is taken to be three times as fast."""
    hides_tensor: bool = False
    """Collectives of tensor parallelism run beside products."""
    hides_pipeline: bool = False
    """Hidden states and gradients travel between stages beside products."""
    hides_gather: bool = False
    """Under ZeRO 1 and 2 parameters are gathered beside the next forward pass, and not before it."""
    scatters: bool = False
    """Under ZeRO 1 and 2 gradients are reduced to their partition alone (reduce-scatter), at half the bytes."""


def width_rate(width: int, tensor: int) -> float:
    """Rate of an encoder layer of this hidden size on ``tensor`` ranks, as a multiple of ``Cluster.tflops``."""
    effective = width / (DIVIDED + (1 - DIVIDED) * tensor)
    return effective / (effective + HALF_WIDTH) * (REFERENCE_WIDTH + HALF_WIDTH) / REFERENCE_WIDTH


def exposed(seconds: float, beside: float, *, is_hidden: bool = True) -> float:
    """What is left of a communication that may run beside ``beside`` seconds of computation."""
    return seconds - HIDDEN * min(seconds, beside) if is_hidden else seconds
