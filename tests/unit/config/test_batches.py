"""Batches that grow in stages: what each step has, and what is counted from that."""

import pytest

from megadeberta.config.batches import BatchSizes, BatchStage
from megadeberta.errors import ConfigError
from megadeberta.preflight.validate import validate_run
from tests.models import run_config

SIZES = BatchSizes((BatchStage(steps=3, sequences=4), BatchStage(steps=2, sequences=8)), 12)
EACH = [4, 4, 4, 8, 8, 12, 12, 12, 12]


def test_every_step_has_the_batch_of_its_stage_and_sums_agree_with_counting() -> None:
    assert [SIZES.at(step) for step in range(len(EACH))] == EACH
    for steps in range(len(EACH) + 1):
        assert SIZES.samples(steps) == sum(EACH[:steps])
        assert [size for count, size in SIZES.stretches(steps) for _ in range(count)] == EACH[:steps]
    for samples in range(sum(EACH)):
        whole = max(steps for steps in range(len(EACH) + 1) if sum(EACH[:steps]) <= samples)
        assert SIZES.steps_within(samples) == whole
    assert (SIZES.sizes, SIZES.divisor) == ([4, 8, 12], 4)
    assert SIZES.describe() == "4 for 3 steps, 8 for 2 steps, then 12"


def test_a_run_without_stages_has_one_batch() -> None:
    sizes = BatchSizes((), 16)
    assert (sizes.at(0), sizes.at(10**9), sizes.samples(7), sizes.steps_within(111)) == (16, 16, 112, 6)
    assert (sizes.sizes, sizes.divisor, sizes.describe()) == ([16], 16, "16")


def test_a_stage_that_the_ranks_cannot_share_is_refused_with_the_nearest_that_works() -> None:
    config = run_config(training={"batch_stages": [{"steps": 5, "sequences": 8}, {"steps": 5, "sequences": 10}]})
    with pytest.raises(ConfigError, match=r"stages.1.sequences=10 is not a multiple of .*=4 x 1 .*that works is 8$"):
        validate_run(config, world_size=1, source="recipe")
    validate_run(config.with_deepspeed({"train_micro_batch_size_per_gpu": 2}), world_size=1, source="recipe")
