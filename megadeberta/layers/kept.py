"""Bytes that one rank keeps for the backward pass of one micro batch, layer by layer.

Each term is one tensor that autograd saves; docs/plan.md has the table, and tests/unit/plan/test_activations.py counts
the tensors really saved. Which are kept for attention depends on its backend (training.attention).

Shapes: B micro batch · L length · Q query rows a sequence · D hidden size · I intermediate size · E embedding width
P rows of the relative table in use · V vocabulary · T tensor-parallel ranks.
"""

import math
from dataclasses import dataclass
from typing import Literal

from megadeberta.config.model import ModelConfig
from megadeberta.layers.cuts import vocabulary_rows
from megadeberta.ops.attention.backends import AttentionShape, Backend, find_backend
from megadeberta.ops.attention.distance_rows import window_size

Attention = str
"""The name of an attention backend: which activations it keeps it says itself (``ops/attention/backends.py``)."""
Precision = Literal["fp32", "bf16", "fp16"]

_PRECISE = 4  # softmax, log-sum-exp and LayerNorm statistics are fp32 at least
_INDEX = 8  # int64
_DECODER_PASSES = 2
CHUNK_ELEMENTS = 2**27
"""Logits that exist at once (``ops/masked_cross_entropy.py``): with more rows than that they are recomputed."""


@dataclass(frozen=True)
class Work:
    """One micro batch as one rank sees it.

    targets: slots of a sequence that are predicted. tensor: ranks that share heads, feed-forward and vocabulary; with
    ``sequence_parallel`` also the tokens between them. selective_recompute: queries, keys, values and what the gelu
    reads are recomputed in the backward pass.
    """

    sequences: int
    length: int
    targets: int
    precision: Precision
    attention: Attention
    tensor: int = 1
    sequence_parallel: bool = False
    selective_recompute: bool = False

    @property
    def backend(self) -> Backend:
        return find_backend(self.attention)

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return 4 if self.precision == "fp32" else 2

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def rows(self) -> int:
        """Target rows of the micro batch."""
        return self.sequences * self.targets

    @property
    def own_tokens(self) -> int:
        """Tokens whose hidden states this rank keeps between the sharded layers."""
        return self.tokens // self.tensor if self.sequence_parallel else self.tokens


def embeddings_kept(model: ModelConfig, work: Work) -> int:
    """Input of the LayerNorm, its statistics, the ids, the keys of dropout; and the narrow vectors, if there are any.

    Of all tokens, with sequence parallelism too: the tokens are shared out behind the embeddings.
    """
    size, tokens = model.hidden_size, work.tokens
    narrow = tokens * model.embedding_width * work.width if model.embedding_width != size else 0
    return narrow + tokens * (size * work.width + 2 * _PRECISE + _INDEX) + _hidden_keys(model, tokens, count=1)


def relative_kept(model: ModelConfig, work: Work) -> int:
    """The window of the table: input and output of its LayerNorm."""
    rows = relative_rows(model, work.length)
    vectors = (1 if model.norm_rel_ebd == "layer_norm" else 0) + (0 if model.hidden_dropout_prob else 1)
    return rows * (vectors * model.hidden_size * work.width + _INDEX)


def layer_kept(model: ModelConfig, work: Work, *, convolution: bool = False) -> int:
    """One encoder layer, its input included."""
    size, own = model.hidden_size, work.own_tokens
    kept = own * size * work.width  # the layer's input
    kept += _positions_kept(model, work) + _keys_kept(model, work) + _stream_kept(model, work, work.length, own=own)
    if convolution:
        # Input of the gelu and of the LayerNorm; the output of layer 0 is not the input of layer 1 any more.
        vectors = 3 if work.sequence_parallel else 2  # its own input is gathered then
        kept += work.tokens * (vectors * size * work.width + 2 * _PRECISE) + _hidden_keys(model, work.tokens, count=1)
    return kept


def mask_decoder_kept(model: ModelConfig, work: Work) -> int:
    """The last layer: keys of all tokens, and two passes over the target rows; nothing of it is shared by tokens."""
    size = model.hidden_size
    kept = work.tokens * size * work.width + 2 * work.rows * _INDEX
    kept += _positions_kept(model, work) + _keys_kept(model, work)
    query_input = work.rows * size * work.width
    one_pass = query_input + _stream_kept(model, work, work.targets, own=work.rows, is_gathered=True)
    return kept + _DECODER_PASSES * one_pass


def mlm_head_kept(model: ModelConfig, work: Work) -> int:
    """Four vectors a target row; without the softmax, see ``logits_kept``."""
    vectors = model.hidden_size + 3 * model.embedding_width
    kept = work.rows * (vectors * work.width + 2 * _PRECISE + 2 * _INDEX)
    # Without a mask decoder the rows are gathered from the last hidden states, and a gather keeps what it reads.
    return kept if model.enhanced_mask_decoder else kept + work.tokens * model.hidden_size * work.width


def rtd_head_kept(model: ModelConfig, work: Work) -> int:
    """Four vectors a token, logits and losses."""
    return work.tokens * (4 * model.hidden_size * work.width + 4 * _PRECISE)


def logits_kept(model: ModelConfig, work: Work) -> int:
    """Softmax minus target, ``[B Q, V / T]``: nothing where there are too many for one chunk."""
    if num_chunks(model, work) > 1:
        return 0
    entries = work.rows * shard_of_vocabulary(model, work.tensor)
    # fp16 cannot hold a softmax over a large vocabulary, so there it stays fp32.
    return entries * (2 if work.precision == "bf16" else _PRECISE)


def logits_peak(model: ModelConfig, work: Work, *, sampled: bool) -> int:
    """Most bytes of logits at one time in the forward pass; ``sampled``: a generator's are also drawn from."""
    vocabulary = shard_of_vocabulary(model, work.tensor)
    rows = min(work.rows, max(1, CHUNK_ELEMENTS // vocabulary))
    one_chunk = rows * vocabulary * (_PRECISE + (work.width if work.width < _PRECISE else 0))
    if not sampled:
        return max(one_chunk, logits_kept(model, work))
    # Whole in fp32, and once more divided by the temperature.
    return max(one_chunk, logits_kept(model, work) + 2 * work.rows * vocabulary * _PRECISE)


def num_chunks(model: ModelConfig, work: Work) -> int:
    """Pieces that the logits of a micro batch come in."""
    return math.ceil(work.rows / max(1, CHUNK_ELEMENTS // shard_of_vocabulary(model, work.tensor)))


def relative_rows(model: ModelConfig, length: int) -> int:
    """P: rows of the relative table that a sequence of this length reads."""
    if not model.relative_attention:
        return 0
    return window_size(length, num_buckets=model.position_buckets, max_distance=model.relative_span)


def shard_of_vocabulary(model: ModelConfig, tensor: int) -> int:
    """Columns of logits of the fullest rank."""
    return max(len(rows) for rows in vocabulary_rows(model.vocab_size, tensor))


def _stream_kept(model: ModelConfig, work: Work, rows: int, *, own: int, is_gathered: bool = False) -> int:
    """One query stream of ``rows`` rows a sequence through attention and feed-forward.

    own: rows of the micro batch whose replicated vectors this rank keeps. is_gathered: the rows have positions of
    their own in every sequence.
    """
    size, shard = model.hidden_size, model.hidden_size // work.tensor
    # Around both LayerNorms: two inputs, one output; statistics; the keys of dropout.
    kept = own * (3 * size * work.width + 4 * _PRECISE) + _hidden_keys(model, own, count=2)
    total = work.sequences * rows
    # Context for the output projection, and what the gelu reads.
    inner = 0 if work.selective_recompute else model.intermediate_size // work.tensor
    kept += total * (shard + inner) * work.width
    return kept + _attention_kept(model, work, rows, is_gathered=is_gathered)


def _keys_kept(model: ModelConfig, work: Work) -> int:
    """Keys and values, where the attention keeps these and not copies."""
    if work.selective_recompute or not work.backend.keeps_projections:
        return 0
    return 2 * work.tokens * (model.hidden_size // work.tensor) * work.width


def _positions_kept(model: ModelConfig, work: Work) -> int:
    """The dropped-out table and its keys, and its projections."""
    rows, terms = relative_rows(model, work.length), _terms(model)
    if not terms:
        return 0
    kept = 0
    if model.hidden_dropout_prob:
        kept += rows * (model.hidden_size * work.width + _INDEX)
    if work.backend.keeps_projections:
        kept += terms * rows * (model.hidden_size // work.tensor) * work.width
    return kept


def _attention_kept(model: ModelConfig, work: Work, rows: int, *, is_gathered: bool) -> int:
    shape = attention_shape(model, work, rows, is_gathered=is_gathered)
    kept = work.backend.kept_bytes(shape)
    # Queries of the target rows are projected by themselves, and kept.
    if work.backend.keeps_projections and (is_gathered or not work.selective_recompute):
        kept += shape.query_bytes
    return kept


def attention_shape(model: ModelConfig, work: Work, rows: int, *, is_gathered: bool = False) -> AttentionShape:
    """One call of attention with ``rows`` query rows a sequence, as its backend counts it."""
    return AttentionShape(
        sequences=work.sequences,
        rows=rows,
        length=work.length,
        heads=model.num_attention_heads // work.tensor,
        head_size=model.head_size,
        table_rows=relative_rows(model, work.length),
        terms=tuple(model.pos_att_type) if model.relative_attention else (),
        element_bytes=work.width,
        dropout=model.attention_probs_dropout_prob > 0,
        gathered=is_gathered,
    )


def _terms(model: ModelConfig) -> int:
    return len(model.pos_att_type) if model.relative_attention else 0


def _hidden_keys(model: ModelConfig, rows: int, *, count: int) -> int:
    """The key that dropout draws each row from; the backward pass draws again."""
    return count * rows * _INDEX if model.hidden_dropout_prob else 0


def workspace(model: ModelConfig, work: Work) -> int:
    """Gradients of one layer's activations while its backward runs; counted, not measured."""
    vectors = 4 * model.hidden_size + 2 * model.intermediate_size // work.tensor
    if work.selective_recompute:
        vectors += (3 * model.hidden_size + model.intermediate_size) // work.tensor
    total = work.tokens * vectors * work.width
    return total + work.backend.workspace_bytes(attention_shape(model, work, work.length))
