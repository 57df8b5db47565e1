"""`megadeberta report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megadeberta.config.plugins import PluginOption


def report(
    output_dir: Annotated[Path, typer.Argument(metavar="RUN", help="training.output_dir of a run")],
    plugin: PluginOption = None,
) -> None:
    """Show how a run went: the end of its curve, the last validation against its baseline, the path of the plot.

    Example: megadeberta report runs/quickstart
    """
    from megadeberta.observability.report import print_report

    print_report(output_dir, Console())
