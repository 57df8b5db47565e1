"""The recipes that come with the package, by name: what RECIPE and ``extends`` may say besides a file's path."""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from megadeberta.config.set_files import broken_link

RECIPE_SUFFIXES = (".json", ".yaml", ".yml")
FOLDER = Path(__file__).parents[1] / "ds_configs"
LIST_COMMAND = "`megadeberta recipes` lists the shipped ones"


def recipe_names() -> list[str]:
    """``deberta-v3-base`` and so on; those of clusters as ``clusters/deberta-large-1x8``."""
    names = (path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.json"))
    return sorted(names, key=lambda name: (name.count("/"), name))


def find_recipe(recipe: str | Path, *, folder: Path = Path()) -> Path:
    """The file meant by ``recipe``, which need not exist: a path from ``folder`` on, else a shipped recipe's name.

    A file wins over a recipe of the same name. A folder does not.
    """
    path = folder / recipe
    if path.exists() and not path.is_dir():
        return path
    return FOLDER / f"{recipe}.json" if str(recipe) in recipe_names() else path


def words_for_nodes(recipe: Path) -> str:
    """What names the recipe in every folder of every machine: a shipped one's name, or an absolute path."""
    found = find_recipe(recipe)
    return str(recipe) if found != recipe else str(found.absolute())


def suggest_recipe(path: Path) -> str:
    """What to try instead of a recipe that does not exist: the nearest file beside it or shipped name, and the list."""
    if note := broken_link(path):
        return note
    files = {file.name: str(file) for file in path.parent.glob("*") if file.suffix in RECIPE_SUFFIXES}
    names = {name: name for name in recipe_names()}
    stem = path.with_suffix("") if path.suffix in RECIPE_SUFFIXES else path
    near = [
        *_nearest(path.name, files, cutoff=0.4),
        *_nearest(stem.name, names, cutoff=0.6),
        *_nearest("/".join(stem.parts[-2:]), names, cutoff=0.6),
    ]
    if near:  # the first of equals, so a file: whoever wrote .json meant one
        return f"; did you mean {max(near, key=lambda pair: pair[0])[1]}? {LIST_COMMAND}"
    folder = "" if path.parent.is_dir() else f"; the folder {path.parent} does not exist either"
    return f"{folder}; {LIST_COMMAND}"


def _nearest(name: str, known: dict[str, str], *, cutoff: float) -> Iterator[tuple[float, str]]:
    for near in difflib.get_close_matches(name, known, n=1, cutoff=cutoff):
        yield difflib.SequenceMatcher(None, near, name).ratio(), known[near]


def describe_recipes() -> dict[str, str]:
    """Every shipped recipe's name and the first sentence of its description."""
    texts = {name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in recipe_names()}
    return {name: first_sentence(values.get("description", "")) for name, values in texts.items()}


def first_sentence(description: str) -> str:
    """Without its full stop."""
    return description.split(". ")[0].rstrip(".")
