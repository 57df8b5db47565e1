"""The table of relative positions, and which of its rows a sequence reads.

Shapes: L length · D hidden size · P rows of the table that a sequence of length L reads.
"""

from megadeberta.config.model import ModelConfig
from megadeberta.layers.collectives import Collective
from megadeberta.layers.layer import Layer
from megadeberta.layers.micro_batch import INDEX_BYTES, MicroBatch
from megadeberta.layers.parameters import Shapes, layer_norm
from megadeberta.ops.attention.distance_rows import window_size


def relative_rows(model: ModelConfig, length: int) -> int:
    """P: rows of the relative table that a sequence of this length reads, 0 without one."""
    if not model.relative_attention:
        return 0
    return window_size(length, num_buckets=model.position_buckets, max_distance=model.relative_span)


def position_terms(model: ModelConfig) -> tuple[str, ...]:
    """The position terms of the attention: of "c2p" and "p2c"."""
    return model.pos_att_type if model.relative_attention else ()


class RelativeTable(Layer, kind="relative"):
    """The embedding of distances, its LayerNorm, and the window of rows that the sequences read."""

    is_copied = True
    writes = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing: it is a table."""
        return ()

    def own_parameters(self) -> Shapes:
        """The table ``[2k, D]`` and its LayerNorm."""
        size = self.model.hidden_size
        norm = layer_norm("layer_norm", size) if self.model.norm_rel_ebd == "layer_norm" else {}
        return {"embedding.weight": (2 * self.model.relative_half_width, size)} | norm

    def kept_bytes(self, batch: MicroBatch) -> int:
        """The window of the table: input and output of its LayerNorm."""
        model = self.model
        vectors = (1 if model.norm_rel_ebd == "layer_norm" else 0) + (0 if model.hidden_dropout_prob else 1)
        return relative_rows(model, batch.length) * (vectors * model.hidden_size * batch.element_bytes + INDEX_BYTES)

    def checkpointed_bytes(self, batch: MicroBatch) -> int:
        """The same, and the table once more for its dropout."""
        kept = self.kept_bytes(batch)
        if not self.model.hidden_dropout_prob:
            return kept
        # Every checkpoint holds the table before its dropout.
        return kept + relative_rows(self.model, batch.length) * self.model.hidden_size * batch.element_bytes

    def collectives(self, batch: MicroBatch) -> list[Collective]:
        """Each rank projects the table for its own heads; the gradient is summed once for all layers."""
        if not self.model.pos_att_type:
            return []
        shape = (relative_rows(self.model, batch.length), self.model.hidden_size)
        return [Collective("all_reduce", "backward", "relative table gradient", shape, batch.element_bytes)]
