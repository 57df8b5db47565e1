"""Small layouts to plan."""

from dataclasses import replace
from typing import Any

from megadeberta.plan.layout import Layout


def layout(**changes: Any) -> Layout:
    """One rank, micro batch 1, unless told otherwise."""
    return replace(Layout(tensor=1, pipeline=1, data=1, zero_stage=0, micro_batch=1, accumulation=1), **changes)
