"""Sizes of published models, which parameters a configuration has, the head and the convolution."""

import pytest
import torch
from torch.nn import functional

from megadeberta.config.model import ModelConfig
from megadeberta.layers.catalogue import backbone_layers, token_model_layers
from megadeberta.model.attention import QueryStream
from megadeberta.model.carry import Carry
from megadeberta.model.whole import WholeModel
from tests.models import V1, padded_ids, random_model, tiny_v3

V1_BASE = V1 | {"vocab_size": 50265}
XLARGE = {"hidden_size": 1536, "num_attention_heads": 24, "intermediate_size": 6144, "conv_kernel_size": 3}
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
# Sizes, backbone parameters, and parameters with the prediction head, as transformers counts them.
PUBLISHED = {
    "deberta-base": (V1_BASE, 138_601_728, 139_244_121),
    "deberta-large": (V1_BASE | LARGE | {"num_hidden_layers": 24}, 405_163_008, 406_264_921),
    "deberta-xlarge": (V1_BASE | LARGE | {"num_hidden_layers": 48}, 757_804_032, 758_905_945),
    "deberta-v2-xlarge": (XLARGE | {"num_hidden_layers": 24}, 884_593_152, 887_085_156),
    "deberta-v2-xxlarge": (XLARGE | {"num_hidden_layers": 48}, 1_564_549_632, 1_567_041_636),
    "deberta-v3-xsmall": (
        {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        70_682_112,
        70_958_820,
    ),
    "deberta-v3-small": ({"num_hidden_layers": 6}, 141_304_320, 142_024_548),
    "deberta-v3-base": ({}, 183_831_552, 184_551_780),
    "deberta-v3-large": (LARGE | {"num_hidden_layers": 24}, 434_012_160, 435_191_908),
    "mdeberta-v3-base": ({"vocab_size": 251_000}, 278_218_752, 279_061_880),
}


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_exactly_those_of_published_models(name: str) -> None:
    changes, backbone, with_head = PUBLISHED[name]
    config = ModelConfig.model_validate({"enhanced_mask_decoder": False} | changes)
    with torch.device("meta"):
        assert _count(WholeModel(backbone_layers(config))) == backbone
        assert _count(WholeModel(token_model_layers(config))) == with_head
        decoder = WholeModel(token_model_layers(ModelConfig.model_validate(changes)))
    assert _count(decoder) == with_head + config.max_position_embeddings * config.hidden_size


def test_shared_projections_have_no_parameters_of_their_own_and_use_the_content_biases() -> None:
    shared = {name for name, _ in random_model(tiny_v3()).named_parameters()}
    separate = {name for name, _ in random_model(tiny_v3(share_att_key=False)).named_parameters()}
    assert not any("pos_" in name for name in shared)
    attention = [name for name in separate - shared if name.startswith("layer.0.")]
    parts = ("pos_key_proj.weight", "pos_key_proj.bias", "pos_query_proj.weight", "pos_query_proj.bias")
    assert sorted(attention) == sorted(f"layer.0.self_attention.attention.{part}" for part in parts)

    config = tiny_v3()
    model = random_model(config)
    ids, mask = padded_ids(config)
    carry = model.relative(model.embeddings(Carry(ids, mask.bool())))
    attention = model.get_submodule("layer.0.self_attention.attention")
    projected = attention.project_keys(carry.hidden, carry.relative, None)
    for found, linear in (
        (projected.position.key, attention.key_proj),
        (projected.position.query, attention.query_proj),
    ):
        expected = carry.relative.table @ linear.weight.T + linear.bias  # [P, D]
        assert linear.bias.abs().max() > 0.1
        torch.testing.assert_close(found.transpose(0, 1).flatten(1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"pos_att_type": "c2p", "share_att_key": False}, "pos_query_proj"),
        ({"pos_att_type": "p2c", "share_att_key": False}, "pos_key_proj"),
        ({"relative_attention": False}, "relative"),
        ({"norm_rel_ebd": "none"}, "relative.layer_norm"),
        ({"enhanced_mask_decoder": False}, "mask_decoder"),
        ({"key_bias": False}, "key_proj.bias"),
    ],
)
def test_what_a_configuration_leaves_out_has_no_parameters(changes: dict, absent: str) -> None:
    names = [name for name, _ in random_model(tiny_v3(**changes)).named_parameters()]
    assert not [name for name in names if absent in name]
    full = [name for name, _ in random_model(tiny_v3(share_att_key=False)).named_parameters()]
    assert [name for name in full if absent in name]


def test_the_decoder_of_the_head_is_the_word_table_itself() -> None:
    model = random_model(tiny_v3())
    assert model.mlm_head.decoder.weight is model.embeddings.word_embeddings.weight
    names = [name for name, _ in model.named_parameters()]
    assert "mlm_head.decoder.weight" not in names and "mlm_head.decoder.bias" in names


def test_the_head_is_dense_gelu_norm_and_the_word_table() -> None:
    config = tiny_v3(enhanced_mask_decoder=False, embedding_size=6)
    model = random_model(config)
    hidden = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    head = model.mlm_head
    inner = functional.gelu(hidden @ head.dense.weight.T + head.dense.bias)  # [4, 6]
    inner = functional.layer_norm(inner, (6,), head.layer_norm.weight, head.layer_norm.bias, 1e-7)
    expected = inner @ model.embeddings.word_embeddings.weight.T + head.decoder.bias
    torch.testing.assert_close(head.logits(hidden), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_the_convolution_reads_the_embeddings_and_replaces_the_first_layers_output(activation: str) -> None:
    config = tiny_v3(conv_kernel_size=3, conv_act=activation)
    model = random_model(config)
    ids, mask = padded_ids(config)
    carry = model.relative(model.embeddings(Carry(ids, mask.bool())))
    layer = model.get_submodule("layer.0")
    plain = layer.attend(QueryStream(carry.hidden, carry.visibility, None), layer.project_keys(carry))
    branch = layer.convolution
    expected = torch.zeros_like(plain)
    for b in range(ids.size(0)):
        for i in range(int(mask[b].sum())):
            total = branch.conv.bias.clone()
            for tap in range(3):
                if 0 <= i + tap - 1 < ids.size(1):
                    total = total + branch.conv.weight[:, :, tap] @ carry.hidden[b, i + tap - 1]
            total = functional.gelu(total) if activation == "gelu" else total.tanh()
            norm = branch.layer_norm
            expected[b, i] = functional.layer_norm(plain[b, i] + total, (16,), norm.weight, norm.bias, 1e-7)
    found = layer(carry).hidden
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    assert not found[~mask.bool()].any()
    names = [name for name, _ in model.named_parameters() if "convolution" in name]
    assert len(names) == 4 and all(name.startswith("layer.0.") for name in names)


def test_loss_is_a_sum_so_micro_batches_add_up() -> None:
    config = tiny_v3()
    model = random_model(config)
    ids, mask = padded_ids(config)
    positions, labels = torch.tensor([[4, 8], [2, 5], [1, 0]]), torch.tensor([[7, 9], [5, 6], [8, 0]])
    whole, _ = model(ids, mask, positions, labels)
    parts = [model(*(part[row : row + 1] for part in (ids, mask, positions, labels)))[0] for row in range(3)]
    for name, term in whole.items():
        for found, pieces in zip(term, zip(*(part[name] for part in parts), strict=True), strict=True):
            torch.testing.assert_close(found, sum(pieces), rtol=0, atol=1e-11)
        assert term[1].item() == 5


def test_correct_predictions_are_counted_at_targets_only() -> None:
    config = tiny_v3()
    model = random_model(config)
    ids, mask = padded_ids(config)
    positions = torch.tensor([[4, 8], [2, 5], [1, 0]])
    best = model.mlm_logits(ids, mask, positions)[..., 1:].argmax(-1) + 1
    labels = best.clone()
    labels[0, 0] = best[0, 0] % (config.vocab_size - 1) + 1
    labels[2, 1] = 0
    logits = model.mlm_logits(ids, mask, positions)
    reached = (logits.argmax(-1) == labels) & (labels != 0)
    correct, count = model(ids, mask, positions, labels)[0]["mlm_accuracy"]
    assert (count.item(), correct.item()) == (5, int(reached.sum())) and reached.sum() >= 3
