"""The heads: prediction of tokens, the draw from a generator, detection of replaced tokens.

Shapes: B batch · L length · Q target rows per sequence · M rows with a target · V vocabulary · E embedding width
D hidden size · T tensor-parallel ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from megadeberta.layers.collectives import Collective, whole_sequences
from megadeberta.layers.layer import Cut, Layer
from megadeberta.layers.micro_batch import INDEX_BYTES, PRECISE_BYTES, MicroBatch
from megadeberta.layers.parameters import Shapes, layer_norm, linear
from megadeberta.layers.terms import term
from megadeberta.layers.vocabulary import largest_vocabulary_shard
from megadeberta.ops.logits import TRITON, row_chunks

_NOISE_OPERATIONS = 30
"""Elementwise ones for each entry of the vocabulary that a sample is drawn from."""


@dataclass(frozen=True)
class MlmHead(Layer, kind="mlm_head"):
    """Dense, gelu, LayerNorm, decoder tied to the word table, cross entropy for each of its loss terms."""

    for_sampling: bool = field(default=False, kw_only=True)
    """A generator's: its logits are handed on, to be drawn from."""

    is_head = True
    writes = ()
    cuts: ClassVar[Mapping[str, Cut]] = {f"mlm_head.decoder.{name}": "vocabulary" for name in ("weight", "bias")}

    @property
    def reads(self) -> tuple[str, ...]:
        """The states of the target rows, or all hidden states to gather them from."""
        return ("masked_hidden",) if self.model.enhanced_mask_decoder else ("hidden",)

    def own_parameters(self) -> Shapes:
        """Of the head alone; the word table is tied."""
        width = self.model.embedding_width
        shapes = linear("dense", width, self.model.hidden_size) | layer_norm("layer_norm", width)
        return shapes | {"decoder.bias": (self.model.vocab_size,)}

    def multiply_adds(self, batch: MicroBatch, *, rows: float) -> float:
        """The dense layer and the projection onto the vocabulary or the classes."""
        return rows * self.model.embedding_width * (self.model.hidden_size + self.model.vocab_size)

    def whole_multiply_adds(self, batch: MicroBatch) -> float:
        """The dense layer."""
        return batch.rows * self.model.embedding_width * self.model.hidden_size

    def kept_bytes(self, batch: MicroBatch) -> int:
        """Four vectors per target row."""
        model = self.model
        vectors = model.hidden_size + 3 * model.embedding_width
        kept = batch.rows * (vectors * batch.element_bytes + 2 * PRECISE_BYTES + 2 * INDEX_BYTES)
        if model.enhanced_mask_decoder:
            return kept
        # Without a mask decoder the rows are gathered from the last hidden states, and a gather keeps what it reads.
        return kept + batch.tokens * model.hidden_size * batch.element_bytes

    def kept_logits(self, batch: MicroBatch) -> int:
        """Softmax minus target, ``[B Q, V / T]``: nothing where there are too many for one chunk."""
        if len(self._chunks(batch, batch.rows)) > 1:
            return 0
        size = batch.element_bytes
        if batch.precision == "fp16":  # which cannot hold it: fp32, and with the kernels nothing
            size = 0 if batch.logits == TRITON else PRECISE_BYTES
        return batch.rows * self._columns(batch) * size

    def peak_logits(self, batch: MicroBatch) -> int:
        """One chunk beside its softmax; and all logits where they are drawn from."""
        longest = max(chunk.stop - chunk.start for chunk in self._chunks(batch, batch.rows))
        narrow, element = longest * self._columns(batch) * batch.element_bytes, batch.element_bytes
        # The kernels write the softmax over the logits, torch needs fp32, and what is drawn from has to stay.
        softmax = longest * self._columns(batch) * (element if batch.logits == TRITON else PRECISE_BYTES)
        if self.for_sampling:
            return batch.rows * self._columns(batch) * element + max(softmax, self.kept_logits(batch))
        in_place = batch.logits == TRITON or element == PRECISE_BYTES
        return narrow if in_place else narrow + softmax

    def _columns(self, batch: MicroBatch) -> int:
        return largest_vocabulary_shard(self.model.vocab_size, batch.tensor)

    def _chunks(self, batch: MicroBatch, rows: int) -> list[slice]:
        size = batch.element_bytes
        return row_chunks(rows, self._columns(batch), implementation=batch.logits, element_bytes=size)

    def collectives(self, batch: MicroBatch) -> list[Collective]:
        """What the head reads or sums over ranks."""
        model, bytes_ = self.model, batch.element_bytes
        reads_all = not model.enhanced_mask_decoder
        found = whole_sequences(batch, model.hidden_size, "mlm_head input") if reads_all else []
        losses = sum(term(name).is_loss for name in self.terms)
        for targets in batch.targets or (batch.rows,) * losses:
            for chunk in self._chunks(batch, targets):
                rows = chunk.stop - chunk.start
                sums, gradient = (2, rows, 1), (rows, model.embedding_width)
                found += [
                    Collective("all_reduce", "forward", "largest logit", (rows, 1), PRECISE_BYTES),
                    Collective("all_reduce", "forward", "target logit, sum of exponentials", sums, PRECISE_BYTES),
                    Collective("all_reduce", "backward", "mlm_head input gradient", gradient, bytes_),
                ]
        return found


@dataclass(frozen=True)
class Sample(Layer, kind="sample"):
    """One draw per target from the generator's logits, which takes the place of the masked token."""

    temperature: float = field(default=1.0, kw_only=True)
    """Divides the logits."""

    is_head = True
    joins_previous = True
    writes = ()
    adds = ("replaced",)
    drops = ("masked_positions", "masked_labels")

    @property
    def reads(self) -> tuple[str, ...]:
        """Of activations that travel; the logits of the head before it do not."""
        return ()

    def extra_operations(self, batch: MicroBatch) -> float:
        """The noise."""
        return _NOISE_OPERATIONS * batch.rows * self.model.vocab_size

    def collectives(self, batch: MicroBatch) -> list[Collective]:
        """What the head reads or sums over ranks."""
        rows = batch.rows if batch.targets is None else batch.targets[0]
        return [Collective("all_reduce", "forward", "draw", (rows,), INDEX_BYTES)]


class RtdHead(Layer, kind="rtd_head"):
    """Dense and classifier on every token: was it replaced?"""

    is_head = True
    writes = ()

    def own_parameters(self) -> Shapes:
        """Of the head alone; the word table is tied."""
        size = self.model.hidden_size
        return layer_norm("layer_norm", size) | linear("dense", size, size) | linear("classifier", 1, size)

    def multiply_adds(self, batch: MicroBatch, *, rows: float) -> float:
        """The dense layer and the projection onto the vocabulary or the classes."""
        return batch.tokens * (self.model.hidden_size**2 + self.model.hidden_size)

    def kept_bytes(self, batch: MicroBatch) -> int:
        """Four vectors per token, logits and losses."""
        return batch.tokens * (4 * self.model.hidden_size * batch.element_bytes + 4 * PRECISE_BYTES)

    def collectives(self, batch: MicroBatch) -> list[Collective]:
        """What the head reads or sums over ranks."""
        return whole_sequences(batch, self.model.hidden_size, "rtd_head input")
