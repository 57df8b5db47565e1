"""Our kernels one by one: what each takes, and what it was compiled to as it is launched."""

from collections.abc import Iterator
from typing import Any

import torch

from gpu.finding import Finding
from gpu.launches import recorded_launches
from gpu.op import Shape, build, draw
from gpu.profiling import record, summarise

WARM_UP = 3


def measure(parameters: dict[str, Any]) -> Iterator[Finding]:
    """One finding for each kernel of forward and backward, and one for all of them together."""
    torch.manual_seed(0)
    shape = Shape.of(parameters)
    attend, inputs = build(shape, parameters["variant"]), draw(shape)

    def run() -> None:
        context = attend(*inputs)
        torch.autograd.grad(context, inputs, torch.ones_like(context))

    with recorded_launches() as launches:
        run()
    for _ in range(WARM_UP if shape.device.type == "cuda" else 0):  # the clock rises first
        run()
    summary = summarise(record(run, shape.device))
    yield Finding({key: value for key, value in summary.items() if key not in ("waits", "gaps")})
    times = {kernel["name"]: kernel for kernel in summary["kernels"]}
    for name, facts in launches.items():
        timed = next((kernel for found, kernel in times.items() if found.split("<")[0].endswith(name)), None)
        measured = {} if timed is None else {"ms": timed["ms"], "launches": timed["count"]}
        yield Finding(measured | facts, about=name, kind="kernel", parameters={"kernel": name})
