"""The encoder layer: attention and feed-forward, and the convolution that the first layer of v2's large models has.

Shapes: B batch · L length · D hidden size · I intermediate size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from megadeberta.config.model import ModelConfig
from megadeberta.layers.collectives import Collective, column_then_row, with_recompute
from megadeberta.layers.kept import keys_kept, positions_kept, stream_kept
from megadeberta.layers.layer import Cut, Layer
from megadeberta.layers.micro_batch import PRECISE_BYTES, MicroBatch
from megadeberta.layers.parameters import Shapes, layer_norm, linear
from megadeberta.layers.relative import position_terms, relative_rows

ENCODER_CUTS: Mapping[str, Cut] = {
    **{
        f"self_attention.attention.{name}_proj.{kind}": "column"
        for name in ("query", "key", "value", "pos_key", "pos_query")
        for kind in ("weight", "bias")
    },
    "self_attention.dense.weight": "row",
    "feed_forward.up.weight": "column",
    "feed_forward.up.bias": "column",
    "feed_forward.down.weight": "row",
}


@dataclass(frozen=True)
class EncoderLayer(Layer, kind="layer"):
    """Disentangled attention and feed-forward, each with dropout, residual and LayerNorm."""

    convolution: bool = field(default=False, kw_only=True)
    """With the convolution over the embeddings beside it."""

    is_encoder = True
    cuts = ENCODER_CUTS

    def own_parameters(self) -> Shapes:
        """Attention, feed-forward, and the convolution."""
        shapes, model = block_parameters(self.model), self.model
        if self.convolution:
            size = model.hidden_size
            shapes["convolution.conv.weight"] = (size, size // model.conv_groups, model.conv_kernel_size)
            shapes["convolution.conv.bias"] = (size,)
            shapes |= layer_norm("convolution.layer_norm", size)
        return shapes

    def multiply_adds(self, batch: MicroBatch, *, rows: float) -> float:
        """Per token: projections, feed-forward, content scores and values, position scores; and the convolution."""
        model = self.model
        token = key_products(model) + query_products(model, batch.length) + key_position_products(model, batch.length)
        return batch.tokens * token + self.whole_multiply_adds(batch)

    def whole_multiply_adds(self, batch: MicroBatch) -> float:
        """The convolution."""
        model = self.model
        per_token = model.conv_kernel_size * model.hidden_size**2 // model.conv_groups
        return batch.tokens * per_token if self.convolution else 0

    def table_multiply_adds(self, batch: MicroBatch) -> float:
        """The projections of the relative table."""
        return table_products(self.model, batch.length)

    def kept_bytes(self, batch: MicroBatch) -> int:
        """Its input included."""
        model, own = self.model, batch.own_tokens
        kept = self.checkpointed_bytes(batch) + positions_kept(model, batch) + keys_kept(model, batch)
        kept += stream_kept(model, batch, batch.length, own=own)
        if batch.compiled:
            # torch.compile keeps what the second linear map reads too, where our code recomputes the gelu.
            kept += batch.tokens * model.intermediate_size // batch.tensor * batch.element_bytes
        if self.convolution:
            # Input of the gelu and of the LayerNorm; the output of layer 0 is not the input of layer 1 any more.
            vectors = 3 if batch.sequence_parallel else 2  # its own input is gathered then
            kept += batch.tokens * (vectors * model.hidden_size * batch.element_bytes + 2 * PRECISE_BYTES)
        return kept

    def checkpointed_bytes(self, batch: MicroBatch) -> int:
        """Its input."""
        return batch.own_tokens * self.model.hidden_size * batch.element_bytes

    def collectives(self, batch: MicroBatch) -> list[Collective]:
        """Of attention and feed-forward; with sequence parallelism also around the convolution."""
        hidden = (batch.sequences, batch.length, self.model.hidden_size)
        divided = batch.sequence_parallel
        found = [
            *column_then_row(batch, "attention", hidden, sequence_parallel=divided),
            *column_then_row(batch, "feed_forward", hidden, sequence_parallel=divided),
        ]
        if self.convolution and divided:
            found += [
                Collective("all_gather", "forward", "convolution input", hidden, batch.element_bytes),
                Collective("all_gather", "forward", "convolution residual", hidden, batch.element_bytes),
                Collective("all_gather", "backward", "convolution gradient", hidden, batch.element_bytes),
            ]
        return with_recompute(found, batch)


def block_parameters(model: ModelConfig) -> Shapes:
    """Parameters of attention and feed-forward."""
    size, inner = model.hidden_size, model.intermediate_size
    attention = "self_attention.attention"
    separate = () if model.share_att_key else position_terms(model)
    shapes = linear(f"{attention}.query_proj", size, size)
    shapes |= linear(f"{attention}.key_proj", size, size, bias=model.key_bias)
    shapes |= linear(f"{attention}.value_proj", size, size)
    if "c2p" in separate:
        shapes |= linear(f"{attention}.pos_key_proj", size, size, bias=model.key_bias)
    if "p2c" in separate:
        shapes |= linear(f"{attention}.pos_query_proj", size, size)
    shapes |= linear("self_attention.dense", size, size) | layer_norm("self_attention.layer_norm", size)
    shapes |= linear("feed_forward.up", inner, size) | linear("feed_forward.down", size, inner)
    return shapes | layer_norm("feed_forward.layer_norm", size)


def key_products(model: ModelConfig) -> int:
    """Multiply-adds per token that attends to nothing itself: its key and its value."""
    return 2 * model.hidden_size**2


def query_products(model: ModelConfig, length: int) -> int:
    """Multiply-adds per row that attends to a sequence of ``length``: query, scores and values, output, feed-forward.

    The content-to-position term is a product with the rows of the relative table that the sequence reads.
    """
    size = model.hidden_size
    scores = 2 * length + ("c2p" in position_terms(model)) * relative_rows(model, length)
    return 2 * size**2 + 2 * size * model.intermediate_size + scores * size


def key_position_products(model: ModelConfig, length: int) -> int:
    """Multiply-adds per key for the position-to-content term: it does not depend on the rows that attend."""
    return ("p2c" in position_terms(model)) * relative_rows(model, length) * model.hidden_size


def table_products(model: ModelConfig, length: int) -> int:
    """Multiply-adds of projecting the relative table, once per micro batch."""
    return len(position_terms(model)) * relative_rows(model, length) * model.hidden_size**2
