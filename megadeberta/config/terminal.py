"""Tables and lines that are whole in the terminal at hand: columns are left out before one is cut."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_WITHOUT_TERMINAL = 124
"""Columns in a file or a pipe, which nobody asked to be narrower."""


def table_console() -> Console:
    """As wide as the terminal, or as COLUMNS says."""
    console = Console()
    if has_width(console):
        return console
    return Console(width=_WITHOUT_TERMINAL)


def has_width(console: Console) -> bool:
    """Whether lines have to fit: into a terminal, or into what COLUMNS says."""
    return console.is_terminal or "COLUMNS" in os.environ


def fitting_table(
    console: Console,
    rows: Sequence[Mapping[str, str]],
    *,
    choices: Sequence[Sequence[str]],
    text: Sequence[str] = (),
    fold: Sequence[str] = (),
    title: str | None = None,
    caption: str | None = None,
    dim: Sequence[int] = (),
) -> Table:
    """The first choice of columns that the console is wide enough for, else the last.

    Args:
        rows: values by the name of their column.
        text: columns that are aligned to the left.
        fold: columns that may take several lines.
        dim: numbers of the rows to be shown faintly.
    """
    for names in choices:
        table = Table(
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            title=title,
            title_justify="left",
            caption=caption,
            caption_justify="left",
        )
        for name in names:
            _add_column(table, name, [row.get(name, "") for row in rows], in_text=name in text, in_fold=name in fold)
        for number, row in enumerate(rows):
            table.add_row(*(Text(row.get(name, "")) for name in names), style="dim" if number in dim else None)
        if Measurement.get(console, console.options.update(max_width=10_000), table).minimum <= console.width:
            break
    return table


def _add_column(table: Table, name: str, cells: Sequence[str], *, in_text: bool, in_fold: bool) -> None:
    # Rich takes the longest word for what a column needs, also of one that is not to be broken.
    least = None if in_fold else max(map(cell_len, (name, *cells)))
    justify: Literal["left", "right"] = "left" if in_text else "right"
    table.add_column(name, no_wrap=not in_fold, min_width=least, justify=justify, overflow="fold")


def print_line(console: Console, line: str | Text) -> None:
    """As it is into a file or a pipe; on a terminal broken between words."""
    console.print(line, markup=False, highlight=False, soft_wrap=not has_width(console))


def say(line: str) -> None:
    """Print a line of text, broken between words where the terminal is too narrow. Not for a command to be copied."""
    print_line(Console(), line)


def print_command(console: Console, words: Sequence[str]) -> None:
    """A command to be copied: one line into a file or a pipe; on a terminal broken as the shell reads it."""
    text = wrap_command(words, console.width if has_width(console) else None)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def wrap_command(words: Sequence[str], width: int | None, *, indent: str = "    ") -> str:
    """A command of the shell, quoted, with a backslash behind every line but the last; an option stays by its value."""
    parts: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        quoted = shlex.quote(word)
        if before.startswith("-") and "=" not in before and not word.startswith("-"):
            parts[-1] += f" {quoted}"
        else:
            parts.append(quoted)
    room = None if width is None else width - len(" \\")
    return wrap_items(parts, room, indent=indent).replace("\n", " \\\n")


def line_width(environ: Mapping[str, str]) -> int | None:
    """Columns for a line on standard error: of the terminal it is, or as COLUMNS says; None = as long as it likes."""
    if environ.get("COLUMNS", "").isdigit():
        return max(40, int(environ["COLUMNS"]))
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else None


def wrap_items(items: Sequence[str], width: int | None, *, indent: str = "    ") -> str:
    """The items with blanks between them, broken only between two of them."""
    lines: list[str] = []
    for item in items:
        if lines and (width is None or len(lines[-1]) + 1 + len(item) <= width):
            lines[-1] += f" {item}"
        else:
            lines.append(item if not lines else indent + item)
    return "\n".join(lines)


def wrap_words(line: str, width: int | None, *, indent: str = "    ") -> str:
    """The line broken between words; a text of several lines has its own form and stays."""
    return line if "\n" in line else wrap_items(line.split(" "), width, indent=indent)
