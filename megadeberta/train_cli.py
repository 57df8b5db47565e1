"""`megadeberta train`: one rank of a run, started by any launcher or alone. Torch is imported after the checks."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megadeberta.config.cli import RecipeArgument
from megadeberta.config.redact import recipe_json
from megadeberta.config.run import RunConfig
from megadeberta.config.terminal import table_console
from megadeberta.config.waiting import Waiting
from megadeberta.errors import ConfigError
from megadeberta.memory import machine_memory
from megadeberta.ops.attention.backends import planned_backend
from megadeberta.plan.layout import Layout
from megadeberta.plan.memory import RankMemory, checkpoint_copy_bytes, fullest, memory_of_stages
from megadeberta.plan.report import gib, stages_table
from megadeberta.plan.stages import Recipe
from megadeberta.preflight.run import PreparedRun, check_recipe, lacks_data, prepare_run
from megadeberta.preflight.summary import data_rows, show, summary
from megadeberta.rank.devices import check_accelerator, count_local_devices
from megadeberta.rank.ending import expect_group_threads
from megadeberta.rank.environment import RankEnvironment, apply, detect_ranks
from megadeberta.rank.extensions import prepare_extensions_dir
from megadeberta.rank.heartbeat import Heartbeat, beat_seconds


def train(
    recipe: RecipeArgument,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. --set optimizer.lr=5e-4; may be repeated")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe and data, print a summary and exit")] = False,
    as_ranks: Annotated[
        int | None, typer.Option("--ranks", min=1, help="With --dry-run: as if started on this many ranks")
    ] = None,
    show_recipe: Annotated[bool, typer.Option("--show-recipe", help="Print the resolved recipe too, as JSON")] = False,
) -> None:
    """Pre-train one model from a recipe: this process is one rank, or the only one.

    Start several ranks with `megadeberta launch`, or start this command under torchrun, deepspeed, mpiexec or srun.
    It resumes from the newest intact checkpoint in training.output_dir.

    Exit codes: 0 done; 2 wrong recipe, data or checkpoint; 75 stopped by SIGTERM, SIGUSR1 or Ctrl-C after saving; 76 a
    rank hung; 77 not finite; 79 disk; 80 another rank was lost; 81 replicas differ. After 75, 76, 80: run it again.

    Example: megadeberta train quickstart --set training.steps=100
    """
    ranks = detect_ranks(os.environ)
    heartbeat = Heartbeat(ranks.rank, pause=beat_seconds(ranks.world_size))
    if dry_run:
        if ranks.rank == 0:
            _dry_run(recipe, set_ or [], world_size=as_ranks or ranks.world_size, show_recipe=show_recipe)
        return
    if as_ranks is not None:
        raise ConfigError(
            f"--ranks {as_ranks} goes with --dry-run; `megadeberta launch {recipe} --ranks {as_ranks}` starts them"
        )
    heartbeat.start(os.environ)
    prepared = prepare_run(recipe, set_ or [], world_size=ranks.world_size)
    if show_recipe and ranks.rank == 0:
        Console().print_json(recipe_json(prepared.config))
    raise typer.Exit(_run(prepared, ranks, heartbeat))


def check_machine(prepared: PreparedRun) -> None:
    """Refuse a device that there is none of, and a model that this machine could not even hold.

    Raises:
        ConfigError: parameters, gradients and optimizer states of one rank are more than its memory. A GPU, where there
            is one, says so itself.
        ParallelError: see ``rank.devices.check_accelerator``.
    """
    check_accelerator(os.environ)
    if count_local_devices(os.environ):
        return
    config = prepared.config
    layout = Layout.of_run(config, prepared.algebra, prepared.topology)
    attention = planned_backend(config.training.attention, on_gpu=False)
    memory = fullest(memory_of_stages(Recipe(config), layout, attention))
    needed, there = memory.parameters + memory.gradients + memory.optimizer, machine_memory()
    if needed > there:
        raise ConfigError(
            f"{prepared.source}: parameters, gradients and optimizer states of a rank take {gib(needed)} GiB, and this "
            f"machine has {gib(there)} GiB and no GPU; make the model smaller (model.vocab_size, hidden_size), or take "
            "more or larger machines"
        )


def _run(prepared: PreparedRun, ranks: RankEnvironment, heartbeat: Heartbeat) -> int:
    check_machine(prepared)
    os.environ.update(apply(os.environ))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would print its own stages among our lines
    if prepared.config.engine.needs_compiler:
        os.environ["TORCH_EXTENSIONS_DIR"] = str(prepare_extensions_dir(os.environ))
    with Waiting("loading torch and DeepSpeed", quiet=ranks.rank != 0):  # which a wrong recipe should not wait for
        from megadeberta.train import train as run_training
    expect_group_threads()
    try:
        return run_training(prepared, ranks, heartbeat)
    finally:
        heartbeat.end()


def _dry_run(recipe: Path, overrides: list[str], *, world_size: int, show_recipe: bool) -> None:
    """Print what the recipe comes to and needs; check data and output folder, where data has been prepared at all."""
    config, algebra, topology = check_recipe(recipe, overrides, world_size=world_size)
    if lacks_data(config):
        first = next(iter(config.data.train_prefixes.values()))
        note = f"{first} and the like do not exist yet, so nothing was checked against it; see `megadeberta prep`"
        found = [("data", note)]
    else:
        prepared = prepare_run(recipe, overrides, world_size=world_size)
        found = data_rows(prepared.config, prepared.data, prepared.blend)
    if show_recipe:
        Console().print_json(recipe_json(config))
    rows = summary(config, algebra, topology)
    memory = _show_layout(config, Layout.of_run(config, algebra, topology))
    for line in show([*rows[:2], *found, *rows[2:], ("memory", memory)]):
        typer.echo(line)


def _show_layout(config: RunConfig, layout: Layout) -> str:
    """Print the stages of a pipeline; give the memory of the fullest rank as a line."""
    recipe = Recipe(config)
    # A recipe in half precision is meant for a GPU, wherever it is looked at.
    on_gpu = config.engine.is_half or count_local_devices(os.environ) > 0
    attention = planned_backend(config.training.attention, on_gpu=on_gpu)
    if layout.pipeline > 1:
        console = table_console()
        console.print(stages_table(recipe, layout, attention, console))
    memory = fullest(memory_of_stages(recipe, layout, attention))
    return _memory_line(memory, attention, copied=checkpoint_copy_bytes(recipe, layout))


def _memory_line(memory: RankMemory, attention: str, *, copied: int) -> str:
    """``copied``: bytes of the host for checkpoints beside training."""
    on_host = [f"{gib(memory.on_host)} GiB of optimizer states"] if memory.on_host else []
    on_host += [f"{gib(copied)} GiB to copy asynchronous checkpoints"] if copied else []
    host = f"; {' and '.join(on_host)} in host memory" if on_host else ""
    names = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers", "workspace")
    parts = ", ".join(f"{name} {gib(getattr(memory, name))}" for name in names)
    return f"about {gib(memory.device)} GiB a rank: {parts} (estimated, attention {attention}){host}"
