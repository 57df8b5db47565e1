"""The peers of the attention op, each with the arguments of ours.

Shapes: B batch · N heads · L length · H head size · D = N H · P rows of the table.
"""

from collections.abc import Callable

import torch
from peers import BERT, EAGER
from torch import Tensor, nn
from torch.nn import functional

from gpu.op import Attend, Shape


def plain(shape: Shape) -> Attend:
    """Attention without position terms: what they cost is the ratio to it."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, dropout_p=shape.dropout)

    return attend


class _Given(nn.Module):
    """In the place of a projection: what it would give is known."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Tensor | None = None

    def forward(self, _: Tensor) -> Tensor:
        assert self.output is not None
        return self.output


def transformers_eager(shape: Shape) -> Attend:
    """transformers' DisentangledSelfAttention without its projections."""
    from transformers import DebertaV2Config
    from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, build_relative_position

    config = DebertaV2Config(
        hidden_size=shape.heads * shape.head_size,
        num_attention_heads=shape.heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=shape.dropout,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=shape.buckets,
        max_relative_positions=shape.span,
        share_att_key=False,
    )
    module = DisentangledSelfAttention(config).train()
    names = ("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj")
    for name in names:
        setattr(module, name, _Given())
    ids = torch.empty(1, shape.length, 1, device=shape.device)
    distances = build_relative_position(ids, ids, shape.buckets, shape.span)
    mask = torch.ones(shape.batch, 1, shape.length, shape.length, dtype=torch.bool, device=shape.device)

    def attend(*inputs: Tensor) -> Tensor:
        for name, tensor in zip(names, inputs, strict=True):
            rows = tensor.transpose(-3, -2).flatten(-2)  # [B, L, D] or [P, D]
            getattr(module, name).output = rows if rows.dim() == 3 else rows.unsqueeze(0)
        hidden, table = module.query_proj.output, module.pos_key_proj.output
        context = module(hidden, mask, relative_pos=distances, rel_embeddings=table[0])[0]
        return context.unflatten(-1, (shape.heads, shape.head_size)).transpose(1, 2)

    return attend


def flashdeberta(shape: Shape) -> Attend:
    """flashdeberta 0.0.8; it has no attention dropout."""
    from flashdeberta.ops.flash_attention import flash_attention_with_disentangled

    scale = (3 * shape.head_size) ** -0.5

    def attend(query: Tensor, key: Tensor, value: Tensor, position_key: Tensor, position_query: Tensor) -> Tensor:
        tables = (position_key.unsqueeze(0), position_query.unsqueeze(0))  # [1, N, P, H]
        return flash_attention_with_disentangled(
            query, key, value, None, *tables, False, scale, shape.buckets, shape.span
        )

    return attend


def disentangled_flash(shape: Shape) -> Attend:
    """disentangled-flash 1.1.1, whose dropout is another draw than ours."""
    from disentangled_flash.position import SharedPositionPlanCache, pad_position_table
    from disentangled_flash.training._kernels import training_attention

    plans = SharedPositionPlanCache(
        position_buckets=shape.buckets, max_relative_positions=shape.span, position_embedding_size=shape.buckets
    )
    plan = plans.compact(shape.length, shape.device)
    mask = torch.ones(shape.batch, shape.length, dtype=torch.bool, device=shape.device)
    options = {
        "score_scale": (3 * shape.head_size) ** -0.5,
        "has_padding": False,
        "strict_fp32": True,
        "dropout_p": shape.dropout,
        "gradient_band": plan.gradient_band,
    }

    def attend(query: Tensor, key: Tensor, value: Tensor, position_key: Tensor, position_query: Tensor) -> Tensor:
        tables = (pad_position_table(table[:, plan.active_slots]) for table in (position_key, position_query))
        context = training_attention(query, key, value, *tables, plan.delta_to_local, mask, **options)
        return context.view(shape.batch, shape.length, shape.heads, shape.head_size).transpose(1, 2)

    return attend


PEERS: dict[str, Callable[[Shape], Attend]] = {
    "disentangled-flash": disentangled_flash,
    "flashdeberta": flashdeberta,
    EAGER: transformers_eager,
    BERT: plain,
}
"""By the names of ``peers.py``."""
