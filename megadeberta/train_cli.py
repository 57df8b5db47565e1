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
from megadeberta.preflight import PreparedRun, prepare_run


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
    prepared = prepare_run(recipe, set_ or [], world_size=ranks.world_size)
    if dry_run:
        if ranks.rank == 0:
            _describe(prepared)
        return
    os.environ.update(apply(os.environ))
    if needs_compiler(prepared.config.deepspeed):
        os.environ["TORCH_EXTENSIONS_DIR"] = str(prepare_extensions_dir(os.environ))
    # After the checks: importing torch and deepspeed takes seconds, a wrong recipe should not.
    from megadeberta.train import train as run_training

    raise typer.Exit(run_training(prepared, ranks))


def _describe(prepared: PreparedRun) -> None:
    console = Console()
    console.print_json(json.dumps(prepared.config.model_dump(mode="json")))
    algebra = prepared.algebra
    console.print(
        f"{algebra.global_batch} sequences a step = {algebra.micro_batch} micro batch x {algebra.accumulation} "
        f"accumulation x {algebra.data_parallel} ranks"
    )
    data = prepared.data
    console.print(
        f"{data.train_tokens} training tokens in {data.train_chunks} sequences an epoch, "
        f"{data.valid_chunks} validation sequences, {data.num_pieces} pieces"
    )
