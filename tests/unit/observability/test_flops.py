"""Useful operations against the totals of the literature and against a count of real matrix products."""

import pytest

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.observability.flops import device_peak_flops, flops_per_token, run_flops_per_token
from megadeberta.observability.gemm_rate import measure_gemm_rate

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


@pytest.mark.parametrize(("values", "millions"), [({}, 712), (LARGE, 2233), (XLARGE, 9281)])
def test_totals_of_base_large_and_xlarge_at_512_tokens(values: dict[str, int], millions: int) -> None:
    # 72 L D^2 (+ 18 D^2) + 12 L N D + 12 L R D + m (6 D V + 6 D^2), N = R = 512, m = 0.15; totals in whole millions.
    total = flops_per_token(_model(**values), sequence_length=512, mask_rate=0.15)
    assert total / 1e6 == pytest.approx(millions, abs=0.5)


def test_short_sequences_use_fewer_table_rows_than_there_are() -> None:
    model = _model(num_hidden_layers=1)
    with_terms = flops_per_token(model, sequence_length=128, mask_rate=0.15)
    without = flops_per_token(_model(num_hidden_layers=1, pos_att_type=()), sequence_length=128, mask_rate=0.15)
    assert with_terms - without == pytest.approx(12 * 255 * 768)
    only_c2p = _model(num_hidden_layers=1, pos_att_type=("c2p",))
    one_term = flops_per_token(only_c2p, sequence_length=128, mask_rate=0.15) - without
    assert one_term == pytest.approx(6 * 255 * 768)


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


def test_replaced_token_detection_counts_both_networks_and_reading_left_to_right_every_token() -> None:
    model = ModelConfig()
    one = {"sequence_length": 512}
    rtd = ObjectiveConfig(name="rtd")
    generator = flops_per_token(rtd.rtd.generator(model), mask_rate=0.15, **one)
    discriminator = flops_per_token(rtd.rtd.discriminator(model), mask_rate=0.0, **one)
    assert run_flops_per_token(model, rtd, **one) == generator + discriminator
    assert run_flops_per_token(model, ObjectiveConfig(), **one) == flops_per_token(model, mask_rate=0.15, **one)
    half = ObjectiveConfig(name="mlm_ar", autoregressive={"share": 0.5})
    every = run_flops_per_token(model, ObjectiveConfig(name="ar"), **one)
    assert every == flops_per_token(model, mask_rate=1.0, **one)
    assert run_flops_per_token(model, half, **one) == flops_per_token(model, mask_rate=0.5 + 0.5 * 0.15, **one)


def test_mask_decoder_counts_masked_rows_of_the_last_layer_only() -> None:
    dense, attention = 12 * 768**2, 4 * 512 * 768  # multiply-adds of one layer for one token
    keys_and_values = 2 * 768**2
    head = 0.15 * (768 * 128_100 + 768**2)
    masked_rows = 2 * 0.15 * (dense - keys_and_values + attention)
    expected = 6 * (11 * (dense + attention) + keys_and_values + masked_rows + head)
    model = _model(enhanced_mask_decoder=True)
    assert flops_per_token(model, sequence_length=512, mask_rate=0.15) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("Tesla V100-SXM2-32GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_peak_of_a_known_device(name: str, tera: float) -> None:
    assert device_peak_flops(name) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "cpu", "NVIDIA X1000", ""]
)
def test_unknown_or_partial_device_has_no_peak(name: str) -> None:
    assert device_peak_flops(name) is None


def test_measured_rate_is_plausible_and_measured_once() -> None:
    rate = measure_gemm_rate()
    assert 1e8 < rate < 1e14  # from an emulated core to more than any CPU of today
    assert measure_gemm_rate() == rate
