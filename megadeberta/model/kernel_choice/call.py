"""The calls of attention that a recipe makes, with random values: what a trial runs.

Shapes: B micro batch · L length · Q query rows · N heads of this rank · H head size · P rows of the windowed table.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megadeberta.batch import FIELDS, batch_fields, without_full_masks
from megadeberta.config.run import RunConfig
from megadeberta.layers.mask_decoder import MaskDecoder
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.layers.recipe import micro_batch_of
from megadeberta.layers.relative import position_terms
from megadeberta.model.carry import Carry
from megadeberta.model.dropout import AttentionDropout
from megadeberta.model.kernel_choice.findings import ENCODER, MASK_DECODER
from megadeberta.ops.attention.comparison import AttentionCall
from megadeberta.ops.attention.mask import padding_mask
from megadeberta.ops.attention.relative_position import rows_by_distance

_DOCUMENTS = 4
"""Of a sequence, where the recipe packs them."""


def attention_calls(config: RunConfig, *, dtype: torch.dtype, device: torch.device) -> dict[str, AttentionCall]:
    """The calls of a recipe by role, at its own micro batch, length, heads of one rank, mask and dropout.

    As in pre-training, no sequence is padded, so that without another rule there is no mask (see ``padded``). Packed
    documents have a quarter of the length on average.
    """
    model, micro_batch = config.model, micro_batch_of(config)
    fields = batch_fields(config.data, config.objective)
    (batch,) = without_full_masks([{name: _field(name, config, micro_batch) for name in fields}])
    carry = Carry.of_batch({name: tensor.to(device) for name, tensor in batch.items()})
    heads = model.num_attention_heads // micro_batch.tensor
    draw = _Draw(micro_batch, heads, model.head_size, dtype, torch.Generator(device).manual_seed(0))
    length, terms = micro_batch.length, position_terms(model)
    rows, tables = None, {}
    if terms:
        by_distance = rows_by_distance(length, model.position_buckets, model.relative_span)
        rows = (by_distance - by_distance[0]).to(device)
        names = {"c2p": "position key", "p2c": "position query"}
        tables = {names[term]: draw.table(int(by_distance[-1] - by_distance[0]) + 1) for term in terms}
    keys = {"key": draw.hidden(length), "value": draw.hidden(length)}
    dropout = AttentionDropout(model.attention_probs_dropout_prob)
    encoder = AttentionCall(
        {"query": draw.hidden(length), **keys, **tables}, rows, None, carry.visibility, dropout(carry.draws)
    )
    calls = {ENCODER: encoder}
    if any(layer.kind == MaskDecoder.kind for layer in list_layers(model, config.objective)):
        positions = carry.field("masked_positions")
        calls[MASK_DECODER] = replace(
            encoder,
            tensors={"query": draw.hidden(positions.size(1)), **keys, **tables},
            query_positions=positions,
            mask=None if carry.visibility is None else carry.visibility.at_rows(positions),
            dropout=dropout(None if carry.draws is None else carry.draws.at(positions, stream=0)),
        )
    return calls


def padded(call: AttentionCall) -> AttentionCall:
    """A call without a mask as the last batch of an epoch and validation make it: the second half is padding."""
    key, positions = call.tensors["key"], call.query_positions
    length = key.size(2)
    mask = padding_mask((torch.arange(length, device=key.device) < (length + 1) // 2).expand(key.size(0), -1))
    return replace(call, mask=mask if positions is None else mask.at_rows(positions))


@dataclass(frozen=True)
class _Draw:
    """Random values, the same every time on one kind of device, where the projections of a model have them."""

    micro_batch: MicroBatch
    heads: int
    head_size: int
    dtype: torch.dtype
    generator: torch.Generator

    def hidden(self, rows: int) -> Tensor:
        """``[B, N, rows, H]``, a view of ``[B, rows, N H]``."""
        return self._normal(self.micro_batch.sequences, rows).transpose(1, 2)

    def table(self, rows: int) -> Tensor:
        """``[N, P, H]``, a view of ``[P, N H]``."""
        return self._normal(rows).transpose(0, 1)

    def _normal(self, *rows: int) -> Tensor:
        shape, device = (*rows, self.heads, self.head_size), self.generator.device
        return torch.randn(shape, generator=self.generator, device=device, dtype=self.dtype)


def _field(name: str, config: RunConfig, micro_batch: MicroBatch) -> Tensor:
    """A field of a batch without padding, int64; zeros where attention does not read it."""
    sequences, length, slots = micro_batch.sequences, micro_batch.length, micro_batch.slots
    if name == "attention_mask":
        return torch.ones(sequences, length, dtype=torch.int64)
    if name == "sample_numbers":
        return torch.arange(sequences)
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(sequences, length, generator=generator).argsort()  # [B, L], a permutation of each sequence
    if name == "masked_positions":
        return places[:, :slots].sort().values  # in every slot another one: results of copies are nobody's matter
    if name == "document_starts":
        starts = torch.zeros(sequences, length, dtype=torch.int64)
        begins = places[:, : min(_DOCUMENTS, length) - 1]
        return starts.scatter(1, begins, begins).cummax(1).values
    if name == "prefix_lengths":
        weights = objective_of(config.objective).loss_weights(config.objective)
        causal = config.objective.autoregressive.share if "mlm_loss" in weights else 1.0
        return torch.where(torch.arange(sequences) < round(causal * sequences), 0, length)
    shape = {"token": (sequences, length), "slot": (sequences, slots), "sample": (sequences,)}[FIELDS[name].axis]
    return torch.zeros(shape, dtype=torch.int64)
