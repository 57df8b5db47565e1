"""A value that is not finite stops the run before any weight is changed, under every ZeRO stage."""

import math

import pytest
import torch

from megadeberta.errors import DivergenceError
from tests.distributed.full_weights import gather_weights
from tests.distributed.layouts import Layout, build, micro_batches
from tests.ranks import run_ranks


def _step_with_poison(rank: int, world_size: int, layout: Layout, poison: str) -> tuple[str, bool]:
    """One clean step, then one poisoned on the last rank only; (error text, weights unchanged)."""
    stepper = build(layout).stepper
    batches = micro_batches(layout, 0, rank)
    targets, _ = stepper.share_counts(batches, stop_requested=False)
    stepper.train_step(batches, step=0, targets=targets, lr=layout.lr)
    before = gather_weights(stepper.engine)
    if rank == world_size - 1:
        head = stepper.engine.module.get_submodule("mlm_head.dense")
        if poison == "loss":
            head.register_forward_hook(lambda module, inputs, output: output * math.nan)
        else:
            head.register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0] * math.inf,))
    try:
        stepper.train_step(batches, step=1, targets=targets, lr=layout.lr)
    except DivergenceError as error:
        after = gather_weights(stepper.engine)
        return str(error), all(torch.equal(before[name], after[name]) for name in before)
    return "", False


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)])
def test_not_finite_values_raise_on_all_ranks_and_change_nothing(ranks: int, stage: int, poison: str) -> None:
    layout = Layout("v3", data=ranks, zero=stage, micro_batch=2)
    for text, unchanged in run_ranks(_step_with_poison, ranks, layout, poison):
        assert f"step 2: the {poison}" in text
        assert "no weight was changed" in text
        assert unchanged
