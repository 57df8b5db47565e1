"""Pipelined = whole: losses, gradient norms, validation and every parameter after 20 steps, dropout on."""

import pytest
import torch

from megadeberta.engine.step import Flags
from megadeberta.errors import DivergenceError
from tests.distributed.layouts import (
    Layout,
    assert_equal,
    build,
    global_batch,
    micro_batches,
    run_alone,
    run_layout,
)
from tests.ranks import run_ranks

LAYOUTS = [
    pytest.param(Layout("v3", pipeline=2, zero=1, micro_batch=1), marks=pytest.mark.campaign),
    Layout("v1", pipeline=2, zero=1, micro_batch=2),
    Layout("v2-conv-packed", pipeline=2, data=2, zero=1, micro_batch=1),
    Layout("prefix", pipeline=3, zero=1, micro_batch=2, recompute=True),
    Layout("rtd-gdes", pipeline=4, zero=1, micro_batch=1),
    Layout("rtd-gdes", pipeline=2, data=2, zero=1, micro_batch=2, recompute=True),
    pytest.param(Layout("rtd-es", pipeline=3, zero=1, micro_batch=1), marks=pytest.mark.campaign),
    Layout("v3", pipeline=2, tensor=2, zero=1, micro_batch=2),
    Layout("rtd-gdes", pipeline=2, tensor=2, zero=1, micro_batch=1, sequence_parallel=True, recompute=True),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_pipeline_trains_like_the_whole_model(layout: Layout) -> None:
    assert_equal(run_layout(layout), run_alone(layout.variant))


PRECISIONS = {
    "bf16": (("bf16", {"enabled": True}),),
    "bf16, gradients too": (
        ("bf16", {"enabled": True}),
        ("data_types", {"grad_accum_dtype": "bf16"}),
        ("communication_data_type", "bf16"),
    ),
    "fp16": (("fp16", {"enabled": True, "initial_scale_power": 8}),),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_of_shared_tables_add_up_in_every_precision(precision: str) -> None:
    one, two = (
        run_layout(Layout("rtd-gdes", pipeline=stages, zero=1, micro_batch=2, more=PRECISIONS[precision]), steps=3)
        for stages in (1, 2)
    )
    # Sums of the shares of two stages, rounded to 8 bits; without one of the shares the norm is some percent off.
    assert two.losses == pytest.approx(one.losses, rel=1e-3)
    assert two.norms == pytest.approx(one.norms, rel=5e-3)


def _train_poisoned(rank: int, world_size: int, layout: Layout) -> tuple[str, bool]:
    """What the step says when a weight of the first stage is not a number, and whether it changed the weights."""
    assembly = build(layout)
    stepper, reads = assembly.stepper, assembly.reads_data
    stage = stepper.engine.module.stage
    if reads:
        with torch.no_grad():
            next(stage.parameters()).fill_(torch.nan)
    before = [parameter.detach().clone() for parameter in stage.parameters()]
    batches = micro_batches(layout, 0, 0) if reads else []
    targets, _ = stepper.share_counts(batches)
    with pytest.raises(DivergenceError) as caught:
        stepper.train_step(batches, step=0, targets=targets, lr=1e-3)
    same = [torch.equal(p, b) or bool(b.isnan().all()) for p, b in zip(stage.parameters(), before, strict=True)]
    return str(caught.value), all(same)


def test_every_stage_stops_before_the_update_when_the_loss_is_not_finite() -> None:
    found = run_ranks(_train_poisoned, 2, Layout("v3", pipeline=2, zero=1, micro_batch=2))
    for message, unchanged in found:
        assert message.startswith("step 1: the loss (mlm_loss) is nan on rank 1; no weight was changed at this step.")
        assert unchanged


def _share_counts(rank: int, world_size: int, layout: Layout) -> tuple[dict[str, int], Flags]:
    assembly = build(layout)
    batch = global_batch(0, layout.variant)
    # Every rank of the first stage reads; the shards of a tensor group read the same.
    return assembly.stepper.share_counts(
        [batch] if assembly.reads_data else [], Flags(stops=rank == world_size - 1, writes=rank == 1)
    )


def test_targets_are_counted_once_and_any_rank_may_ask_to_stop_and_say_that_it_writes() -> None:
    batch = global_batch(0, "rtd-gdes")
    expected = {"mlm_loss": int((batch["masked_labels"] != 0).sum()), "rtd_loss": int(batch["attention_mask"].sum())}
    layout = Layout("rtd-gdes", pipeline=2, tensor=2, zero=1)
    assert run_ranks(_share_counts, 4, layout) == [(expected, Flags(stops=True, writes=True))] * 4
