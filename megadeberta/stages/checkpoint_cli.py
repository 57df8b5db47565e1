"""``megadeberta checkpoint`` with the command that knows what a checkpoint's weights are."""

from pathlib import Path
from typing import Annotated

import typer

from megadeberta.checkpoint.cli import OutputDir, app
from megadeberta.config.plugins import PluginOption
from megadeberta.config.terminal import say
from megadeberta.config.waiting import Waiting
from megadeberta.errors import ConfigError

__all__ = ["app"]


@app.command("average")
def average_command(
    output_dir: OutputDir,
    out: Annotated[Path, typer.Argument(help="New folder of weights, for export and evaluate", show_default=False)],
    last: Annotated[
        int | None, typer.Option(min=2, help="How many of the newest; default: all that are kept", show_default=False)
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Exponential average with this decay per checkpoint; default: the mean", show_default=False),
    ] = None,
    trained: Annotated[
        bool,
        typer.Option("--trained", help="The average that the run kept by training.ema_decay, of its newest checkpoint"),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what this command wrote to OUT")] = False,
    plugin: PluginOption = None,
) -> None:
    """Average the weights of a run's checkpoints, every byte verified, into a folder that `convert export` takes.

    Example: megadeberta checkpoint average runs/base averaged --last 5
    """
    from megadeberta.convert.published_folder import check_free
    from megadeberta.stages.averaged import average_fractions, chosen_checkpoints
    from megadeberta.weights.hub import MODEL_JSON

    if trained:
        _take(output_dir, out, overwrite=overwrite, of_several=last is not None or ema is not None)
        return
    average_fractions(len(chosen_checkpoints(output_dir, last)), ema)
    check_free(out, overwrite=overwrite, marker=MODEL_JSON)
    with Waiting(f"averaging checkpoints of {output_dir}"):
        from megadeberta.stages.average import average_checkpoints

        fractions = average_checkpoints(output_dir, out, last=last, ema=ema, overwrite=overwrite)
    shown = ", ".join(f"{folder.name} {fraction:.4f}" for folder, fraction in fractions.items())
    say(f"{out} is written: {shown}")


def _take(output_dir: Path, out: Path, *, overwrite: bool, of_several: bool) -> None:
    """The average that the run itself kept."""
    from megadeberta.convert.published_folder import check_free
    from megadeberta.weights.hub import MODEL_JSON

    if of_several:
        raise ConfigError("--trained takes the average of one checkpoint; leave out --last and --ema")
    check_free(out, overwrite=overwrite, marker=MODEL_JSON)
    with Waiting(f"reading the average of {output_dir}"):
        from megadeberta.stages.average import take_average

        folder = take_average(output_dir, out, overwrite=overwrite)
    say(f"{out} is written: the average of {folder}")
