"""The enhanced mask decoder: the encoder's last layer, run twice for the target rows only.

Shapes: B batch · L length · Q target rows per sequence · D hidden size.
"""

from megadeberta.layers.collectives import Collective, column_then_row, whole_sequences, with_recompute
from megadeberta.layers.encoder import (
    ENCODER_CUTS,
    block_parameters,
    key_position_products,
    key_products,
    query_products,
    table_products,
)
from megadeberta.layers.kept import dropout_keys, keys_kept, positions_kept, stream_kept
from megadeberta.layers.layer import Layer
from megadeberta.layers.micro_batch import INDEX_BYTES, MicroBatch
from megadeberta.layers.parameters import Shapes, prefixed

PASSES = 2
"""n of the paper's section A.8: how often the layer runs over the target rows."""


class MaskDecoder(Layer, kind="mask_decoder"):
    """Keys and values of all tokens, once; queries of the target rows, in ``PASSES`` passes."""

    is_encoder = True
    writes = ("masked_hidden",)
    cuts = ENCODER_CUTS

    def own_parameters(self) -> Shapes:
        """An encoder layer and the absolute position table."""
        positions = (self.model.max_position_embeddings, self.model.hidden_size)
        return prefixed("layer", block_parameters(self.model)) | {"position_embeddings.weight": positions}

    def multiply_adds(self, batch: MicroBatch, *, rows: float) -> float:
        """Keys, values and their position scores once per token, all else in each pass per target row."""
        key = key_products(self.model) + key_position_products(self.model, batch.length)
        return batch.tokens * key + PASSES * rows * query_products(self.model, batch.length)

    def repeated_multiply_adds(self, batch: MicroBatch) -> float:
        """The position scores of the keys, in every pass after the first."""
        return (PASSES - 1) * batch.tokens * key_position_products(self.model, batch.length)

    def table_multiply_adds(self, batch: MicroBatch) -> float:
        """The projections of the relative table, once."""
        return table_products(self.model, batch.length)

    def kept_bytes(self, batch: MicroBatch) -> int:
        """Keys of all tokens, and two passes over the target rows; none of it is divided by tokens."""
        model, size = self.model, self.model.hidden_size
        kept = batch.tokens * size * batch.element_bytes + 2 * batch.rows * INDEX_BYTES
        kept += positions_kept(model, batch) + keys_kept(model, batch)
        query_input = batch.rows * size * batch.element_bytes
        query_input += dropout_keys(model, batch.rows)
        one_pass = query_input + stream_kept(model, batch, batch.slots, own=batch.rows, is_gathered=True)
        return kept + PASSES * one_pass

    def checkpointed_bytes(self, batch: MicroBatch) -> int:
        """Its input."""
        return batch.own_tokens * self.model.hidden_size * batch.element_bytes

    def collectives(self, batch: MicroBatch) -> list[Collective]:
        """Keys of whole sequences, queries of the target rows; these are not divided by tokens."""
        size = self.model.hidden_size
        keys, rows = (batch.sequences, batch.length, size), (batch.sequences, batch.slots, size)
        found = whole_sequences(batch, size, "mask_decoder input")
        found.append(Collective("all_reduce", "backward", "mask_decoder keys gradient", keys, batch.element_bytes))
        for _ in range(PASSES):
            found += column_then_row(batch, "attention", rows, sequence_parallel=False)
            found += column_then_row(batch, "feed_forward", rows, sequence_parallel=False)
        return with_recompute(found, batch)
