"""Bytes that attention and feed-forward keep for the backward pass of one micro batch on one rank.

Each term is one tensor that autograd saves; docs/plan.md has the table, and tests/unit/layers/test_kept.py counts the
tensors really saved. Which are kept for attention its backend says itself (``ops/attention/backends.py``).

Shapes: B batch · L length · D hidden size · I intermediate size · P rows of the relative table in use
T tensor-parallel ranks.
"""

from megadeberta.config.model import ModelConfig
from megadeberta.layers.micro_batch import INDEX_BYTES, PRECISE_BYTES, MicroBatch
from megadeberta.layers.relative import position_terms, relative_rows
from megadeberta.ops.attention.backends import AttentionShape, find_backend


def stream_kept(model: ModelConfig, batch: MicroBatch, rows: int, *, own: int, is_gathered: bool = False) -> int:
    """One query stream through attention and feed-forward.

    Args:
        rows: of the stream, per sequence.
        own: rows of the micro batch whose replicated vectors this rank keeps.
        is_gathered: the rows have positions of their own in every sequence.
    """
    size, shard = model.hidden_size, model.hidden_size // batch.tensor
    # Around both LayerNorms: two inputs, one output; statistics.
    kept = own * (3 * size * batch.element_bytes + 4 * PRECISE_BYTES)
    # Context for the output projection, and what the gelu reads.
    inner = 0 if batch.selective_recompute else model.intermediate_size // batch.tensor
    kept += batch.sequences * rows * (shard + inner) * batch.element_bytes
    return kept + _attention_kept(model, batch, rows, is_gathered=is_gathered)


def keys_kept(model: ModelConfig, batch: MicroBatch) -> int:
    """Keys and values, where the attention keeps these and not copies."""
    if batch.selective_recompute or not find_backend(batch.attention).keeps_projections:
        return 0
    return 2 * batch.tokens * (model.hidden_size // batch.tensor) * batch.element_bytes


def positions_kept(model: ModelConfig, batch: MicroBatch) -> int:
    """The dropped-out table and its keys, and its projections."""
    rows, terms = relative_rows(model, batch.length), len(position_terms(model))
    if not terms:
        return 0
    kept = 0
    if model.hidden_dropout_prob:
        kept += rows * (model.hidden_size * batch.element_bytes + INDEX_BYTES)
    if find_backend(batch.attention).keeps_projections:
        kept += terms * rows * (model.hidden_size // batch.tensor) * batch.element_bytes
    return kept


def dropout_keys(model: ModelConfig, rows: int) -> int:
    """The words that all dropouts of these rows draw from; the backward pass draws again."""
    return rows * INDEX_BYTES if model.hidden_dropout_prob else 0


def workspace(model: ModelConfig, batch: MicroBatch) -> int:
    """Gradients of one layer's activations while its backward runs; counted, not measured."""
    vectors = 4 * model.hidden_size + 2 * model.intermediate_size // batch.tensor
    if batch.selective_recompute:
        vectors += (3 * model.hidden_size + model.intermediate_size) // batch.tensor
    shape = _attention_shape(model, batch, batch.length)
    return batch.tokens * vectors * batch.element_bytes + find_backend(batch.attention).workspace_bytes(shape)


def _attention_kept(model: ModelConfig, batch: MicroBatch, rows: int, *, is_gathered: bool) -> int:
    shape, backend = _attention_shape(model, batch, rows, is_gathered=is_gathered), find_backend(batch.attention)
    kept = backend.kept_bytes(shape)
    # Queries of the target rows are projected by themselves, and kept.
    if backend.keeps_projections and (is_gathered or not batch.selective_recompute):
        kept += shape.query_bytes
    return kept


def _attention_shape(model: ModelConfig, batch: MicroBatch, rows: int, *, is_gathered: bool = False) -> AttentionShape:
    """One call of attention with ``rows`` query rows per sequence, as its backend counts it."""
    return AttentionShape(
        sequences=batch.sequences,
        rows=rows,
        length=batch.length,
        heads=model.num_attention_heads // batch.tensor,
        head_size=model.head_size,
        table_rows=relative_rows(model, batch.length),
        terms=position_terms(model),
        element_bytes=batch.element_bytes,
        dropout=model.attention_probs_dropout_prob > 0,
        gathered=is_gathered,
    )
