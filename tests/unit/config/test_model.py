"""Shapes that cannot be built are refused, with what would work."""

from typing import Any

import pytest
from pydantic import ValidationError

from megadeberta.config.model import ModelConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"num_attention_heads": 7},
            r"num_attention_heads=7 does not divide model\.hidden_size=768; choose one of \[3, 4, 6, 8",
        ),
        ({"num_attention_heads": 7, "hidden_size": 2**70}, r"choose one of \[1, 2, 4, 8\]"),
        ({"conv_kernel_size": 4}, r"conv_kernel_size=4 must be odd, or 0"),
        ({"conv_kernel_size": 3, "conv_groups": 5}, r"conv_groups=5 does not divide model\.hidden_size=768"),
        ({"position_buckets": 1}, r"position_buckets=1 must be at least 2"),
        ({"position_buckets": 64, "max_position_embeddings": 33}, r"a longest distance above 32; here it is 32"),
        ({"position_buckets": 64, "max_relative_positions": 20}, r"a longest distance above 32; here it is 19"),
        ({"position_biased_input": True}, r"exclude each other: absolute positions enter either in the decoder or at"),
        ({"num_hidden_layers": 1}, r"enhanced_mask_decoder needs model\.num_hidden_layers >= 2, found 1"),
        ({"embedding_size": 128}, r"embedding_size=128 to hidden states of width 768; make them equal or set"),
        ({"pos_att_type": ["c2c"]}, r"Input should be 'c2p' or 'p2c'"),
        ({"pad_token_id": 1}, r"Input should be 0"),
        ({"hidden_dropout_prob": 1.0}, r"less than 1"),
    ],
)
def test_impossible_shape_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"position_buckets": 64, "max_position_embeddings": 34},
        {"position_buckets": -1},
        {"relative_attention": False, "position_buckets": 1},
        {"enhanced_mask_decoder": False, "num_hidden_layers": 1, "embedding_size": 128, "position_biased_input": True},
        {"conv_kernel_size": 3, "conv_groups": 4},
    ],
)
def test_unusual_shape_that_works_is_accepted(values: dict[str, Any]) -> None:
    ModelConfig(**values)


@pytest.mark.parametrize(
    ("given", "terms"),
    [("p2c|c2p", ("p2c", "c2p")), ("C2P", ("c2p",)), ("none", ()), ("", ()), (["c2p"], ("c2p",))],
)
def test_position_terms_are_read_in_the_form_of_published_configs(given: object, terms: tuple[str, ...]) -> None:
    assert ModelConfig(pos_att_type=given).pos_att_type == terms


def test_other_sizes_follow_from_the_fields() -> None:
    base = ModelConfig()
    assert (base.head_size, base.embedding_width, base.relative_span, base.relative_half_width) == (64, 768, 512, 256)
    linear = ModelConfig(position_buckets=-1, max_relative_positions=128)
    assert (linear.relative_span, linear.relative_half_width) == (128, 128)


def test_sections_cannot_be_changed_after_they_were_checked() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig().hidden_size = 5
