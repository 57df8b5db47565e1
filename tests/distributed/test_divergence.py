"""A value that is not finite changes no weight and is passed over or stops the run, in every precision and layout."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from megadeberta.batch import Batch
from megadeberta.engine.step import Stepper
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
    "tensor parallel": Layout("v3", tensor=2, zero=1),
    "pipeline": Layout("v3", pipeline=2, zero=1, micro_batch=2),
    "two updates": Layout("rtd-gdes-decoupled"),
    "two updates, ZeRO 2": Layout("rtd-gdes-decoupled", zero=2),
}


Outcome = tuple[list[str], str, bool, bool]
"""What was refused, the error of the step that is one too many, whether no weight had changed until then, and whether a
step behind it gives the weights that it gives without them."""


def _poisoned_steps(rank: int, world_size: int, layout: Layout, poisons: tuple[str, ...]) -> Outcome:
    """A clean step, some that are poisoned on the last rank only, one too many of them, and another clean one."""
    stepper = build(replace(layout, skip_limit=len(poisons))).stepper
    batches = micro_batches(layout, 0, stepper.place.data)
    _step(stepper, layout, batches, 0)
    before = _weights(stepper)
    refused, error = [], ""
    for step, poison in enumerate([*poisons, poisons[-1]], start=1):
        hook = _poison(stepper.engine.module, poison) if rank == world_size - 1 else None
        try:
            refused.append(_step(stepper, layout, batches, step))
        except DivergenceError as caught:
            error = str(caught)
        if hook is not None:
            hook.remove()
    unchanged = _equal(before, _weights(stepper))
    assert _step(stepper, layout, batches, 9) == ""
    undisturbed = build(layout).stepper
    for step in (0, 9):
        _step(undisturbed, layout, batches, step)
    return refused, error, unchanged, _equal(_weights(stepper), _weights(undisturbed))


def _step(stepper: Stepper, layout: Layout, batches: list[Batch], step: int) -> str:
    """What was refused; "" for nothing."""
    targets, _ = stepper.share_counts(batches)
    result = stepper.train_step(batches, step=step, targets=targets, lr=layout.lr)
    assert result.applied == (not result.refused)
    return result.refused


def _weights(stepper: Stepper) -> dict[str, Tensor]:
    """Those of this rank, and on rank 0 what the optimizer works on."""
    own = {f"own {name}": weight.detach().clone() for name, weight in stepper.engine.module.named_parameters()}
    return own | gather_weights(stepper.engine)


def _equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


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


_LONG = ("tensor parallel",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.campaign) if name in _LONG else name for name in LAYOUTS]
)
def test_steps_that_are_not_finite_are_passed_over_as_if_they_had_not_been_until_there_are_too_many(name: str) -> None:
    layout = LAYOUTS[name]
    # Ranks that share a model have one loss: what comes behind it cannot differ between them.
    poisons = ("gradient", "loss", "loss alone")[: 3 if layout.topology.data == layout.topology.world_size else 2]
    part = " of the generator" if "decoupled" in layout.variant else ""
    for refused, error, unchanged, same in run_ranks(_poisoned_steps, layout.topology.world_size, layout, poisons):
        for poison, text in zip(poisons, refused, strict=True):
            assert text.startswith(f"the {poison.split()[0]}")
            if "loss" in poison and layout.topology.data == layout.topology.world_size > 1:
                assert f" on rank {layout.topology.world_size - 1}; " in text
            assert text.endswith(f"no weight{part if 'loss' in poison else ''} was changed at this step")
        assert error.startswith(f"step {len(poisons) + 2}: {refused[-1]}, as {len(poisons)} before it were. Lower")
        assert unchanged
        assert same


def test_fp16_overflows_in_silence_and_refuses_a_loss_that_is_not_finite() -> None:
    layout = Layout("v3", zero=1, more=(("fp16", {"enabled": True, "initial_scale_power": 4}),))
    for refused, error, unchanged, _ in run_ranks(_poisoned_steps, 1, layout, ("loss", "loss alone")):
        assert all(text.startswith("the loss (mlm_loss) is") for text in refused)
        assert "or use bf16" in error
        assert unchanged
