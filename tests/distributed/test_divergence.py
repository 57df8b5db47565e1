"""A value that is not finite stops the run before any weight is changed, under every ZeRO stage."""

import math

import pytest
import torch

from megadeberta.errors import DivergenceError
from tests.distributed.full_weights import gather_weights
from tests.distributed.toy_run import global_batch, share_of, toy_block, toy_engine
from tests.ranks import run_ranks


def _step_with_poison(rank: int, world_size: int, block: dict[str, object], poison: str) -> tuple[str, bool]:
    """One clean step, then one poisoned on the last rank only; (error text, weights unchanged)."""
    stepper, model = toy_engine(block)
    share = share_of(global_batch(0), rank=rank, world_size=world_size, micro_batch=2)
    targets, _ = stepper.share_counts(share, stop_requested=False)
    stepper.train_step(share, step=0, targets=targets, lr=1e-3)
    before = gather_weights(stepper.engine)
    if rank == world_size - 1:
        head = model.get_submodule("mlm_head.dense")
        if poison == "loss":
            head.register_forward_hook(lambda module, inputs, output: output * math.nan)
        else:
            head.register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0] * math.inf,))
    try:
        stepper.train_step(share, step=1, targets=targets, lr=1e-3)
    except DivergenceError as error:
        after = gather_weights(stepper.engine)
        return str(error), all(torch.equal(before[name], after[name]) for name in before)
    return "", False


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)])
def test_not_finite_values_raise_on_all_ranks_and_change_nothing(ranks: int, stage: int, poison: str) -> None:
    outcomes = run_ranks(_step_with_poison, ranks, toy_block(zero_stage=stage, micro_batch=2), poison)
    for text, unchanged in outcomes:
        assert f"step 2: the {poison}" in text
        assert "no weight was changed" in text
        assert unchanged
