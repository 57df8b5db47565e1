"""The enhanced mask decoder on gathered rows against the plain form at full length.

Shapes: B batch · L length · Q masked rows · D hidden size.
"""

import pytest
import torch
from torch import Tensor

from megadeberta.model import mask_decoder
from megadeberta.model.attention import QueryStream
from megadeberta.model.attention_backend import select_attention
from megadeberta.model.carry import Carry
from megadeberta.model.whole import WholeModel
from megadeberta.ops.attention.mask import padding_mask
from tests.models import VARIANTS, masked_batch, padded_ids, random_model, tiny_v3

WITH_DECODER = {name: changes for name, changes in VARIANTS.items() if "enhanced_mask_decoder" not in changes}
POSITIONS = torch.tensor([[4, 0, 8], [2, 5, 0], [1, 0, 0]])
LABELS = torch.tensor([[7, 9, 11], [5, 6, 0], [39, 0, 0]])
CLOSE = {"rtol": 0, "atol": 1e-11}


def full_length_decoder(model: WholeModel, ids: Tensor, mask: Tensor, *, passes: int = 2) -> Tensor:
    """Microsoft's form: add positions to all rows, run the whole last layer on all of them; ``[B, L, D]``."""
    carry = model.run(Carry(ids, mask.bool()), [layer for layer in model.layers if not layer.is_head])
    below = _states_below_the_last_layer(model, ids, mask)
    decoder = model.mask_decoder
    query = below + decoder.position_embeddings.weight[: ids.size(1)]
    for _ in range(passes):
        keys = decoder.layer.self_attention.attention.project_keys(below, carry.relative, None)
        query = decoder.layer.attend(QueryStream(query, padding_mask(mask.bool()), None), keys)
    return query


def _states_below_the_last_layer(model: WholeModel, ids: Tensor, mask: Tensor) -> Tensor:
    carry = Carry(ids, mask.bool())
    for layer in model.layers[:-2]:
        carry = model.get_submodule(layer.name)(carry)
    return carry.hidden


def _gathered(rows: Tensor) -> Tensor:
    return torch.stack([rows[b, POSITIONS[b]] for b in range(len(POSITIONS))])


@pytest.mark.parametrize("variant", WITH_DECODER)
def test_gathered_rows_equal_the_full_length_run(variant: str) -> None:
    config = tiny_v3(**WITH_DECODER[variant])
    model = random_model(config)
    ids, mask = padded_ids(config)
    logits = model.mlm_logits(ids, mask, POSITIONS)
    expected = model.mlm_head.logits(_gathered(full_length_decoder(model, ids, mask)))
    slots = LABELS != 0
    torch.testing.assert_close(logits[slots], expected[slots], **CLOSE)


@pytest.mark.parametrize("variant", WITH_DECODER)
def test_loss_and_every_gradient_equal_the_full_length_run(variant: str) -> None:
    config = tiny_v3(**WITH_DECODER[variant])
    model = random_model(config)
    ids, mask = padded_ids(config)
    loss_sum, count = model(ids, mask, POSITIONS, LABELS)[0]["mlm_loss"]
    logits = model.mlm_head.logits(_gathered(full_length_decoder(model, ids, mask)))
    log_probabilities = logits.log_softmax(-1)
    expected = -sum(log_probabilities[b, q, LABELS[b, q]] for b in range(3) for q in range(3) if LABELS[b, q] != 0)
    assert count.item() == 6
    torch.testing.assert_close(loss_sum, expected, **CLOSE)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours, reference = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (loss_sum, expected))
    for name, found, wanted in zip(names, ours, reference, strict=True):
        assert (found is None) == (wanted is None), name
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9, msg=name)


def test_only_masked_rows_of_the_absolute_table_get_gradient() -> None:
    config = tiny_v3()
    model = random_model(config)
    ids, mask = padded_ids(config)
    positions, labels = torch.tensor([[4, 8], [2, 5], [1, 0]]), torch.tensor([[7, 9], [5, 6], [8, 0]])
    loss_sum, _ = model(ids, mask, positions, labels)[0]["mlm_loss"]
    gradient = torch.autograd.grad(loss_sum, model.get_parameter("mask_decoder.position_embeddings.weight"))[0]
    assert gradient.abs().amax(-1).gt(0).nonzero().flatten().tolist() == [1, 2, 4, 5, 8]


def test_empty_slots_change_nothing() -> None:
    config = tiny_v3()
    model = random_model(config)
    ids, mask = padded_ids(config)
    once = model(ids, mask, POSITIONS[:, :2], LABELS[:, :2])
    padded = [torch.cat([part[:, :2], torch.zeros(3, 5, dtype=torch.long)], 1) for part in (POSITIONS, LABELS)]
    twice = model(ids, mask, *padded)
    torch.testing.assert_close(once, twice, **CLOSE)


def test_one_pass_without_positions_is_the_last_layer_and_two_passes_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_v3()
    model = random_model(config)
    with torch.no_grad():
        model.get_parameter("mask_decoder.position_embeddings.weight").zero_()
    ids, mask = padded_ids(config)
    real = mask.bool()
    last_layer = model.mlm_head.logits(model.encode(ids, mask))
    assert (model.mlm_logits(ids, mask) - last_layer)[real].abs().max() > 0.05
    monkeypatch.setattr(mask_decoder, "PASSES", 1)
    torch.testing.assert_close(model.mlm_logits(ids, mask)[real], last_layer[real], **CLOSE)


def test_the_decoder_takes_its_keys_from_the_states_without_positions() -> None:
    """Positions of rows that are not masked have no influence at all."""
    config = tiny_v3()
    model = random_model(config)
    ids, mask = padded_ids(config)
    before = model.mlm_logits(ids, mask, torch.tensor([[4], [2], [1]]))
    with torch.no_grad():
        model.get_parameter("mask_decoder.position_embeddings.weight")[[0, 3, 5, 6, 7, 8]] += 3.0
    assert torch.equal(before, model.mlm_logits(ids, mask, torch.tensor([[4], [2], [1]])))


def test_empty_slots_leave_the_kernels_gradients_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    config = tiny_v3(num_hidden_layers=2, num_attention_heads=1)
    batch, found = masked_batch(config, samples=1), {}
    # The empty slot has the position of a target.
    batch |= {"masked_positions": torch.tensor([[0, 2, 0]]), "masked_labels": torch.tensor([[5, 6, 0]])}
    model = random_model(config).float()
    for backend in ("reference", "triton"):
        select_attention(model, "reference", torch.device("cpu"), rows=backend)
        terms, _ = model(**batch)
        found[backend] = torch.autograd.grad(terms["mlm_loss"][0], list(model.parameters()), allow_unused=True)
    for expected, gradient in zip(found["reference"], found["triton"], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
