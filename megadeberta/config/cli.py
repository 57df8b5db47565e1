"""The RECIPE argument, and ``megadeberta recipes``: what there is to train without writing a file."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from megadeberta.config.recipes import FOLDER, RECIPE_SUFFIXES, describe_recipes, recipe_names
from megadeberta.config.terminal import has_width


def _complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes, and files and folders."""
    folder, _, start = incomplete.rpartition("/")
    place = Path(folder) if folder else Path("/" if incomplete.startswith("/") else ".")
    children = sorted(place.iterdir()) if place.is_dir() else []
    before = f"{folder}/" if "/" in incomplete else ""
    files = [
        f"{before}{child.name}" + ("/" if child.is_dir() else "")
        for child in children
        if child.name.startswith(start) and (child.suffix in RECIPE_SUFFIXES or child.is_dir())
    ]
    return [name for name in recipe_names() if name.startswith(incomplete)] + files


RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        autocompletion=_complete_recipe,
        help="A file (JSON or YAML), or a name from `megadeberta recipes`",
        show_default=False,
    ),
]


def recipes(
    *,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of a recipe instead, for editors")
    ] = False,
    settings: Annotated[
        bool, typer.Option("--settings", help="Print the page of all settings instead, as Markdown")
    ] = False,
) -> None:
    """List the recipes that come with megadeberta; every RECIPE argument takes their names, in any folder.

    A recipe of your own builds on one of them with "extends": "deberta-v3-base", and `--set` overrides a value.

    Examples:

        megadeberta recipes | grep v3

        megadeberta recipes --schema > recipe.schema.json
    """
    if schema or settings:
        _print_documentation(schema=schema)
        return
    console, descriptions = Console(), describe_recipes()
    if not has_width(console):  # one recipe a line, for grep
        width = max(map(len, descriptions))
        for name, description in descriptions.items():
            typer.echo(f"{name:{width}}  {description}")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it trains", overflow="fold")
    for name, description in descriptions.items():
        table.add_row(name, description)
    console.print(table)
    console.print(f"The files: {FOLDER}", soft_wrap=True, highlight=False, markup=False)


def _print_documentation(*, schema: bool) -> None:
    from megadeberta.config.schema import recipe_schema
    from megadeberta.config.settings_page import settings_page

    text = json.dumps(recipe_schema(), indent=2) + "\n" if schema else settings_page()
    typer.echo(text, nl=False)
