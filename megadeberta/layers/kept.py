"""Bytes that attention and feed-forward keep for the backward pass of one micro batch on one rank.

Each term is one tensor that autograd saves; docs/plan.md has the table, and tests/unit/layers/test_kept.py counts the
tensors really saved. Which are kept for attention depends on its backend (training.attention).

Shapes: B batch · L length · D hidden size · I intermediate size · P rows of the relative table in use
T tensor-parallel ranks.
"""

from megadeberta.config.model import ModelConfig
from megadeberta.layers.micro_batch import INDEX_BYTES, PRECISE_BYTES, MicroBatch
from megadeberta.layers.relative import position_terms, relative_rows


def stream_kept(model: ModelConfig, batch: MicroBatch, rows: int, *, own: int, is_gathered: bool = False) -> int:
    """One query stream of ``rows`` rows a sequence through attention and feed-forward.

    own: rows of the micro batch whose replicated vectors this rank keeps. is_gathered: the rows have positions of
    their own in every sequence.
    """
    size, shard = model.hidden_size, model.hidden_size // batch.tensor
    # Around both LayerNorms: two inputs, one output; statistics; the keys of dropout.
    kept = own * (3 * size * batch.element_bytes + 4 * PRECISE_BYTES) + dropout_keys(model, own, count=2)
    total = batch.sequences * rows
    # Context for the output projection, and what the gelu reads.
    inner = 0 if batch.selective_recompute else model.intermediate_size // batch.tensor
    kept += total * (shard + inner) * batch.element_bytes
    return kept + _attention_kept(model, batch, rows, is_gathered=is_gathered)


def keys_kept(model: ModelConfig, batch: MicroBatch) -> int:
    """Keys and values; the reference makes contiguous copies of them instead, in every call."""
    if batch.attention == "reference" or batch.selective_recompute:
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
    if batch.attention != "reference":
        kept += terms * rows * (model.hidden_size // batch.tensor) * batch.element_bytes
    return kept


def _attention_kept(model: ModelConfig, batch: MicroBatch, rows: int, *, is_gathered: bool) -> int:
    heads, shard = model.num_attention_heads // batch.tensor, model.hidden_size // batch.tensor
    queries = batch.sequences * rows
    pairs = heads * queries * batch.length
    query = queries * shard * batch.element_bytes
    if batch.attention != "reference":
        extra = {"triton": heads * queries * PRECISE_BYTES, "cpu": pairs * PRECISE_BYTES, "cpu-lean": 0}[
            batch.attention
        ]
        # Queries of the target rows are projected by themselves, and kept.
        return extra if batch.selective_recompute and not is_gathered else extra + query
    kept = pairs * (PRECISE_BYTES + batch.element_bytes)  # softmax, and what multiplies the values
    if model.attention_probs_dropout_prob:
        kept += pairs * batch.element_bytes
    kept += 2 * queries * batch.length  # which pairs are hidden, for both fills
    terms, table = len(position_terms(model)), relative_rows(model, batch.length)
    if terms:
        kept += INDEX_BYTES * batch.length * (queries if is_gathered else rows)
    named = model.pos_att_type if terms else ()
    if "c2p" in named:
        kept += heads * queries * table * batch.element_bytes + query
    if "p2c" in named:
        kept += heads * batch.tokens * table * batch.element_bytes
    kept += terms * batch.sequences * table * shard * batch.element_bytes
    # Query, key, value and, for the other position term, the key again: contiguous copies.
    copies = 3 if "p2c" in named else 2
    return kept + query + copies * batch.tokens * shard * batch.element_bytes


def dropout_keys(model: ModelConfig, rows: int, *, count: int) -> int:
    """The key that dropout draws each row from; the backward pass draws again."""
    return count * rows * INDEX_BYTES if model.hidden_dropout_prob else 0


def workspace(model: ModelConfig, batch: MicroBatch) -> int:
    """Gradients of one layer's activations while its backward runs; counted, not measured."""
    vectors = 4 * model.hidden_size + 2 * model.intermediate_size // batch.tensor
    if batch.selective_recompute:
        vectors += (3 * model.hidden_size + model.intermediate_size) // batch.tensor
    total = batch.tokens * vectors * batch.element_bytes
    if batch.attention == "reference":
        pairs = model.num_attention_heads // batch.tensor * batch.tokens * batch.length
        total += pairs * 2 * (PRECISE_BYTES + batch.element_bytes)
    return total
