"""`megadeberta train`: one rank of a run, started by any launcher or alone. Torch is imported after the checks."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from launcher.environment import apply, detect_ranks
from launcher.extensions import prepare_extensions_dir
from launcher.preflight import needs_compiler
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.memory import estimate_memory
from megadeberta.config.parameters import count_parameters
from megadeberta.config.redact import redact
from megadeberta.config.run import RunConfig
from megadeberta.preflight import check_recipe, missing_data, prepare_run


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, e.g. ds_configs/quickstart.json")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. --set optimizer.lr=5e-4; may be repeated")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and its data, print both, stop")] = False,
) -> None:
    """Pre-train one model from a recipe: this process is one rank, or the only one.

    Start several ranks with `megadeberta launch`, or start this command under torchrun, deepspeed, mpiexec or srun.
    It resumes by itself from the newest sound checkpoint of training.output_dir.

    Exit codes: 0 done; 2 wrong recipe, data or checkpoint; 75 stopped by SIGTERM, SIGUSR1 or Ctrl-C after saving; 77
    not finite; 79 disk; 80 another rank was lost. After 75 and 80 the same command goes on.

    Example: megadeberta train ds_configs/quickstart.json --set training.steps=100
    """
    ranks = detect_ranks(os.environ)
    if dry_run:
        if ranks.rank == 0:
            _dry_run(recipe, set_ or [], world_size=ranks.world_size)
        return
    prepared = prepare_run(recipe, set_ or [], world_size=ranks.world_size)
    os.environ.update(apply(os.environ))
    if needs_compiler(prepared.config.deepspeed):
        os.environ["TORCH_EXTENSIONS_DIR"] = str(prepare_extensions_dir(os.environ))
    # After the checks: importing torch and deepspeed takes seconds, a wrong recipe should not.
    from megadeberta.train import train as run_training

    raise typer.Exit(run_training(prepared, ranks))


def _dry_run(recipe: Path, overrides: list[str], *, world_size: int) -> None:
    """Print the resolved recipe, its size and its needs; then check data and output folder, where there are any."""
    config, algebra, _ = check_recipe(recipe, overrides, world_size=world_size)
    console = Console()
    console.print_json(json.dumps(redact(config.model_dump(mode="json"))))
    counts = count_parameters(config.model, config.objective)
    parts = "" if len(counts) == 1 else " = " + " + ".join(f"{count:,} {part}" for part, count in counts.items())
    lines = [
        f"{sum(counts.values()):,} parameters{parts}",
        f"{algebra.global_batch} sequences a step = {algebra.micro_batch} micro batch x {algebra.accumulation} "
        f"accumulation x {algebra.data_parallel} ranks",
        _memory_line(config, algebra),
    ]
    missing = missing_data(config)
    if missing:
        lines.append(f"data: {missing[0]} does not exist, so nothing was checked against it; see `megadeberta prep`")
    else:
        data = prepare_run(recipe, overrides, world_size=world_size).data
        lines.append(
            f"{data.train_tokens} training tokens in {data.train_chunks} sequences an epoch, "
            f"{data.valid_chunks} validation sequences, {data.num_pieces} pieces"
        )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _memory_line(config: RunConfig, algebra: BatchAlgebra) -> str:
    memory = estimate_memory(config, algebra)
    host = f"; {_gib(memory.on_host)} of optimizer states in host memory" if memory.on_host else ""
    return (
        f"about {_gib(memory.device)} a rank: weights {_gib(memory.weights)}, gradients {_gib(memory.gradients)}, "
        f"optimizer {_gib(memory.optimizer)}, activations {_gib(memory.activations)} (estimated){host}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
