"""A plain model becomes this rank's shard of it: parameters are cut by the plan, and the layers that read them swapped.

The model says nothing about parallelism but for a few named places that do nothing (``nn.Identity``, ``JointLinear``,
``Sample.draw``); what is put there communicates. Where a layer itself is replaced, the new one is called like the old.

With sequence parallelism, hidden states between the embeddings and the keys of the last layer hold this rank's tokens
``[B, L/T, D]``; embeddings, convolution, mask decoder and heads compute whole sequences, alike on every rank.

Shapes: B batch · L length · D hidden size · T tensor-parallel ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from megadeberta.layers.cuts import shard_slice
from megadeberta.model.attention import AttentionBlock, DisentangledSelfAttention, FeedForward
from megadeberta.model.dropout import Draws, HiddenDropout
from megadeberta.model.embeddings import Embeddings, RelativeTable, SharedEmbedding, WordTable
from megadeberta.model.mask_decoder import EnhancedMaskDecoder
from megadeberta.model.mlm_head import MlmHead, TiedDecoder
from megadeberta.model.sampling import Sample
from megadeberta.ops.gumbel_max import best_ids
from megadeberta.parallel.tensor.collectives import gather_tokens, own_tokens, sum_backward, take_tokens
from megadeberta.parallel.tensor.linear import (
    ColumnParallel,
    ColumnParallelLinear,
    RowParallelLinear,
    SequenceParallelNorm,
)
from megadeberta.parallel.tensor.sampling import best_of_shards
from megadeberta.parallel.tensor.shard import VocabularyShard
from megadeberta.parallel.tensor.vocabulary import SharedVocabularyTable, VocabularyDecoder, VocabularyTable


@dataclass(frozen=True)
class TensorParallel:
    """How the ranks of ``group`` share a model with a vocabulary of this size."""

    group: ProcessGroup
    vocabulary: int
    sequence_parallel: bool = False

    @property
    def ranks(self) -> int:
        return distributed.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return distributed.get_rank(self.group)

    @property
    def shard(self) -> VocabularyShard:
        return VocabularyShard(self.vocabulary, self.group)


def apply_tensor_parallel(model: nn.Module, plan: TensorParallel) -> None:
    """Make ``model``, the whole one or a pipeline stage, this rank's shard of it, in place.

    Its parameters must be whole or on the meta device.

    No collective. Every parameter keeps its name. One that was cut is a new ``nn.Parameter`` with two attributes:
    ``shard``, the ``ShardSlice`` that it holds, and ``tensor_model_parallel``, by which DeepSpeed 0.19.8 knows that its
    gradient norm is not that of the other ranks (runtime/utils.py ``is_model_parallel_parameter``).
    """
    _cut_parameters(model, plan)
    modules = list(model.modules())
    decoders = [module for module in modules if isinstance(module, EnhancedMaskDecoder)]
    on_rows = {id(inner) for decoder in decoders for inner in decoder.modules()}
    for module in modules:
        swap = _SWAPS.get(type(module))
        if swap is not None:
            swap(module, replace(plan, sequence_parallel=False) if id(module) in on_rows else plan)
    if plan.sequence_parallel:
        _place_borders(modules, plan.group)


def _place_borders(modules: Sequence[nn.Module], group: ProcessGroup) -> None:
    """Gather and divide the tokens at the insertion points of the modules that compute whole sequences."""
    for module in modules:
        for name, operator in (("all_tokens", gather_tokens), ("own_tokens", take_tokens)):
            if hasattr(module, name):
                setattr(module, name, _Border(operator, group))


def register_shard(kind: type[nn.Module], swap: Callable[[Any, TensorParallel], None]) -> None:
    """Say how modules of a new type become this rank's shard; a module of ``plugins`` calls it.

    One that has nothing to divide needs none: it computes the same on every rank.
    """
    _SWAPS[kind] = swap


def _cut_parameters(model: nn.Module, plan: TensorParallel) -> None:
    """Every parameter that the plan cuts becomes its slice; parameters that are one stay one."""
    cut: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in cut:
                cut[id(parameter)] = _cut(f"{path}.{name}", parameter, plan)
            setattr(module, name, cut[id(parameter)])


def _cut(name: str, parameter: nn.Parameter, plan: TensorParallel) -> nn.Parameter:
    part = shard_slice(name, parameter.shape, tensor=plan.ranks, rank=plan.rank)
    if part is None:
        return parameter
    mine: Any = nn.Parameter(parameter.detach().narrow(part.dim, part.start, part.stop - part.start).clone())
    mine.shard = part
    mine.tensor_model_parallel = True
    return mine


def _shard_attention(attention: DisentangledSelfAttention, plan: TensorParallel) -> None:
    attention.project = ColumnParallel(group=plan.group, sequence_parallel=plan.sequence_parallel)
    heads = attention.query_proj.weight.size(0) // attention.head_size
    attention.dropout.first_head = plan.rank * heads


def _shard_attention_block(block: AttentionBlock, plan: TensorParallel) -> None:
    block.dense = RowParallelLinear(block.dense, group=plan.group, sequence_parallel=plan.sequence_parallel)
    _share_tokens(block, plan)


def _shard_feed_forward(block: FeedForward, plan: TensorParallel) -> None:
    block.up = ColumnParallelLinear(block.up, group=plan.group, sequence_parallel=plan.sequence_parallel)
    block.down = RowParallelLinear(block.down, group=plan.group, sequence_parallel=plan.sequence_parallel)
    _share_tokens(block, plan)


def _share_tokens(block: AttentionBlock | FeedForward, plan: TensorParallel) -> None:
    if plan.sequence_parallel:
        block.dropout = _SequenceParallelDropout(block.dropout, plan.group)
        block.layer_norm = SequenceParallelNorm(block.layer_norm, group=plan.group)


def _shard_embeddings(embeddings: Embeddings, plan: TensorParallel) -> None:
    words = embeddings.word_embeddings
    if isinstance(words, SharedEmbedding):
        embeddings.word_embeddings = SharedVocabularyTable(words, shard=plan.shard)
    else:
        assert isinstance(words, WordTable)
        embeddings.word_embeddings = VocabularyTable(words, shard=plan.shard)


def _shard_relative(relative: RelativeTable, plan: TensorParallel) -> None:
    # Each rank's layers project the table for their own heads. Summed here, the gradient travels once for all layers.
    relative.into_shards = _Border(sum_backward, plan.group)


def _shard_mlm_head(head: MlmHead, plan: TensorParallel) -> None:
    assert isinstance(head.decoder, TiedDecoder)
    head.decoder = VocabularyDecoder(head.decoder, shard=plan.shard)


def _shard_sampling(sample: Sample, plan: TensorParallel) -> None:
    first_id = plan.shard.rows.start

    def draw(logits: Tensor, keys: Tensor, **options: Any) -> Tensor:
        values, ids = best_ids(logits, keys, first_id=first_id, **options)
        return best_of_shards(values, ids, plan.group)

    sample.draw = draw


_SWAPS: dict[type[nn.Module], Callable[[Any, TensorParallel], None]] = {
    DisentangledSelfAttention: _shard_attention,
    AttentionBlock: _shard_attention_block,
    FeedForward: _shard_feed_forward,
    Embeddings: _shard_embeddings,
    RelativeTable: _shard_relative,
    MlmHead: _shard_mlm_head,
    Sample: _shard_sampling,
}


class _Border(nn.Module):
    """One of the operators of ``collectives`` over one group, as a module that stands in a place of the model."""

    def __init__(self, operator: Callable[[Tensor, ProcessGroup], Tensor], group: ProcessGroup) -> None:
        super().__init__()
        self.operator = operator
        self.group = group

    def forward(self, tensor: Tensor) -> Tensor:
        return self.operator(tensor, self.group)


class _SequenceParallelDropout(HiddenDropout):
    """Dropout of this rank's tokens ``[B, L/T, D]``, as they would be dropped in the whole sequence."""

    def __init__(self, whole: HiddenDropout, group: ProcessGroup) -> None:
        super().__init__(whole.probability)
        self.site = whole.site
        self.group = group

    def keys(self, draws: Draws | None) -> tuple[Tensor | None, int]:
        if draws is not None:
            draws = replace(draws, rows=own_tokens(draws.rows, self.group))
        return super().keys(draws)
