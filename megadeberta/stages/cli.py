"""``megadeberta cooldown`` and ``extend``. What reads a checkpoint is imported after the arguments."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from megadeberta.config.plugins import PluginOption
from megadeberta.config.terminal import say
from megadeberta.config.waiting import Waiting

Start = Annotated[
    Path,
    typer.Argument(
        help="One step-N folder, or training.output_dir of a run: its newest intact checkpoint", show_default=False
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The training.output_dir of the new run", show_default=False)
]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the new run", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override in the new recipe, e.g. --set data.folder=corpora/clean; may be repeated"),
]


def cooldown(
    checkpoint: Start,
    output: Output,
    steps: Steps,
    shape: Annotated[
        Literal["1-sqrt", "linear"], typer.Option(help="The way down; 1-sqrt drops fast at first")
    ] = "1-sqrt",
    end_ratio: Annotated[float, typer.Option(min=0, max=1, help="Multiple of the peak rate at the last step")] = 0.0,
    set_: Overrides = None,
    plugin: PluginOption = None,
) -> None:
    """Write the recipe of a run that goes on from a checkpoint of a constant rate, with a rate that decays to its end.

    Weights, optimizer state and the place in the data are those of the checkpoint; other training data and masking may
    be set. The checkpoint must stay until the new run has saved its first one. `megadeberta launch` trains it.

    Example: megadeberta cooldown runs/base/checkpoints/step-50000 --output runs/base-cooled --steps 5000
    """
    from megadeberta.stages.cooldown import write_cooldown

    with Waiting(f"verifying {checkpoint}"):
        stage = write_cooldown(
            checkpoint,
            output,
            steps=steps,
            shape=shape,
            end_ratio=end_ratio,
            overrides=set_ or (),
            plugins=plugin or (),
        )
    last = stage.config.training.steps
    say(f"{stage.recipe} is written: steps {stage.step + 1} to {last} after {stage.parent}")
    typer.echo(f"start it with: megadeberta launch {stage.recipe}")


def extend(
    checkpoint: Start,
    output: Output,
    length: Annotated[int, typer.Option(min=8, help="Tokens per sequence of the new run", show_default=False)],
    steps: Steps,
    warmup_steps: Annotated[
        int | None, typer.Option(min=0, help="Of the new run; default: as the old one's", show_default=False)
    ] = None,
    set_: Overrides = None,
    plugin: PluginOption = None,
) -> None:
    """Write weights and recipe of a run that goes on with longer sequences, from the weights of a checkpoint.

    At the old length the weights compute what they did. Optimizer state and steps begin anew. `megadeberta launch`
    trains it.

    Example: megadeberta extend runs/base --output runs/base-1024 --length 1024 --steps 17000 --warmup-steps 1000
    """
    from megadeberta.storage import check_may_write

    check_may_write(output)
    with Waiting(f"reading {checkpoint}, writing {output}"):
        from megadeberta.stages.extend import write_extension

        stage = write_extension(
            checkpoint,
            output,
            length=length,
            steps=steps,
            warmup_steps=warmup_steps,
            overrides=set_ or (),
            plugins=plugin or (),
        )
    tokens = stage.config.batches.samples(steps) * length
    say(f"{stage.recipe} is written: {steps} steps, {tokens:,} tokens, from {stage.parent}")
    typer.echo(f"start it with: megadeberta launch {stage.recipe}")
