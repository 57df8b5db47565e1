"""A value that is not finite stops the run before it changes a weight, in every precision and ZeRO stage."""

import math

import pytest
import torch
from torch import nn

from megadeberta.errors import DivergenceError
from tests.distributed.full_weights import gather_weights
from tests.distributed.layouts import Layout, build, micro_batches
from tests.ranks import run_ranks

BF16 = ("bf16", {"enabled": True})
LAYOUTS = {
    "one rank": Layout("v3", micro_batch=2),
    **{f"ZeRO {stage}": Layout("v3", data=2, zero=stage, micro_batch=2) for stage in (0, 1, 2, 3)},
    "bf16": Layout("v3", zero=1, more=(BF16,)),
    "bf16, ZeRO 2": Layout("v3", data=2, zero=2, micro_batch=2, more=(BF16,)),
    "bf16, fp32 gradients": Layout("v3", zero=1, more=(BF16, ("data_types", {"grad_accum_dtype": "fp32"}))),
    "two updates": Layout("rtd-gdes-decoupled"),
    "two updates, ZeRO 2": Layout("rtd-gdes-decoupled", zero=2),
}


def _poisoned_steps(rank: int, world_size: int, layout: Layout, poisons: tuple[str, ...]) -> list[tuple[str, bool]]:
    """One clean step, then some that are poisoned on the last rank only; of each (error text, weights unchanged)."""
    stepper = build(layout).stepper
    batches = micro_batches(layout, 0, rank)
    targets, _ = stepper.share_counts(batches)
    stepper.train_step(batches, step=0, targets=targets, lr=layout.lr)
    before = gather_weights(stepper.engine)
    found = []
    for step, poison in enumerate(poisons, start=1):
        hook = _poison(stepper.engine.module, poison) if rank == world_size - 1 else None
        with pytest.raises(DivergenceError) as caught:
            stepper.train_step(batches, step=step, targets=targets, lr=layout.lr)
        if hook is not None:
            hook.remove()
        after = gather_weights(stepper.engine)
        found.append((str(caught.value), all(torch.equal(before[name], after[name]) for name in before)))
    return found


def _poison(model: nn.Module, kind: str) -> torch.utils.hooks.RemovableHandle:
    (head,) = (module for name, module in model.named_modules() if name.endswith("mlm_head.dense"))
    if kind == "loss":
        return head.register_forward_hook(lambda module, inputs, output: output * math.nan)
    if kind == "loss alone":
        return model.register_forward_hook(_infinite_loss)
    return head.register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0] * math.inf,))


def _infinite_loss(module: nn.Module, inputs: object, output: tuple) -> tuple:
    """An infinite loss with the gradient of a finite one: no optimizer refuses it by itself."""
    terms, more = output
    if "mlm_loss" not in terms:
        return output
    loss, count = terms["mlm_loss"]
    return terms | {"mlm_loss": (loss + math.inf, count)}, more


@pytest.mark.parametrize("name", LAYOUTS)
def test_not_finite_values_raise_on_all_ranks_and_change_nothing(name: str) -> None:
    layout = LAYOUTS[name]
    poisons = ("gradient", "loss", "loss alone")
    part = " of the generator" if "decoupled" in layout.variant else ""
    for found in run_ranks(_poisoned_steps, layout.data, layout, poisons):
        for step, (poison, (text, unchanged)) in enumerate(zip(poisons, found, strict=True), start=2):
            assert f"step {step}: the {poison.split()[0]}" in text
            assert f"no weight{part if 'loss' in poison else ''} was changed" in text
            assert unchanged, poison


def test_fp16_overflows_in_silence_and_stops_at_a_loss_that_is_not_finite() -> None:
    layout = Layout("v3", zero=1, more=(("fp16", {"enabled": True, "initial_scale_power": 4}),))
    for found in run_ranks(_poisoned_steps, 1, layout, ("loss", "loss alone")):
        assert all("the loss (mlm_loss)" in text and unchanged for text, unchanged in found)
