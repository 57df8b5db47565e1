"""The embedding layer: the order of its operations, and what padding sees."""

import pytest
import torch
from torch.nn import functional

from megadeberta.model.carry import Carry
from tests.models import VARIANTS, padded_ids, random_model, tiny_v3


@pytest.mark.parametrize("variant", ["v3", "input positions"])
@pytest.mark.parametrize("width", [16, 6])
def test_embeddings_are_summed_projected_normalized_then_masked(variant: str, width: int) -> None:
    config = tiny_v3(**VARIANTS[variant] | {"embedding_size": width, "enhanced_mask_decoder": False})
    layer = random_model(config).embeddings
    ids, mask = padded_ids(config)
    types = torch.arange(ids.numel()).view(ids.shape) % 2 if config.type_vocab_size else None
    expected = layer.word_embeddings.weight[ids]
    if config.position_biased_input:
        expected = (
            expected + layer.position_embeddings.weight[: ids.size(1)] + layer.token_type_embeddings.weight[types]
        )
    if width != config.hidden_size:
        expected = expected @ layer.embed_proj.weight.T
    norm = layer.layer_norm
    expected = functional.layer_norm(expected, (16,), norm.weight, norm.bias, 1e-7) * mask.unsqueeze(-1)
    found = layer(Carry(ids, mask.bool(), types)).hidden
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_embeddings_at_padding_are_exactly_zero() -> None:
    config = tiny_v3()
    ids, mask = padded_ids(config)
    hidden = random_model(config).embeddings(Carry(ids, mask.bool())).hidden
    assert not hidden[~mask.bool()].any()
    assert (hidden[mask.bool()].abs().amax(-1) > 0).all()


def test_the_padding_row_is_trained_through_the_decoder_only() -> None:
    config = tiny_v3()
    model = random_model(config)
    ids, mask = padded_ids(config)
    loss_sum, _ = model(ids, mask, torch.tensor([[1], [2], [0]]), torch.tensor([[7], [9], [0]]))[0]["mlm_loss"]
    gradient = torch.autograd.grad(loss_sum, model.get_parameter("embeddings.word_embeddings.weight"))[0]
    assert gradient[0].abs().max() > 0
    input_side = torch.autograd.grad(
        model.encode(ids, torch.ones_like(mask)).sum(), model.get_parameter("embeddings.word_embeddings.weight")
    )[0]
    assert not input_side[0].any() and input_side[ids[0, 0]].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_ids_at_padding_never_change_real_tokens(variant: str) -> None:
    config = tiny_v3(**VARIANTS[variant])
    model = random_model(config)
    ids, mask = padded_ids(config)
    real = mask.bool()
    other = torch.where(real, ids, torch.full_like(ids, 17))
    for run in (model.encode, model.mlm_logits):
        assert torch.equal(run(ids, mask)[real], run(other, mask)[real])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_padded_run_equals_each_sequence_alone(variant: str) -> None:
    config = tiny_v3(**VARIANTS[variant])
    model = random_model(config)
    ids, mask = padded_ids(config)
    for run in (model.encode, model.mlm_logits):
        together = run(ids, mask)
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = run(ids[row : row + 1, :length], mask[row : row + 1, :length])
            torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-12)


def test_a_sequence_without_any_real_token_gives_zeros_loss_zero_and_finite_gradients() -> None:
    config = tiny_v3()
    model = random_model(config)
    ids, mask = padded_ids(config)
    mask[1] = 0
    hidden = model.encode(ids, mask)
    assert torch.isfinite(hidden).all()
    loss_sum, count = model(ids, mask, torch.tensor([[1], [0], [1]]), torch.tensor([[7], [0], [9]]))[0]["mlm_loss"]
    assert count.item() == 2 and torch.isfinite(loss_sum)
    gradients = torch.autograd.grad(loss_sum, list(model.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_row_zero_of_the_bucketed_table_gets_no_gradient_in_training() -> None:
    config = tiny_v3()
    model = random_model(config)
    ids, mask = padded_ids(config, lengths=(12, 12))
    positions = torch.arange(12).expand(2, 12)
    loss_sum, _ = model(ids, mask, positions, ids)[0]["mlm_loss"]
    gradient = torch.autograd.grad(loss_sum, model.get_parameter("relative.embedding.weight"))[0]
    assert gradient.shape == (12, 16) and not gradient[0].any()
    assert (gradient[1:].abs().amax(-1) > 0).all(), "every other row is read at full length"
