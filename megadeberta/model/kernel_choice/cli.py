"""``megadeberta kernels``: which attention kernels run here, and what earlier trials chose."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megadeberta.config.waiting import Waiting
from megadeberta.ops.attention.backends import BACKENDS

if TYPE_CHECKING:
    from megadeberta.model.kernel_choice.findings import Tried


def kernels(
    clear: Annotated[
        bool, typer.Option("--clear", help="Forget what trials found: the next start tries again")
    ] = False,
) -> None:
    """Show the attention backends, whether each one runs on this machine, and what trials on GPUs have chosen.

    A run with training.attention=auto on a GPU tries the kernels at its own micro batch, length and mask, and keeps
    what it found in a folder of the user (MEGADEBERTA_KERNEL_CACHE moves it, or is "off"). There is one row for each
    GPU and shape. Forget them to have all tried again, such as after a new driver.

    Example: megadeberta kernels --clear
    """
    from megadeberta.model.kernel_choice.cache import VARIABLE, KernelCache

    cache, console = KernelCache.of(os.environ), Console(soft_wrap=True)
    if clear:
        console.print(f"{cache.clear()} choices forgotten in {cache.folder}", markup=False, highlight=False)
        return
    with Waiting("loading torch"):
        backends = _backends()
    console.print(backends)
    if cache.folder is None:
        console.print(f"choices are not kept: {VARIABLE}=off", markup=False, highlight=False)
        return
    chosen = Table("device", "shape", "versions", "encoder", "mask decoder", "file")
    for path, entry in cache.entries():
        facts = (entry.facts.get(name, "") for name in ("device", "shape", "versions"))
        roles = (_choice(entry.findings.get(role, {})) for role in ("encoder", "mask decoder"))
        chosen.add_row(*map(escape, (*facts, *roles, path.name)))
    console.print(chosen if chosen.row_count else escape(f"no choices in {cache.folder}"), highlight=False)


def _backends() -> Table:
    import torch

    here = "cuda" if torch.cuda.is_available() else "cpu"
    table = Table("training.attention", "what it is", f"auto on {here}", f"runs on {here} here")
    for name, backend in BACKENDS.items():
        reason = backend.reason_not_to_run(here)
        kind = "cpu" if here == "cpu" else "gpu"
        auto = ("after a trial" if backend.needs_trial else "yes") if kind in backend.auto_on else ""
        table.add_row(*map(escape, (name, backend.summary, auto, f"no: {reason}" if reason else "yes")))
    return table


def _choice(tried: "Mapping[str, Tried]") -> str:
    from megadeberta.model.kernel_choice.findings import compare, describe_plan, pick

    if not tried:
        return ""
    chosen = pick(tried, next(iter(tried)))
    plan = "" if chosen.plan is None else describe_plan(chosen.plan)
    return ", ".join(text for text in (chosen.backend, plan, *compare(chosen, tried)) if text)
