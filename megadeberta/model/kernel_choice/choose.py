"""What ``training.attention`` means for a job: one choice for all its ranks, tried once on each kind of machine.

The first rank of every kind of GPU on every node reads the cache, or tries the kernels; the others wait for it at a
collective, whose timeout is their deadline, and then find the compiled kernels on disk. All ranks get all findings and
draw the same conclusion, and each checks it on its own device before the first step.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from megadeberta.host import machine_id
from megadeberta.model.kernel_choice.cache import Facts, KernelCache
from megadeberta.model.kernel_choice.findings import (
    ENCODER,
    MASK_DECODER,
    Findings,
    Pick,
    Tried,
    compare,
    describe_plan,
    from_json,
    pick,
    slowest,
    to_json,
)
from megadeberta.ops.attention.backends import AUTO, BACKENDS, CPU, backends_to_try, resolve
from megadeberta.ops.attention.compile_ahead import describe_failure
from megadeberta.ops.attention.triton_plan import choose_plan

logger = logging.getLogger(__name__)


class Trial(Protocol):
    """See ``RecipeTrial``."""

    def run(self, backends: Sequence[str]) -> Findings: ...

    def finding(self, role: str, backend: str) -> str: ...

    def close(self) -> None: ...


class Ranks(Protocol):
    """See ``TorchCollectives``."""

    @property
    def rank(self) -> int: ...

    def all_gather_text(self, text: str) -> list[str]: ...


class Alone:
    """A job of one rank."""

    rank = 0

    def all_gather_text(self, text: str) -> list[str]:
        return [text]


@dataclass(frozen=True)
class AttentionChoice:
    """What a run takes."""

    backend: str
    rows_backend: str
    """Of the mask decoder, whose rows have positions of their own."""
    taken: str
    """In words and without times, to be compared with that of another start: other kernels round differently."""
    line: str
    """For the log: what was asked for, what it means here and why."""


def choose_attention(
    setting: str,
    device_type: str,
    *,
    trial: Trial,
    facts: Callable[[Sequence[str]], Facts],
    cache: KernelCache,
    ranks: Ranks | None = None,
) -> AttentionChoice:
    """Decide, and set the tiles of the kernels. All-gathers text over the world where there is something to try.

    auto takes a backend that needs a trial, such as the kernels on a GPU, where the trial finds it right and faster
    than what auto takes without one. Of a backend that is named, only the tiles are tried.

    Args:
        facts: what the outcome of trying these backends depends on.

    Raises:
        ConfigError: there is no such backend.
    """
    rival, names = resolve(setting, device_type).name, _names_to_try(setting, device_type)
    line = f"attention {setting}: "
    if not names:
        return AttentionChoice(rival, rival, rival, f"{line}{rival} on {device_type}")
    ranks = ranks or Alone()
    try:
        found, source = _find(names, trial, facts(names), cache, ranks)
        chosen = _choose(found, rival)
        wrong = _check(chosen, names, trial, ranks)
    finally:
        trial.close()
    reasons = _replace_wrong(chosen, wrong, rival if setting == AUTO else None)
    clauses = [_clause(role, each, found[role], device_type) for role, each in chosen.items()]
    return AttentionChoice(
        backend=chosen[ENCODER].backend,
        rows_backend=chosen.get(MASK_DECODER, chosen[ENCODER]).backend,
        taken="; ".join(_taken(role, each) for role, each in chosen.items()),
        line=line + "; ".join([*clauses, *reasons, *([source] if source else [])]),
    )


def _replace_wrong(chosen: dict[str, Pick], wrong: Mapping[str, str], rival: str | None) -> list[str]:
    """Say what is wrong with a choice, and take ``rival`` instead where there is one. Returns the reasons."""
    reasons = []
    for role, problem in wrong.items():
        logger.warning("attention: %s in the %s: %s", chosen[role].backend, role, problem)
        if rival is not None:
            reasons.append(f"{chosen[role].backend}: {problem}")
            chosen[role] = Pick(rival)
    return reasons


def _names_to_try(setting: str, device_type: str) -> list[str]:
    """The backends of a trial, what auto takes without one first; none where there is nothing to decide."""
    if setting != AUTO:
        return [setting] if device_type != CPU and BACKENDS[setting].has_plans else []
    others = [backend.name for backend in backends_to_try(device_type)]
    return [resolve(AUTO, device_type).name, *others] if others else []


def _find(names: Sequence[str], trial: Trial, facts: Facts, cache: KernelCache, ranks: Ranks) -> tuple[Findings, str]:
    """What holds on all kinds of machines of the job, and where this rank has it from."""
    own = json.dumps([machine_id(), dict(facts)])
    is_first = ranks.all_gather_text(own).index(own) == ranks.rank
    found, source = _find_here(names, trial, facts, cache) if is_first else (None, "")
    texts = ranks.all_gather_text("" if found is None else to_json(found))
    return slowest([from_json(text) for text in texts if text]), source


def _find_here(names: Sequence[str], trial: Trial, facts: Facts, cache: KernelCache) -> tuple[Findings, str]:
    """From the cache or by a trial."""
    known, path = cache.read(facts), cache.path(facts)
    if known is not None and ENCODER in known and all(set(its) == set(names) for its in known.values()):
        # While the others wait: should Triton's own cache be empty, one rank compiles and not all of them at once.
        _objections(_choose(known, names[0]), names, trial)
        return known, f"read from {path}"
    found = _try(names, trial)
    candidates = names[1:] or names
    if any(its[name].failed for its in found.values() for name in candidates):
        return found, "to be tried again by the next start"
    return found, f"kept in {path}" if cache.write(facts, found) else ""


def _try(names: Sequence[str], trial: Trial) -> Findings:
    try:
        return trial.run(names)
    except Exception as error:  # the others wait for an answer, and without kernels there is always the reference
        failed = Tried(None, describe_failure(error), failed=True)
        return {role: dict.fromkeys(names, failed) for role in (ENCODER, MASK_DECODER)}


def _choose(found: Findings, rival: str) -> dict[str, Pick]:
    """What each role takes; sets the tiles."""
    chosen = {role: pick(tried, rival) for role, tried in found.items()}
    for each in chosen.values():
        if each.shape is not None and each.plan is not None:
            choose_plan(each.shape, each.plan)
    return chosen


def _objections(chosen: Mapping[str, Pick], names: Sequence[str], trial: Trial) -> dict[str, str]:
    """What is wrong on this device with what needs a trial, by role."""
    candidates = names[1:] or names
    return {role: trial.finding(role, each.backend) for role, each in chosen.items() if each.backend in candidates}


def _check(chosen: Mapping[str, Pick], names: Sequence[str], trial: Trial, ranks: Ranks) -> dict[str, str]:
    """What is wrong with the choice, by role, on any rank."""
    own = _objections(chosen, names, trial)
    if not own:
        return {}
    reports = [json.loads(text) for text in ranks.all_gather_text(json.dumps(own))]
    problems = {}
    for role in own:
        where = [f"{report[role]} on rank {rank}" for rank, report in enumerate(reports) if report[role]]
        if where:
            problems[role] = where[0] if len(where) == 1 else f"{where[0]} and on {len(where) - 1} others"
    return problems


def _taken(role: str, chosen: Pick) -> str:
    what = chosen.backend if role == ENCODER else f"{role} {chosen.backend}"
    return what if chosen.plan is None else f"{what}, {describe_plan(chosen.plan)}"


def _clause(role: str, chosen: Pick, tried: Mapping[str, Tried], device_type: str) -> str:
    what = f"{chosen.backend} on {device_type}" if role == ENCODER else f"{role} {chosen.backend}"
    plan = "" if chosen.plan is None else describe_plan(chosen.plan)
    return ", ".join(text for text in (what, plan, *compare(chosen, tried)) if text)
