"""`megadeberta report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megadeberta.config.plugins import PluginOption
from megadeberta.config.waiting import Waiting
from megadeberta.errors import ConfigError
from megadeberta.storage import write_file

if TYPE_CHECKING:
    from megadeberta.observability.html_report import RunFacts


def report(
    output_dirs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The output_dir of one run or several")],
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page: curves, environment, recipe")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Show how a run went: the end of its curve, the last validation against its baselines, the path of the plot.

    Several runs are compared: their last losses, their speed and the settings in which they differ. The page of
    `--html` is one file that needs no network.

    Examples:

        megadeberta report runs/quickstart

        megadeberta report runs/first runs/second --html comparison.html
    """
    from megadeberta.observability.html_report import html_report, read_run
    from megadeberta.observability.report import print_report

    if page is not None and (page.is_dir() or not page.parent.is_dir()):
        raise ConfigError(f"--html={page}: is a folder, or lies in one that does not exist; give a file to write")
    with Waiting(f"reading {', '.join(map(str, output_dirs))}"):
        runs = [read_run(folder) for folder in output_dirs]
    if len(runs) == 1:
        print_report(output_dirs[0], runs[0].records, Console())
    else:
        _print_comparison(runs, Console())
    if page is not None:
        write_file(page, html_report(runs).encode())
        typer.echo(f"page: {page}")


def _print_comparison(runs: list["RunFacts"], console: Console) -> None:
    from megadeberta.observability.html_report import different_settings, summary_rows

    head, rows = summary_rows(runs)
    console.print(_table(head, rows))
    differences = [[key, *values] for key, values in different_settings(runs)]
    if differences:
        console.print(_table(["setting", *(run.name for run in runs)], differences))


def _table(head: list[str], rows: list[list[str]]) -> Table:
    table = Table()
    for title in head:
        table.add_column(Text(title), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
