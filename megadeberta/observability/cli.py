"""`megadeberta report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(output_dir: Annotated[Path, typer.Argument(metavar="RUN", help="a run's training.output_dir")]) -> None:
    """Show how a run went: the end of its curve, the last validation beside its baseline, where the picture is.

    Example: megadeberta report runs/quickstart
    """
    from megadeberta.observability.report import print_report

    print_report(output_dir, Console())
