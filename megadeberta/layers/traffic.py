"""What tensor parallelism communicates: every collective of a layer by arithmetic, without torch.

Collectives are listed as ``collectives.py`` makes them; a test counts the real ones. Beside these, ranks that share a
model only sum a few scalars an update (the gradient norm).

Shapes: B batch · L length · Q target rows a sample · D hidden size · E embedding width · P rows of the windowed
relative table · M rows with a target.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from megadeberta.config.model import ModelConfig
from megadeberta.ops.attention.distance_rows import window_size

Kind = Literal["all_reduce", "all_gather", "reduce_scatter"]
Phase = Literal["forward", "backward", "recompute"]
_MASK_DECODER_PASSES = 2
_FP32, _INT64 = 4, 8


@dataclass(frozen=True)
class Collective:
    """One collective over the ranks that share the tensors.

    shape: of the whole tensor: what an all-reduce sums, an all-gather ends with and a reduce-scatter begins with.
    """

    kind: Kind
    phase: Phase
    what: str
    shape: tuple[int, ...]
    element_bytes: int

    @property
    def bytes(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape) * self.element_bytes

    def sent_bytes(self, ranks: int) -> float:
        """What each of ``ranks`` sends in a ring."""
        rounds = 2 if self.kind == "all_reduce" else 1
        return rounds * (ranks - 1) / ranks * self.bytes


@dataclass(frozen=True)
class MicroBatch:
    """The shape of one forward and backward pass.

    slots: Q, the target rows a sample. targets: M of each loss over the vocabulary: on a GPU B x Q for every one, on a
    CPU only the slots that are filled; two for ``ar`` and ``mlm_ar``, else one. element_bytes: of hidden states.
    """

    batch: int
    length: int
    slots: int
    targets: tuple[int, ...]
    element_bytes: int
    sequence_parallel: bool = False
    recompute: bool = False


def layer_traffic(name: str, model: ModelConfig, shape: MicroBatch, *, chunks: int = 1) -> list[Collective]:
    """All collectives of one layer in one micro batch of training, by the layer's global name.

    Args:
        model: of the part that the layer belongs to: generator and discriminator differ.
        chunks: pieces that the logits of a micro batch come in, see ``CHUNK_ELEMENTS``.
    """
    kind = name.rpartition(".")[2]
    if kind == "embeddings":
        return _embeddings(model, shape)
    if kind == "relative":
        return _relative(model, shape)
    if kind == "mask_decoder":
        return _again(_mask_decoder(model, shape), shape)
    if kind == "mlm_head":
        return _mlm_head(model, shape, chunks)
    if kind == "sample":
        return [_Maker(shape).of("all_reduce", "forward", "draw", (shape.batch, shape.slots), size=_INT64)]
    if kind == "rtd_head":
        return _whole_sequences(model, shape, "rtd_head input")
    is_first = kind == "0"
    return _again(_encoder_layer(model, shape, convolution=is_first and model.conv_kernel_size > 0), shape)


def total_bytes(collectives: Iterable[Collective]) -> int:
    """Bytes of all whole tensors."""
    return sum(collective.bytes for collective in collectives)


@dataclass(frozen=True)
class _Maker:
    shape: MicroBatch

    def of(self, kind: Kind, phase: Phase, what: str, dims: tuple[int, ...], *, size: int | None = None) -> Collective:
        return Collective(kind, phase, what, dims, size or self.shape.element_bytes)


def _embeddings(model: ModelConfig, shape: MicroBatch) -> list[Collective]:
    make, tokens = _Maker(shape), (shape.batch, shape.length)
    found = [make.of("all_reduce", "forward", "words", (*tokens, model.embedding_width))]
    if shape.sequence_parallel:
        found.append(make.of("all_gather", "backward", "embeddings gradient", (*tokens, model.hidden_size)))
    return found


def _relative(model: ModelConfig, shape: MicroBatch) -> list[Collective]:
    if not model.pos_att_type:
        return []
    rows = window_size(shape.length, num_buckets=model.position_buckets, max_distance=model.relative_span)
    return [_Maker(shape).of("all_reduce", "backward", "relative table gradient", (rows, model.hidden_size))]


def _block(make: _Maker, what: str, hidden: tuple[int, ...]) -> list[Collective]:
    """A column-parallel layer followed by a row-parallel one."""
    if not make.shape.sequence_parallel:
        return [
            make.of("all_reduce", "forward", f"{what} output", hidden),
            make.of("all_reduce", "backward", f"{what} input gradient", hidden),
        ]
    return [
        make.of("all_gather", "forward", f"{what} input", hidden),
        make.of("reduce_scatter", "forward", f"{what} output", hidden),
        make.of("all_gather", "backward", f"{what} output gradient", hidden),
        make.of("all_gather", "backward", f"{what} input", hidden),
        make.of("reduce_scatter", "backward", f"{what} input gradient", hidden),
        make.of("all_reduce", "backward", f"{what} layer_norm gradient", (2 * hidden[-1],)),
    ]


def _encoder_layer(model: ModelConfig, shape: MicroBatch, *, convolution: bool) -> list[Collective]:
    make, hidden = _Maker(shape), (shape.batch, shape.length, model.hidden_size)
    found = [*_block(make, "attention", hidden), *_block(make, "feed_forward", hidden)]
    if convolution and shape.sequence_parallel:
        found += [
            make.of("all_gather", "forward", "convolution input", hidden),
            make.of("all_gather", "forward", "convolution residual", hidden),
            make.of("all_gather", "backward", "convolution gradient", hidden),
        ]
    return found


def _mask_decoder(model: ModelConfig, shape: MicroBatch) -> list[Collective]:
    """Keys of whole sequences, queries of the target rows; these are not divided by tokens."""
    make = _Maker(replace(shape, sequence_parallel=False))
    rows = (shape.batch, shape.slots, model.hidden_size)
    keys = (shape.batch, shape.length, model.hidden_size)
    found = _whole_sequences(model, shape, "mask_decoder input")
    found.append(make.of("all_reduce", "backward", "mask_decoder keys gradient", keys))
    for _ in range(_MASK_DECODER_PASSES):
        found += [*_block(make, "attention", rows), *_block(make, "feed_forward", rows)]
    return found


def _mlm_head(model: ModelConfig, shape: MicroBatch, chunks: int) -> list[Collective]:
    make = _Maker(shape)
    found = [] if model.enhanced_mask_decoder else _whole_sequences(model, shape, "mlm_head input")
    for targets in shape.targets:
        size = -(-targets // chunks)
        for start in range(0, max(1, targets), max(1, size)):
            rows = min(size, targets - start)
            found += [
                make.of("all_reduce", "forward", "largest logit", (rows, 1), size=_FP32),
                make.of("all_reduce", "forward", "target logit and sum of exponentials", (2, rows, 1), size=_FP32),
                make.of("all_reduce", "backward", "mlm_head input gradient", (rows, model.embedding_width)),
            ]
    return found


def _whole_sequences(model: ModelConfig, shape: MicroBatch, what: str) -> list[Collective]:
    if not shape.sequence_parallel:
        return []
    return [_Maker(shape).of("all_gather", "forward", what, (shape.batch, shape.length, model.hidden_size))]


def _again(collectives: list[Collective], shape: MicroBatch) -> list[Collective]:
    """With activation checkpointing the forward pass of the layer is made twice."""
    if not shape.recompute:
        return collectives
    forward = [replace(collective, phase="recompute") for collective in collectives if collective.phase == "forward"]
    return [*collectives, *forward]
