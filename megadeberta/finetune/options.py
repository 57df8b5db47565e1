"""Options of `megadeberta finetune`. Never torch."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from megadeberta.finetune.tasks.table import TASKS


def complete_task(incomplete: str) -> list[str]:
    """For the shell: tasks whose name begins so."""
    return [name for name in (*TASKS, "list") if name.startswith(incomplete)]


TaskName = Annotated[
    str,
    typer.Argument(help="Name of a task; `list` shows all", show_default=False, autocompletion=complete_task),
]
Data = Annotated[
    Path | None, typer.Option(help="Folder with the files of the task as published, or a table of your own")
]
Model = Annotated[
    Path | None,
    typer.Option(
        help="The training.output_dir of a run, a step-N folder, an import, an export, or a DeBERTa of transformers "
        "(folder or OWNER/MODEL)"
    ),
]
Output = Annotated[
    Path | None, typer.Option(help="New folder for the tuned model and its results; default: tuned/TASK")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Default: of the task")]
Lr = Annotated[float | None, typer.Option(min=0, help="Learning rate; default: by the width of the model")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Rows per step, over all ranks; default: of the task")]
MicroBatch = Annotated[int | None, typer.Option(min=1, help="Rows of one rank at a time; default: all")]
Warmup = Annotated[int | None, typer.Option(min=0, help="Steps in which the learning rate rises; default: of the task")]
Dropout = Annotated[float | None, typer.Option(min=0, max=0.9, help="Before the classifier; default: of the task")]
Length = Annotated[int | None, typer.Option(help="Longest sequence in tokens; default: of the task")]
Seeds = Annotated[int, typer.Option(min=1, help="This many seeds, from --seed on; the table has the median")]
Seed = Annotated[int, typer.Option(help="Of head, order and dropout")]
Grid = Annotated[
    str | None, typer.Option("--grid", help="Search Table 9 of the paper along lr, batch, dropout, warmup, or all")
]
IsSift = Annotated[bool, typer.Option("--sift", help="Scale-invariant fine-tuning")]
SiftWeight = Annotated[float, typer.Option(min=0, help="Of its loss")]
SiftStart = Annotated[float, typer.Option(min=0, help="Size of the first perturbation")]
SiftStep = Annotated[float, typer.Option(min=0, help="Its step along the gradient")]
Attention = Annotated[
    str, typer.Option(help="The implementation: auto, a backend of ours, or eager for transformers' own")
]
Precision = Annotated[Literal["fp32", "bf16"], typer.Option(help="Of products")]
Zero = Annotated[int, typer.Option(min=0, max=2, help="Stage of DeepSpeed's ZeRO, under torchrun")]
Column = Annotated[list[str] | None, typer.Option(help="NAME=COLUMN of your own table, as text=review; repeatable")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what this command wrote before")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as one JSON object")]
