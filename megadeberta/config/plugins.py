"""Python modules that register objectives, attention backends or model families of their own when they are imported.

Only a person names them: in a recipe that they start, or with ``--plugin`` beside a checkpoint or a folder. What such a
folder says about plugins is shown and never imported, since it may come from anybody.
"""

import importlib
from typing import Annotated, Any

import typer

from megadeberta.errors import ConfigError


def load_plugins(modules: Any, *, source: str) -> None:
    """Import the modules of a recipe's ``plugins``.

    Raises:
        ConfigError: it is no list of names, or one of them cannot be imported.
    """
    if not isinstance(modules, list | tuple) or not all(isinstance(module, str) for module in modules):
        raise ConfigError(f"{source}: plugins must be a list of Python modules, found {modules!r}")
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # a module of the user's may raise anything
            name = module.removesuffix(".py").removeprefix("./").replace("/", ".")
            hint = f"name the module {name}, not its file; " if module != name else ""
            raise ConfigError(
                f"{source}: the module {module!r} of plugins cannot be imported ({type(error).__name__}: {error}); "
                f"{hint}it must be installed, or lie in a folder of PYTHONPATH"
            ) from error


def _load_from_option(modules: list[str] | None) -> list[str] | None:
    load_plugins(modules or [], source="--plugin")
    return modules


PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        callback=_load_from_option,
        is_eager=True,
        show_default=False,
        help="Module that registers the objective, backend or family of these weights; may be repeated",
    ),
]
"""Of commands that read a checkpoint or a folder instead of a recipe. Imported before the command runs."""
