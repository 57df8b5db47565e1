"""What trials of attention backends found, on one device and on all of a job, and the choice that follows. Torch-free.

A choice is a function of the findings alone, so ranks that have the same findings need no further word.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from pydantic import TypeAdapter

from megadeberta.ops.attention.triton_plan import AttentionPlan, KernelPlan, LaunchShape

ENCODER, MASK_DECODER = "encoder", "mask decoder"
"""The roles: a model calls attention with every row of a sequence, and with the target rows only."""

_WORTHWHILE = 0.99
"""A kernel's other tiles are taken if the call then needs at most this fraction of the time: less is noise."""


@dataclass(frozen=True)
class TriedPlan:
    """A plan that differs in one kernel from the one that a backend is tried by first."""

    plan: AttentionPlan
    seconds: float
    """Forward and backward of one call."""


@dataclass(frozen=True)
class Tried:
    """One backend in one role."""

    seconds: float | None
    """Forward and backward of one call; None if it is not right or does not run."""
    finding: str = ""
    """What was wrong, for the log; empty if nothing was."""
    failed: bool = False
    """It did not run, for a reason that the next start may not find."""
    shape: LaunchShape | None = None
    """What its plans are for; None where there is nothing to choose."""
    base: AttentionPlan | None = None
    """The plan that ``seconds`` are of."""
    plans: tuple[TriedPlan, ...] = ()


Findings = dict[str, dict[str, Tried]]
"""By role and backend."""

_FINDINGS = TypeAdapter(Findings)


def to_json(findings: Findings) -> str:
    """As text that ``from_json`` reads."""
    return _FINDINGS.dump_json(findings).decode()


def from_json(text: str | bytes) -> Findings:
    """What ``to_json`` wrote.

    Raises:
        ValueError: it did not write that.
    """
    return _FINDINGS.validate_json(text)


def slowest(found: Sequence[Findings]) -> Findings:
    """What holds on all of several devices: of each time the longest, and what fails on one fails."""
    return {
        role: {name: _slowest([each.get(role, {}).get(name) for each in found]) for name in backends}
        for role, backends in found[0].items()
    }


def _slowest(tried: Sequence[Tried | None]) -> Tried:
    there = [each for each in tried if each is not None]
    failed = next((each for each in there if each.seconds is None), None)
    if failed is not None or len(there) < len(tried):
        return failed or Tried(None, "was not tried on every kind of machine of the job")
    times: dict[AttentionPlan, list[float]] = {}
    for each in there:
        for plan in each.plans:
            times.setdefault(plan.plan, []).append(plan.seconds)
    plans = (TriedPlan(plan, max(seconds)) for plan, seconds in times.items() if len(seconds) == len(there))
    return replace(there[0], seconds=max(each.seconds or 0.0 for each in there), plans=tuple(plans))


@dataclass(frozen=True)
class Pick:
    """What a role takes."""

    backend: str
    plan: AttentionPlan | None = None
    shape: LaunchShape | None = None
    """What the plan is for."""
    seconds: float = math.inf
    """That one call is expected to take, forward and backward."""


def pick(tried: Mapping[str, Tried], rival: str) -> Pick:
    """The fastest backend that is right; ``rival`` where no other is."""
    names = [rival, *(name for name in tried if name != rival)]
    return min((_tuned(name, tried[name]) for name in names), key=lambda each: each.seconds)


def _tuned(backend: str, tried: Tried) -> Pick:
    """With the best tiles of each kernel: they run one after the other, so one does not change what another saves."""
    if tried.seconds is None:
        return Pick(backend)
    if tried.base is None:
        return Pick(backend, seconds=tried.seconds)
    plan, seconds = tried.base, tried.seconds
    for kernel in fields(AttentionPlan):
        own = getattr(tried.base, kernel.name)
        others = [each for each in tried.plans if getattr(each.plan, kernel.name) != own]
        best = min(others, key=lambda each: each.seconds, default=None)
        if best is not None and best.seconds <= _WORTHWHILE * tried.seconds:
            plan = replace(plan, **{kernel.name: getattr(best.plan, kernel.name)})
            seconds *= best.seconds / tried.seconds
    return Pick(backend, plan, tried.shape, seconds)


def compare(chosen: Pick, tried: Mapping[str, Tried]) -> list[str]:
    """For the log: how much faster it is than the others, and what was wrong with those that do not run."""
    parts = []
    for name, each in tried.items():
        if each.finding:
            parts.append(f"{name}: {each.finding}")
        elif name != chosen.backend and each.seconds is not None and math.isfinite(chosen.seconds):
            parts.append(f"{_tuned(name, each).seconds / chosen.seconds:.1f}x faster than {name}")
    return parts


def describe_plan(plan: AttentionPlan) -> str:
    """The tiles of all kernels at once if they are alike, else of each."""
    kernels = {kernel.name: _describe_kernel(getattr(plan, kernel.name)) for kernel in fields(AttentionPlan)}
    texts = dict.fromkeys(kernels.values())
    return next(iter(texts)) if len(texts) == 1 else ", ".join(f"{name} {text}" for name, text in kernels.items())


def _describe_kernel(plan: KernelPlan) -> str:
    stages = "1 stage" if plan.stages == 1 else f"{plan.stages} stages"
    return f"{plan.rows}x{plan.columns} tiles {plan.warps} warps {stages}"
