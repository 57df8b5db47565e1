"""Steps without and with padding in turn, under every kind of layout: the same, and no stage gets a needless mask."""

from typing import Any
from unittest.mock import patch

import pytest
from torch import Tensor

from megadeberta.model import attention
from tests.distributed.layouts import CLOSE, LENGTH, VARIANTS, Layout, build, global_batch, rows
from tests.models import full_batch
from tests.ranks import run_ranks

PADDED = 1
STEPS = 3
LAYOUTS = [
    Layout("v2-conv", pipeline=2, zero=1, micro_batch=2),
    Layout("rtd-gdes", pipeline=3, zero=1, micro_batch=2, recompute=True),
    Layout("v3", tensor=2, zero=1, micro_batch=2, sequence_parallel=True),
    Layout("rtd-gdes-decoupled", data=2, zero=1, micro_batch=2),
]


def _train(rank: int, world_size: int, layout: Layout) -> tuple[list[float], list[set[bool]]]:
    """The loss of each step, and whether this rank's calls of attention had a mask."""
    assembly = build(layout)
    stepper, attend = assembly.stepper, attention.disentangled_attention
    losses: list[float] = []
    masks: list[set[bool]] = []

    def spy(*content: Tensor, mask: Any, **options: Any) -> Tensor:
        masks[-1].add(mask is not None)
        return attend(*content, mask=mask, **options)

    with patch.object(attention, "disentangled_attention", spy):
        for step in range(STEPS):
            masks.append(set())
            batch = global_batch(step, layout.variant)
            if step != PADDED:
                batch = full_batch(VARIANTS[layout.variant][0], length=LENGTH, step=step)
            size, starts = layout.micro_batch, range(0, layout.batch, layout.micro_batch)
            own = [rows(batch, start, start + size) for start in starts][assembly.data_rank :: layout.data]
            targets, _ = stepper.share_counts(own)
            losses.append(stepper.train_step(own, step=step, targets=targets, lr=layout.lr).loss)
    return losses, masks


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_only_steps_with_padding_have_a_mask_and_losses_are_those_of_one_rank(layout: Layout) -> None:
    ((expected, _),) = run_ranks(_train, 1, Layout(layout.variant))
    for losses, masks in run_ranks(_train, layout.topology.world_size, layout):
        assert losses == pytest.approx(expected, rel=CLOSE)
        assert masks == [{step == PADDED} for step in range(STEPS)]
