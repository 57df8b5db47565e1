"""The trial: every attention backend that a run may take, at the run's own shapes, with other tiles too."""

import gc
import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TypeVar

import torch

from megadeberta.config.run import RunConfig
from megadeberta.model.kernel_choice.call import attention_calls, padded
from megadeberta.model.kernel_choice.findings import ENCODER, Findings, Tried, TriedPlan
from megadeberta.model.kernel_choice.residual_check import check_residual_norm
from megadeberta.ops.attention.backends import AUTO, BACKENDS, REFERENCE
from megadeberta.ops.attention.comparison import AttentionCall, AttentionCheck
from megadeberta.ops.attention.compile_ahead import compile_ahead, describe_failure
from megadeberta.ops.attention.timing import Measure, stopwatch
from megadeberta.ops.attention.triton_plan import (
    AttentionPlan,
    LaunchShape,
    asked_shapes,
    default_plan,
    plan_chosen,
    small_plan,
    variants,
)

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)


class RecipeTrial:
    """Trials of one recipe on this rank's device.

    Args:
        dtype: of queries, keys and values.
        patience: seconds after which nothing more is compiled or tried.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        patience: float,
        measure: Measure | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._dtype, self._device = config, dtype, device
        self._patience, self._clock = patience, clock
        self._measure = measure or stopwatch(device)

    @cached_property
    def _roles(self) -> dict[str, "_Role"]:
        calls = attention_calls(self._config, dtype=self._dtype, device=self._device)
        return {name: _Role(call) for name, call in calls.items()}

    def run(self, backends: Sequence[str]) -> Findings:
        """What each backend does in each role: whether it is right, and how long it takes with which tiles.

        Takes seconds, and before them the time of compiling.

        Args:
            backends: first the one that needs no trial, if there are several.
        """
        deadline = self._clock() + self._patience
        missing = {name: BACKENDS[name].reason_not_to_run(self._device.type) for name in backends}
        running = [name for name in backends if not missing[name]]
        if not set(running) & set(backends[1:] or backends):
            return {ENCODER: {name: Tried(None, missing[name]) for name in backends}}
        size = self._config.engine.micro_batch, self._config.data.sequence_length
        self._say("trying %s at %d x %d tokens", " and ".join(running), *size)
        passes = {
            (role, name): partial(its.run_all, name)
            for role, its in self._roles.items()
            for name in running
            if BACKENDS[name].has_plans
        }
        problems = self._compile(passes, deadline)
        found: Findings = {}
        for role in self._roles:
            found[role] = {name: Tried(None, missing[name]) for name in backends}
            for name in running:
                problem = problems.get((role, name))
                found[role][name] = Tried(None, problem, failed=True) if problem else self._try(role, name)
        return self._with_plans(found, deadline)

    def finding(self, role: str, backend: str) -> str:
        """What is wrong with a backend, with the tiles that are chosen now; empty if nothing is."""
        self._free()
        try:
            return self._wrong(role, backend)
        except Exception as error:  # what a compiler or a driver raises has no common class
            return describe_failure(error)

    def close(self) -> None:
        """Give the memory back."""
        self.__dict__.pop("_roles", None)
        self._free()

    def _try(self, role: str, name: str) -> Tried:
        """By the default plan; where that does not run, by one that needs less."""
        with asked_shapes() as asked:
            tried = self._try_once(role, name)
        shape = next((shape for shape in asked if shape.kernels == name), None)
        if shape is None:  # plain torch, or kernels that do not take such calls and let others do them
            return Tried(None, f"leaves such calls to {asked[0].kernels}") if asked else tried
        small = small_plan(shape)
        if not tried.failed or small is None:
            return replace(tried, shape=shape, base=default_plan(shape))
        with plan_chosen(shape, small):
            second = self._try_once(role, name)
        return tried if second.seconds is None else replace(second, shape=shape, base=small)

    def _try_once(self, role: str, name: str) -> Tried:
        self._free()
        try:
            wrong = "" if name == REFERENCE else self._wrong(role, name)
            if wrong:
                return Tried(None, wrong)
            return Tried(self._measure(partial(self._roles[role].run, name)))
        except Exception as error:
            return Tried(None, describe_failure(error), failed=True)

    def _wrong(self, role: str, name: str) -> str:
        wrong = self._roles[role].finding(name)
        norm = BACKENDS[name].residual_norm
        if wrong or role != ENCODER or self._config.training.residual_norm != AUTO or norm == "torch":
            return wrong
        return check_residual_norm(norm, self._config, dtype=self._dtype, device=self._device)

    def _with_plans(self, found: Findings, deadline: float) -> Findings:
        """The findings with the times of all other plans, so far as there is time for them."""
        plans = {
            (role, name, plan): tried.shape
            for role, its in found.items()
            for name, tried in its.items()
            if tried.shape is not None and tried.base is not None and tried.seconds is not None
            for plan in variants(tried.shape, tried.base)
        }
        if plans:
            self._say("trying %d other choices of tiles", len(plans))
        compiling = {key: partial(self._run_by, *key, shape) for key, shape in plans.items()}
        problems = self._compile(compiling, deadline)
        for key, shape in plans.items():
            role, name, plan = key
            seconds = None if key in problems or self._clock() > deadline else self._time(role, name, plan, shape)
            if seconds is not None:
                found[role][name] = replace(
                    found[role][name], plans=(*found[role][name].plans, TriedPlan(plan, seconds))
                )
        return found

    def _run_by(self, role: str, name: str, plan: AttentionPlan, shape: LaunchShape) -> None:
        with plan_chosen(shape, plan):
            self._roles[role].run(name)

    def _time(self, role: str, name: str, plan: AttentionPlan, shape: LaunchShape) -> float | None:
        """Seconds by this plan; None if it is not right or does not run."""
        its = self._roles[role]
        with plan_chosen(shape, plan):
            try:
                return None if its.check.finding(name) else self._measure(partial(its.run, name))
            except Exception:
                return None

    def _compile(self, calls: Mapping[Key, Callable[[], object]], deadline: float) -> dict[Key, str]:
        """Which are not compiled by then, and why. Nothing is compiled ahead for a CPU."""
        if not calls or self._device.type != "cuda":
            return {}
        seconds = max(0.0, deadline - self._clock())
        self._say("compiling for %d calls, %.0f s at most", len(calls), seconds)
        return compile_ahead(calls, seconds=seconds, prepare=partial(torch.cuda.set_device, self._device))

    def _say(self, text: str, *values: object) -> None:
        logger.info(f"attention: {text}", *values)

    def _free(self) -> None:
        """Give what failed before back to the GPU: an exception keeps the tensors of its frames alive in cycles."""
        if self._device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


class _Role:
    """A call, what is made for it once, and its twin with padding where it has no mask: another program."""

    def __init__(self, call: AttentionCall) -> None:
        self._call = call
        self._padded = padded(call) if call.mask is None else None

    @cached_property
    def check(self) -> AttentionCheck:
        return AttentionCheck(self._call)

    @cached_property
    def _padded_check(self) -> AttentionCheck | None:
        return None if self._padded is None else AttentionCheck(self._padded)

    def finding(self, backend: str) -> str:
        """What is wrong with a backend, with or without padding; empty if nothing is."""
        wrong = self.check.finding(backend)
        if wrong or self._padded_check is None:
            return wrong
        wrong = self._padded_check.finding(backend)
        return wrong and f"with padding, {wrong}"

    @cached_property
    def _upstream(self) -> torch.Tensor:
        return torch.randn_like(self._call.tensors["query"].transpose(1, 2)).transpose(1, 2)

    def run(self, backend: str) -> None:
        """Forward and backward."""
        self._call.gradients(backend, self._upstream)

    def run_all(self, backend: str) -> None:
        """``run``, and the same with padding."""
        self.run(backend)
        if self._padded is not None:
            self._padded.gradients(backend, self._upstream)
