"""Useful operations against the totals of the literature and against a count of real matrix products."""

import pytest

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.layers.flops import layers_flops_per_token, run_flops_per_token

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
XLARGE = {
    "hidden_size": 1536,
    "num_hidden_layers": 48,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "conv_kernel_size": 3,
}


def _model(**values: object) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 128_100, "enhanced_mask_decoder": False, **values})


def flops_per_token(model: ModelConfig, *, sequence_length: int, mask_rate: float) -> float:
    targets = mask_rate * sequence_length
    return layers_flops_per_token(
        token_model_layers(model), sequence_length=sequence_length, targets_per_sequence=targets
    )


@pytest.mark.parametrize(("values", "millions"), [({}, 712), (LARGE, 2233), (XLARGE, 9280)])
def test_totals_of_base_large_and_xlarge_follow_the_formula(values: dict[str, int], millions: int) -> None:
    # 72 L D^2 (+ 18 D^2) + 12 L N D + 12 L R D + m (6 D V + 6 D^2) in millions, with m = 0.15, N = 512, and R = 511:
    # no distance reads row 0.
    total = flops_per_token(_model(**values), sequence_length=512, mask_rate=0.15)
    assert total / 1e6 == pytest.approx(millions, abs=0.5)


def test_short_sequences_use_fewer_table_rows_than_there_are() -> None:
    model = _model(num_hidden_layers=1)
    with_terms = flops_per_token(model, sequence_length=256, mask_rate=0.15)
    without = flops_per_token(_model(num_hidden_layers=1, pos_att_type=()), sequence_length=256, mask_rate=0.15)
    # 385 rows of the log-bucketed table, not the 511 distances.
    assert with_terms - without == pytest.approx(12 * 385 * 768)
    only_c2p = _model(num_hidden_layers=1, pos_att_type=("c2p",))
    one_term = flops_per_token(only_c2p, sequence_length=256, mask_rate=0.15) - without
    assert one_term == pytest.approx(6 * 385 * 768)


def test_absolute_positions_only_have_no_relative_terms() -> None:
    plain = _model(relative_attention=False)
    none = _model(pos_att_type=())
    assert flops_per_token(plain, sequence_length=512, mask_rate=0.15) == flops_per_token(
        none, sequence_length=512, mask_rate=0.15
    )


def test_narrow_word_table_is_projected_and_decoded_in_its_own_width() -> None:
    narrow, wide = _model(embedding_size=128), _model()
    difference = flops_per_token(narrow, sequence_length=512, mask_rate=0.15) - flops_per_token(
        wide, sequence_length=512, mask_rate=0.15
    )
    head = 0.15 * ((768 * 128 + 128 * 128_100) - (768 * 768 + 768 * 128_100))
    assert difference == pytest.approx(6 * (head + 128 * 768))


def test_replaced_token_detection_counts_both_networks_and_both_heads() -> None:
    model, rtd = ModelConfig(), ObjectiveConfig(name="rtd")
    generator = flops_per_token(rtd.rtd.generator(model), sequence_length=512, mask_rate=0.15 * 510 / 512)
    backbone = flops_per_token(rtd.rtd.discriminator(model), sequence_length=512, mask_rate=0.0)
    head = 6 * (768**2 + 768)  # dense and classifier
    assert run_flops_per_token(model, rtd, sequence_length=512) == pytest.approx(generator + backbone + head)


def test_targets_are_those_of_a_full_sequence() -> None:
    model, one = ModelConfig(), {"sequence_length": 512}
    masked = flops_per_token(model, mask_rate=0.15 * 510 / 512, **one)  # [CLS] and [SEP] are no targets
    assert run_flops_per_token(model, ObjectiveConfig(), **one) == pytest.approx(masked)
    every = flops_per_token(model, mask_rate=510 / 512, **one)  # [CLS] predicts, [SEP] is no target
    assert run_flops_per_token(model, ObjectiveConfig(name="ar"), **one) == pytest.approx(every)
    half = ObjectiveConfig(name="mlm_ar", autoregressive={"share": 0.25})
    mean = 0.25 * every + 0.75 * masked
    assert run_flops_per_token(model, half, **one) == pytest.approx(mean)


def test_mask_decoder_counts_masked_rows_of_the_last_layer_only() -> None:
    dense, attention = 12 * 768**2, (2 * 512 + 2 * 511) * 768  # multiply-adds of one layer for one token
    of_keys = 511 * 768  # the position-to-content scores: of every key, whatever attends
    keys_and_values = 2 * 768**2
    head = 0.15 * (768 * 128_100 + 768**2)
    masked_rows = 2 * 0.15 * (dense - keys_and_values + attention - of_keys)
    expected = 6 * (11 * (dense + attention) + keys_and_values + of_keys + masked_rows + head)
    model = _model(enhanced_mask_decoder=True)
    assert flops_per_token(model, sequence_length=512, mask_rate=0.15) == pytest.approx(expected)
