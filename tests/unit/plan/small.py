"""A small recipe and layouts of it."""

from dataclasses import replace
from typing import Any

from megadeberta.config.run import RunConfig
from megadeberta.plan.layout import Layout
from tests.unit.config.recipes import recipe


def run_config(*, sequence_length: int = 64, **sections: Any) -> RunConfig:
    """The valid small recipe with values of some sections replaced."""
    data = {"sequence_length": sequence_length}
    return RunConfig.model_validate(recipe(data=data, **sections))


def layout(**changes: Any) -> Layout:
    """One rank, micro batch 1, unless told otherwise."""
    return replace(Layout(tensor=1, pipeline=1, data=1, zero_stage=0, micro_batch=1, accumulation=1), **changes)
