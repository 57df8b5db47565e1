"""What a layer keeps for backward with the kernels, and that recomputing it changes nothing.

Shapes: B batch · L length · D hidden size.
"""

import pytest
import torch
from stopwatch import KeptTensors

from megadeberta.config.model import ModelConfig
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.attention_backend import select_attention, select_recompute, select_residual_norm
from megadeberta.model.carry import Carry, RelativePositions
from megadeberta.model.dropout import Draws, set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.layer import EncoderLayer
from megadeberta.model.whole import WholeModel
from megadeberta.ops.attention.relative_position import rows_by_distance
from tests.models import masked_batch, tiny_v3

CPU = torch.device("cpu")
LENGTH = 16


def _kept_bytes(layers: int, *, selective: bool) -> int:
    """Bytes that v3-base layers keep in bf16 with dropout, by the kernels, parameters left out."""
    config = ModelConfig()
    stack = torch.nn.Sequential(*(EncoderLayer(config) for _ in range(layers))).bfloat16()
    select_attention(stack, "triton", CPU)
    select_residual_norm(stack, "auto", CPU, attention="triton")
    select_recompute(stack, selective)
    rows = rows_by_distance(LENGTH, config.position_buckets, config.relative_span)
    options = {"dtype": torch.bfloat16, "requires_grad": True}
    carry = Carry(
        torch.zeros(1, LENGTH, dtype=torch.int64),
        torch.ones(1, LENGTH, dtype=torch.bool),
        draws=Draws.of(torch.arange(1), LENGTH),
        relative=RelativePositions(
            torch.randn(int(rows[-1] - rows[0]) + 1, config.hidden_size, **options), rows - rows[0]
        ),
        hidden=torch.randn(1, LENGTH, config.hidden_size, **options),
    )
    # What belongs to the relative table is as large for any batch: its share of a token shrinks with the batch.
    table_rows = carry.relative.table.size(0)
    with KeptTensors(wanted=lambda tensor: table_rows not in tensor.shape) as kept:
        last = stack(carry)
        return kept.bytes() - last.hidden.nbytes


@pytest.mark.parametrize(("selective", "most_kib"), [(False, 20.0), (True, 10.0)])
def test_a_layer_keeps_few_bytes_a_token_in_bf16_with_dropout(selective: bool, most_kib: float) -> None:
    # The difference: what is kept once for all layers is in both.
    difference = _kept_bytes(2, selective=selective) - _kept_bytes(1, selective=selective)
    assert difference / LENGTH / 1024 <= most_kib


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_recomputed_activations_give_the_same_gradients_to_the_bit(backend: str) -> None:
    config = tiny_v3(max_position_embeddings=24, dropout=0.1)
    model = WholeModel(token_model_layers(config))
    initialize(model, seed=1, std=0.02)
    set_sites(model.named_modules(), seed=3)
    select_attention(model, backend, CPU)
    select_residual_norm(model, "auto", CPU, attention=backend)
    batch = masked_batch(config, samples=2, length=24)
    gradients = []
    for selective in (False, True):
        select_recompute(model, selective)
        terms, _ = model(**batch)
        model.zero_grad()
        terms["mlm_loss"][0].backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
