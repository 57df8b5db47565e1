"""Causal and prefix attention, packed documents, the convolution and sequences longer than the distances told apart."""

import pytest
import torch
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import RtdConfig
from megadeberta.layers.catalogue import backbone_layers, rtd_layers, token_model_layers
from megadeberta.model.carry import Carry
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from megadeberta.ops.attention.relative_position import rows_by_distance
from tests.models import V1, rtd_logits
from tests.unit.model.golden import IDS, MASK, golden_config


def _encoder(config: ModelConfig) -> WholeModel:
    model = WholeModel(backbone_layers(config)).double().eval()
    initialize(model, seed=2, std=0.3)
    return model


def _mlm(config: ModelConfig) -> WholeModel:
    model = WholeModel(token_model_layers(config)).double().eval()
    initialize(model, seed=2, std=0.3)
    return model


@pytest.mark.parametrize("prefix", [0, 2])
def test_no_token_behind_the_prefix_sees_a_later_one(prefix: int) -> None:
    model = _mlm(golden_config(enhanced_mask_decoder=True))
    real = torch.ones(1, 6, dtype=torch.int64)
    rule = {"prefix_lengths": torch.tensor([prefix])}
    ids = IDS[:1]
    for changed in range(max(1, prefix), 6):
        other = ids.clone()
        other[0, changed] = 10
        for states in (model.encode, model.mlm_logits):
            before, after = states(ids, real, **rule), states(other, real, **rule)
            assert torch.equal(before[:, :changed], after[:, :changed])
            assert not torch.equal(before[:, changed:], after[:, changed:])


def test_tokens_of_the_prefix_see_each_other() -> None:
    model = _encoder(golden_config())
    ids, real, rule = IDS[:1], torch.ones(1, 6, dtype=torch.int64), {"prefix_lengths": torch.tensor([3])}
    other = ids.clone()
    other[0, 2] = 10
    assert not torch.equal(model.encode(ids, real, **rule)[:, 0], model.encode(other, real, **rule)[:, 0])


def test_a_prefix_of_the_whole_length_is_no_rule_at_all() -> None:
    model = _encoder(golden_config())
    whole = model.encode(IDS, MASK, prefix_lengths=torch.tensor([6, 6]))
    torch.testing.assert_close(whole, model.encode(IDS, MASK), rtol=0, atol=0)


def test_a_mask_of_pairs_says_the_same_as_a_causal_prefix() -> None:
    model = _mlm(golden_config(enhanced_mask_decoder=True))
    causal = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 6, 6)
    by_pairs = model.mlm_logits(IDS, MASK, pairs=causal)
    torch.testing.assert_close(
        by_pairs, model.mlm_logits(IDS, MASK, prefix_lengths=torch.tensor([0, 0])), rtol=0, atol=0
    )


PACKED = torch.tensor([[1, 5, 7, 2, 1, 4, 9, 6, 8, 2, 0, 0]])
STARTS = torch.tensor([[0] * 4 + [4] * 8])
PACKED_MASK = (PACKED != 0).long()


def _alone(first: int, last: int) -> tuple[Tensor, Tensor]:
    ids = PACKED[:, first:last]
    return ids, torch.ones_like(ids)


@pytest.mark.parametrize(
    "changes",
    [
        {"enhanced_mask_decoder": True},
        {"enhanced_mask_decoder": True, "conv_kernel_size": 3},
        {"position_biased_input": True, "conv_kernel_size": 5},
        V1,
    ],
    ids=["v3", "v2 with convolution", "input positions", "v1"],
)
def test_a_packed_document_is_what_it_is_alone(changes: dict[str, object]) -> None:
    model = _mlm(golden_config(max_position_embeddings=12, **changes))
    hidden = model.encode(PACKED, PACKED_MASK, document_starts=STARTS)
    logits = model.mlm_logits(PACKED, PACKED_MASK, document_starts=STARTS)
    for first, last in ((0, 4), (4, 10)):
        ids, real = _alone(first, last)
        torch.testing.assert_close(hidden[:, first:last], model.encode(ids, real), rtol=0, atol=1e-12)
        torch.testing.assert_close(logits[:, first:last], model.mlm_logits(ids, real), rtol=0, atol=1e-12)
    assert not torch.allclose(hidden[:, 4:10], model.encode(PACKED, PACKED_MASK)[:, 4:10])


def test_the_replaced_token_head_reads_each_documents_own_first_state() -> None:
    config = golden_config(num_hidden_layers=2, max_position_embeddings=12)
    model = WholeModel(rtd_layers(config, RtdConfig(generator_layers=1))).double().eval()
    initialize(model, seed=2, std=0.3)
    logits = rtd_logits(model, PACKED, PACKED_MASK, STARTS)
    for first, last in ((0, 4), (4, 10)):
        torch.testing.assert_close(logits[:, first:last], rtd_logits(model, *_alone(first, last)), rtol=0, atol=1e-12)


def test_convolution_reads_the_embeddings_and_replaces_the_output_of_layer_0() -> None:
    config = golden_config(conv_kernel_size=3, num_hidden_layers=1)
    model = _encoder(config)
    embedded = model.run(Carry(IDS, MASK.bool()), model.layers[:2])
    branch = model.get_submodule("layer.0.convolution")
    plain = _encoder(golden_config(num_hidden_layers=1))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "convolution" not in k})
    layer_0 = plain.encode(IDS, MASK)
    convolved = torch.nn.functional.conv1d(embedded.hidden.mT, branch.conv.weight, branch.conv.bias, padding=1).mT
    real = MASK.unsqueeze(-1)
    expected = branch.layer_norm(layer_0 + torch.nn.functional.gelu(convolved * real)) * real
    hidden = model.encode(IDS, MASK)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-12)
    assert (hidden[~MASK.bool()] == 0).all()


def test_a_longer_model_keeps_its_buckets_when_the_distance_is_stored() -> None:
    short, longer = golden_config(), golden_config(max_position_embeddings=32, max_relative_positions=8)
    ids = torch.randint(4, 12, (1, 24), generator=torch.Generator().manual_seed(1))
    real = torch.ones_like(ids)
    with torch.no_grad():
        weights = _encoder(short).state_dict()
        assert {k: v.shape for k, v in weights.items()} == {
            k: v.shape for k, v in _encoder(longer).state_dict().items()
        }
        model = _encoder(longer)
        model.load_state_dict(weights)
        base = _encoder(short)
        torch.testing.assert_close(
            model.encode(ids[:, :8], real[:, :8]), base.encode(ids[:, :8], real[:, :8]), rtol=0, atol=0
        )
        # Beyond the farthest distance told apart, nothing changes any more: rows 1 and 7 for all of them.
        torch.testing.assert_close(model.encode(ids, real), base.encode(ids, real), rtol=0, atol=0)
    rows = rows_by_distance(24, 4, 8).tolist()
    assert rows[:17] == [1] * 17 and rows[-17:] == [7] * 17
    assert rows_by_distance(24, 256, 512).tolist() != rows_by_distance(24, 4, 32).tolist()


def test_a_long_sequence_trains_through_the_mask_decoder() -> None:
    model = _mlm(golden_config(enhanced_mask_decoder=True, max_position_embeddings=64, max_relative_positions=8))
    ids = torch.randint(4, 12, (1, 64), generator=torch.Generator().manual_seed(1))
    terms, _ = model(ids, torch.ones_like(ids), torch.tensor([[3, 60]]), torch.tensor([[5, 6]]))
    terms["mlm_loss"][0].backward()
    gradient = model.get_parameter("mask_decoder.position_embeddings.weight").grad
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [3, 60]
    assert model.get_parameter("relative.embedding.weight").grad[0].abs().max() == 0  # row 0 is never read
