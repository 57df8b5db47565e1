"""``megadeberta checkpoint``: look at the checkpoints of a run without starting it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megadeberta.checkpoint.durable import format_bytes
from megadeberta.checkpoint.folder import (
    CHECKPOINTS_FOLDER,
    CheckpointName,
    checkpoint_path,
    list_checkpoints,
    read_pointer,
)
from megadeberta.checkpoint.manifest import read_manifest
from megadeberta.checkpoint.verify import verify_checkpoint
from megadeberta.config.terminal import fitting_table, table_console
from megadeberta.config.waiting import Waiting
from megadeberta.errors import CheckpointError

app = typer.Typer(help="List and verify the checkpoints of a run.", no_args_is_help=True)

OutputDir = Annotated[Path, typer.Argument(help="The training.output_dir of the run", show_default=False)]


@app.command("list")
def list_command(output_dir: OutputDir) -> None:
    """Show the checkpoints of a run, newest first, from their manifests. Reads no tensors; see `verify` for that.

    Example: megadeberta checkpoint list runs/quickstart
    """
    root = _root(output_dir)
    try:
        pointed, note = read_pointer(root), ""
    except CheckpointError as error:
        pointed, note = None, str(error)
    rows = [_row(root, name, "latest" if str(name) == pointed else "") for name in list_checkpoints(root)]
    console = table_console()
    short = ("checkpoint", "step", "size", "written (UTC)", "")
    columns = (*short[:3], "files", "ranks", "ZeRO", "precision", *short[3:])
    console.print(fitting_table(console, rows, choices=[columns, short, ("checkpoint", "size", "")], text=("",)))
    if note:
        console.print(note, markup=False)


def _row(root: Path, name: CheckpointName, mark: str) -> dict[str, str]:
    row = {"checkpoint": str(name), "step": str(name.step)}
    try:
        manifest = read_manifest(root / str(name))
    except CheckpointError:
        return row | {"": f"{mark} manifest damaged".strip()}
    world = manifest.run.world
    return row | {
        "size": format_bytes(manifest.total_bytes),
        "files": str(len(manifest.files)),
        "ranks": str(world.world_size),
        "ZeRO": str(world.zero_stage),
        "precision": world.precision,
        "written (UTC)": manifest.created.removesuffix("+00:00").replace("T", " "),
        "": mark,
    }


@app.command("verify")
def verify_command(
    output_dir: OutputDir,
    name: Annotated[str | None, typer.Option(help="Only this one, such as step-400")] = None,
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
            with Waiting(f"verifying {each}"):
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
        above = next((path.parent for path in (output_dir, output_dir.parent) if path.name == CHECKPOINTS_FOLDER), None)
        hint = f"did you mean {above}?" if above is not None else "give the training.output_dir of a run"
        raise CheckpointError(f"{root}: holds no checkpoints; {hint}")
    return root
