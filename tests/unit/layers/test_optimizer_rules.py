"""Which rule updates what, and what it keeps."""

import math

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.training import OptimizerConfig
from megadeberta.layers.optimizer_rules import moments_per_element, rule_of
from megadeberta.layers.shapes import parameter_shapes
from tests.models import tiny_v3

SHAPES = parameter_shapes(tiny_v3(), ObjectiveConfig())


def test_muon_takes_the_matrices_of_attention_and_feed_forward_alone() -> None:
    matrices = {name for name in SHAPES if rule_of(name, "muon") == "muon"}
    inside = {
        name for name in SHAPES if len(SHAPES[name]) == 2 and ("self_attention" in name or "feed_forward" in name)
    }
    assert matrices == inside
    assert len(matrices) == 3 * 6  # query, key, value, output, up and down of three layers, one in the mask decoder


def test_an_element_keeps_two_moments_and_one_under_muon() -> None:
    assert moments_per_element(SHAPES, OptimizerConfig(lr=1e-3)) == 2
    assert moments_per_element(SHAPES, OptimizerConfig(lr=1e-3, name="lamb")) == 2
    total = sum(math.prod(shape) for shape in SHAPES.values())
    matrices = sum(math.prod(shape) for name, shape in SHAPES.items() if rule_of(name, "muon") == "muon")
    found = moments_per_element(SHAPES, OptimizerConfig(lr=1e-3, name="muon"))
    assert found * total == 2 * total - matrices
