"""Our kernels with each of the tiles that a trial may choose from, side by side."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch

from gpu.finding import Finding
from gpu.op import Shape, build, draw
from gpu.profiling import record, summarise
from megadeberta.ops.attention.triton_plan import (
    AttentionPlan,
    KernelPlan,
    asked_shapes,
    default_plan,
    plan_chosen,
    variants,
)

WARM_UP, TIMED = 2, 5


def measure(parameters: dict[str, Any]) -> Iterator[Finding]:
    """A finding for each kernel and choice; one that does not compile or run says why."""
    torch.manual_seed(0)
    shape = Shape.of(parameters)
    attend, inputs = build(shape, parameters["variant"]), draw(shape)
    on_gpu = shape.device.type == "cuda"

    def run(times: int = 1) -> None:
        for _ in range(times):
            context = attend(*inputs)
            torch.autograd.grad(context, inputs, torch.ones_like(context))

    with asked_shapes() as asked:
        run()
    usual = default_plan(asked[0])
    for plan in (usual, *variants(asked[0], usual)):
        milliseconds: dict[str, float] = {}
        problem = {}
        try:
            with plan_chosen(asked[0], plan):
                run(WARM_UP if on_gpu else 0)
                count = TIMED if on_gpu else 1
                summary = summarise(record(lambda count=count: run(count), shape.device), runs=count)
            milliseconds = {kernel["name"]: kernel["ms"] for kernel in summary["kernels"]}
        except Exception as error:  # what a compiler or a driver raises has no common class
            problem = {"problem": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        for kernel in fields(AttentionPlan):
            tiles: KernelPlan = getattr(plan, kernel.name)
            if plan is usual or tiles != getattr(usual, kernel.name):
                choice = f"{tiles.rows} x {tiles.columns}, {tiles.warps} warps, {tiles.stages} stages"
                took = next((ms for name, ms in milliseconds.items() if name.endswith(f"{kernel.name}_kernel")), None)
                values = {"ms": took, "default": plan is usual} | problem
                about = {"kernel": kernel.name, "tiles": choice}
                yield Finding(values, about=f"{kernel.name} {choice}", parameters=about)
