"""The arithmetic of overlaps against plain slicing, for any two ways to cut a parameter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from megadeberta.checkpoint.fragments import Fragment, TensorSlice, overlaps
from tests.unit.checkpoint.cuts import cut, values_of

_SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)


@st.composite
def _two_cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Fragment], list[Fragment]]:
    """A shape and two layouts of it, sliced along the same dimension or not at all."""
    shape = draw(_SHAPES)
    dim = draw(st.integers(0, len(shape) - 1))
    layouts = []
    for _ in range(2):
        is_sliced = draw(st.booleans())
        borders = st.lists(st.integers(1, shape[dim] - 1), unique=True) if shape[dim] > 1 else st.just([])
        held = cut(
            "table",
            shape,
            dim=dim if is_sliced else None,
            bounds=tuple(sorted(draw(borders))),
            data_parallel=draw(st.integers(1, 5)),
            shift=draw(st.integers(0, 9)),
        )
        layouts.append([fragment for fragments in held for fragment in fragments])
    return shape, *layouts


@settings(max_examples=300, deadline=None)
@given(_two_cuts())
def test_any_layout_takes_every_element_from_any_other_exactly_once(
    case: tuple[tuple[int, ...], list[Fragment], list[Fragment]],
) -> None:
    shape, saved, wanted = case
    full = np.arange(np.prod(shape)).reshape(shape)
    for target in wanted:
        taken = np.zeros(target.size, dtype=int)
        found = np.full(target.size, -1)
        for source in saved:
            values = values_of(source, full)
            for rows, columns, start, step, to, stride in overlaps(source, target):
                for row in range(rows):
                    here = slice(to + row * stride, to + row * stride + columns)
                    taken[here] += 1
                    found[here] = values[start + row * step : start + row * step + columns]
        assert (taken == 1).all()
        assert (found == values_of(target, full)).all()


def test_a_fragment_outside_of_its_parameter_is_refused() -> None:
    for wrong in (
        {"stop": 13},
        {"start": 4, "stop": 4},
        {"start": -1},
        {"slice": TensorSlice(0, 1, 4), "stop": 4},
        {"slice": TensorSlice(2, 0, 1), "stop": 1},
        {"slice": TensorSlice(1, 0, 2), "stop": 7},
    ):
        with pytest.raises(ValidationError, match=r"is not inside|greater than or equal to 0"):
            Fragment(**({"name": "table", "shape": (3, 4), "start": 0, "stop": 6} | wrong))


def test_fragments_of_different_parameters_or_dimensions_have_no_overlap_to_ask_for() -> None:
    whole = Fragment(name="table", shape=(4, 4), start=0, stop=16)
    rows = Fragment(name="table", shape=(4, 4), slice=TensorSlice(0, 0, 2), start=0, stop=8)
    columns = Fragment(name="table", shape=(4, 4), slice=TensorSlice(1, 0, 2), start=0, stop=8)
    assert sum(overlap.size for overlap in overlaps(whole, columns)) == 8
    for other in (columns, whole.model_copy(update={"name": "chair"}), whole.model_copy(update={"shape": (2, 8)})):
        with pytest.raises(ValueError, match=r"table \[4, 4\] \(\[0:2\] along 0\) and .* have no common plane"):
            list(overlaps(rows, other))
