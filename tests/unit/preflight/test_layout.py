"""Layouts that a recipe can and cannot run under."""

from typing import Any

import pytest

from megadeberta.config.load import parse_run_config
from megadeberta.errors import ConfigError
from megadeberta.preflight.layout import topology_of
from megadeberta.topology import Topology
from tests.models import recipe

BLOCK = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}}
CUT_NOTHING = {"pipe_partitioned": False, "grad_partitioned": False}


def _topology(world_size: int, *, deepspeed: dict[str, Any] | None = None, **sections: Any) -> Topology:
    sections["deepspeed"] = BLOCK | (deepspeed or {})
    return topology_of(parse_run_config(recipe(**sections), source="r"), world_size=world_size, source="r.json")


def test_data_parallel_fills_the_ranks() -> None:
    parallel = {"tensor": 2, "pipeline": 2}
    assert _topology(16, parallel=parallel, deepspeed={"pipeline": CUT_NOTHING}) == Topology(2, 4, 2)


@pytest.mark.parametrize(
    ("world_size", "sections", "message"),
    [
        (3, {"parallel": {"tensor": 2}}, r"r\.json: .*parallel.tensor=2 needs a multiple of 2 ranks.*are 3; start 2"),
        (8, {"parallel": {"tensor": 8}}, r"tensor=8 does not divide model.num_attention_heads=4.*nearest.* is 4"),
        (
            2,
            {"parallel": {"tensor": 2}, "deepspeed": {"bf16": {"enabled": True}, "zero_optimization": {"stage": 0}}},
            r"tensor=2 with bf16 and .*stage=0: DeepSpeed .* norm wrongly.*use stage 1",
        ),
        (
            4,
            {"parallel": {"tensor": 4}, "model": {"vocab_size": 31}},
            r"tensor=4 ranks cannot share model.vocab_size=31 rows in units of 8; use at most 3",
        ),
        (
            2,
            {"parallel": {"tensor": 2, "sequence_parallel": True}, "data": {"sequence_length": 127}},
            r"sequence_length=127 to be a multiple of parallel.tensor=2; the nearest is 128",
        ),
        (8, {"parallel": {"pipeline": 8}}, r"parallel.pipeline=8 is more than the \d encoder layers; use at most \d"),
        (2, {"parallel": {"pipeline": 2}, "deepspeed": {"zero_optimization": {"stage": 0}}}, "norm wrongly.*stage 1"),
        (2, {"parallel": {"pipeline": 2}, "deepspeed": {"zero_optimization": {"stage": 2}}}, "refuses it.*use stage 1"),
        (
            2,
            {
                "parallel": {"pipeline": 2},
                "model": {"num_hidden_layers": 4},
                "deepspeed": {"zero_optimization": {"stage": 1, "overlap_comm": True}},
            },
            r"overlap_comm=true with parallel.pipeline=2: DeepSpeed .* turns it off in a pipeline.*leave it out",
        ),
        (4, {"parallel": {"pipeline": 2, "tensor": 2}}, r"needs deepspeed.pipeline.pipe_partitioned=false"),
        (
            2,
            {
                "parallel": {"pipeline": 2},
                "model": {"num_hidden_layers": 4},
                "objective": {"name": "rtd", "rtd": {"decoupled": True}},
            },
            r"decoupled=true makes two updates a step.*use decoupled=false, or parallel.pipeline=1",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_what_can(world_size: int, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _topology(world_size, **sections)
