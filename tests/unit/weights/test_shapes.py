"""One comparison of found with expected tensors, and the shapes of a discriminator by itself."""

import pytest
import torch

from megadeberta.config.objective import RtdConfig
from megadeberta.errors import CheckpointError
from megadeberta.layers.catalogue import backbone_layers
from megadeberta.layers.heads import RtdHead
from megadeberta.model.whole import WholeModel
from megadeberta.weights.shapes import compare_shapes, discriminator_shapes
from tests.unit.convert.small_models import CASES, small_config

EXPECTED = {"a": (2, 3), "b": (4,)}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"a": (2, 3)},
            r"FILE: 1 of 2 tensors do not fit the recipe's model, first b: expected \(4,\), found none; fix",
        ),
        (EXPECTED | {"c": (1,)}, r"first c: expected no such tensor, found \(1,\); fix it"),
        (EXPECTED | {"a": (3, 2)}, r"first a: expected \(2, 3\), found \(3, 2\); fix it"),
        ({}, r"2 of 2 tensors do not fit the recipe's model, first a"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(found: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        compare_shapes(EXPECTED, found, "FILE", model="the recipe's model", remedy="; fix it")


def test_equal_shapes_pass_in_any_order() -> None:
    compare_shapes(EXPECTED, dict(reversed(EXPECTED.items())), "FILE")


@pytest.mark.parametrize("case", CASES)
def test_shapes_of_a_discriminator_are_those_of_its_modules(case: str) -> None:
    config = RtdConfig().discriminator(small_config(**CASES[case]))
    with torch.device("meta"):
        model = WholeModel([*backbone_layers(config), RtdHead("rtd_head", config)])
    assert discriminator_shapes(config) == {name: tuple(p.shape) for name, p in model.named_parameters()}
