"""``megadeberta checkpoint``: look at the checkpoints of a run without starting it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from megadeberta.checkpoint.durable import format_bytes
from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, checkpoint_path, list_checkpoints, read_pointer
from megadeberta.checkpoint.manifest import read_manifest
from megadeberta.checkpoint.verify import verify_checkpoint
from megadeberta.errors import CheckpointError

app = typer.Typer(help="List and verify the checkpoints of a run.", no_args_is_help=True)

OutputDir = Annotated[Path, typer.Argument(help="training.output_dir of the run", show_default=False)]


@app.command("list")
def list_command(output_dir: OutputDir) -> None:
    """Show the checkpoints of a run, newest first, from their manifests. Reads no tensors; see `verify` for that.

    Example: megadeberta checkpoint list runs/quickstart
    """
    root = _root(output_dir)
    table = Table("checkpoint", "step", "size", "files", "ranks", "ZeRO", "precision", "written (UTC)", "")
    try:
        pointed, note = read_pointer(root), ""
    except CheckpointError as error:
        pointed, note = None, str(error)
    for name in list_checkpoints(root):
        mark = "latest" if str(name) == pointed else ""
        try:
            manifest = read_manifest(root / str(name))
        except CheckpointError:
            table.add_row(str(name), str(name.step), "", "", "", "", "", "", f"{mark} manifest damaged".strip())
            continue
        world = manifest.run.world
        layout = (str(world.world_size), str(world.zero_stage), world.precision)
        size = format_bytes(manifest.total_bytes)
        row = (str(name), str(manifest.step), size, str(len(manifest.files)), *layout, manifest.created, mark)
        table.add_row(*row)
    console = Console(soft_wrap=True)
    console.print(table)
    if note:
        console.print(note, markup=False)


@app.command("verify")
def verify_command(
    output_dir: OutputDir,
    name: Annotated[str | None, typer.Option(help="only this one, such as step-400")] = None,
) -> None:
    """Compare every byte of every checkpoint with its manifest; exit code 2 if anything differs.

    Example: megadeberta checkpoint verify runs/quickstart
    """
    root = _root(output_dir)
    console = Console(soft_wrap=True)
    names = [name] if name is not None else [str(found) for found in list_checkpoints(root)]
    problems: list[str] = []
    for each in names:
        try:
            manifest = verify_checkpoint(checkpoint_path(root, each))
        except CheckpointError as error:
            problems.append(str(error))
            console.print(f"{each}: NOT SOUND: {error}", markup=False)
            continue
        console.print(f"{each}: sound, {len(manifest.files)} files, {format_bytes(manifest.total_bytes)}", markup=False)
    try:
        pointed = read_pointer(root)
        if pointed is None:
            raise CheckpointError(f"{root / 'latest'}: is missing")
        checkpoint_path(root, pointed)
    except CheckpointError as error:
        problems.append(str(error))
        console.print(f"pointer: NOT SOUND: {error}", markup=False)
    else:
        console.print(f"latest: {pointed}", markup=False)
    if problems:
        raise CheckpointError(f"{len(problems)} of {len(names) + 1} checks failed, the first: {problems[0]}")


def _root(output_dir: Path) -> Path:
    root = output_dir / CHECKPOINTS_FOLDER
    if not root.is_dir() or not (list_checkpoints(root) or (root / "latest").exists()):
        raise CheckpointError(f"{root}: holds no checkpoints; give the training.output_dir of a run")
    return root
