"""A generator of another width, and training of one part alone: under any layout what one process does."""

from dataclasses import replace

import pytest

from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, part_of
from tests.distributed.layouts import Layout, assert_equal, run_layout

STEPS = 4
DISCRIMINATOR_ALONE = Layout("rtd-gdes", part=DISCRIMINATOR)
GENERATOR_ALONE = Layout("rtd-nes", part=GENERATOR)
SHARED = {"tensor": 2, "data": 2, "zero": 1, "micro_batch": 2}


@pytest.mark.parametrize(
    "layout",
    [
        Layout("rtd-gdes-narrow", **SHARED),
        pytest.param(Layout("rtd-gdes-narrow", pipeline=2, zero=1, micro_batch=2), marks=pytest.mark.campaign),
        pytest.param(Layout("rtd-nes-narrow", pipeline=2, data=2, zero=1, micro_batch=1), marks=pytest.mark.campaign),
        pytest.param(Layout("rtd-gdes-narrow", data=2, zero=3, micro_batch=2), marks=pytest.mark.campaign),
    ],
    ids=str,
)
def test_a_narrow_generator_trains_alike_under_every_layout(layout: Layout) -> None:
    assert_equal(run_layout(layout, STEPS), run_layout(Layout(layout.variant), STEPS))


@pytest.mark.parametrize(
    "alone", [DISCRIMINATOR_ALONE, pytest.param(GENERATOR_ALONE, marks=pytest.mark.campaign)], ids=lambda o: o.part
)
def test_the_other_part_stays_as_it_is_bit_for_bit(alone: Layout) -> None:
    start, found = run_layout(alone, 0), run_layout(alone, STEPS)
    for name, before in start.parameters.items():
        is_same = bool((found.parameters[name] == before).all())
        # Of a table of vectors the padding row may be all that no sequence reads; a whole one always changes.
        assert is_same == (part_of(name) != alone.part), name


@pytest.mark.campaign
@pytest.mark.parametrize("alone", [DISCRIMINATOR_ALONE, GENERATOR_ALONE], ids=lambda layout: layout.part)
@pytest.mark.parametrize("sizes", [SHARED, {"data": 2, "zero": 2, "micro_batch": 2}], ids=str)
def test_one_part_alone_trains_alike_under_every_layout(alone: Layout, sizes: dict[str, int]) -> None:
    assert_equal(run_layout(replace(alone, **sizes), STEPS), run_layout(alone, STEPS))
