"""Recipe file -> RunConfig: ``extends``, ``--set`` overrides, and errors that name file, path and nearest key."""

import codecs
import difflib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from megadeberta.config.data import expand_folder
from megadeberta.config.deepspeed_block import KNOWN_KEYS, OURS
from megadeberta.config.first_problem import dotted, first_problem
from megadeberta.config.model import AUTO_VOCABULARY
from megadeberta.config.other_names import name_of_ours
from megadeberta.config.plugins import load_plugins
from megadeberta.config.recipe_text import is_yaml, parse_recipe
from megadeberta.config.recipes import find_recipe, suggest_recipe
from megadeberta.config.run import RunConfig
from megadeberta.config.schema import SCHEMA_KEY
from megadeberta.errors import ConfigError, DataError
from megadeberta.remote.path import as_path

VocabularySize = Callable[[Path], int]
"""From the file of a tokenizer."""
_LARGEST = 2**63 - 1
"""Of 64 bits; in JSON a whole number may have any length."""


def load_run_config(
    recipe: Path, overrides: Sequence[str] = (), *, vocabulary_size: VocabularySize | None = None
) -> RunConfig:
    """Read ``recipe`` (a file, or a shipped recipe's name), resolve ``extends``, apply overrides and validate.

    Args:
        vocabulary_size: of a tokenizer, for ``model.vocab_size: auto``; None refuses that value.

    Raises:
        ConfigError: with the file, the dotted path and, for an unknown key, the nearest known one.
        DataError: the tokenizer of an automatic vocabulary size cannot be read.
    """
    merged = read_recipe(recipe)
    apply_overrides(merged, overrides)
    if vocabulary_size is not None:
        _fill_vocabulary_size(merged, vocabulary_size, source=str(recipe))
    return parse_run_config(merged, source=str(recipe))


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set ``section.key=value`` in the values of a recipe, in place and in order.

    Raises:
        ConfigError: one is not of that form, or goes below a value.
    """
    _check_folder_overrides(overrides)
    for override in overrides:
        _apply_override(values, override)


def parse_run_config(values: Mapping[str, Any], *, source: str) -> RunConfig:
    """Validate plain values as a RunConfig; ``source`` names them in errors."""
    _check_numbers(values, source)
    load_plugins(values.get("plugins", ()), source=source)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe(error, source)) from None


def _check_numbers(values: Mapping[str, Any], source: str, path: str = "") -> None:
    """Refuse a whole number that is none of the machine, before anything counts with it."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            _check_numbers(value, source, f"{path}{key}.")
        elif isinstance(value, int) and abs(value) > _LARGEST:
            raise ConfigError(
                f"{source}: {path}{key} has {len(str(abs(value)))} digits; the largest number is {_LARGEST}"
            )


def read_recipe(path: Path, _chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file over those of the recipe that it extends: a path from the file on, or a shipped name."""
    path = find_recipe(path)
    resolved = Path(os.path.realpath(path))  # resolve() raises RuntimeError of links in a circle
    if resolved in _chain:
        raise ConfigError(f"{path}: extends forms a loop: {' -> '.join(str(p) for p in (*_chain, resolved))}")
    values = parse_recipe(_read_text(path, _chain), path)
    if not isinstance(values, dict):
        kind = "YAML mapping" if is_yaml(path) else "JSON object"
        raise ConfigError(f"{path}: a recipe is one {kind}, found {type(values).__name__}")
    values.pop(SCHEMA_KEY, None)
    _check_is_recipe(values, path)
    _expand_data_folder(values, source=str(path))
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends must be the path or name of another recipe, found {parent!r}")
    return extend(read_recipe(find_recipe(parent, folder=path.parent), (*_chain, resolved)), values)


def _read_text(path: Path, chain: tuple[Path, ...]) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except FileNotFoundError:
        child = f"{chain[-1]}: extends: " if chain else ""
        raise ConfigError(f"{child}recipe {path} does not exist{suggest_recipe(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"recipe {path} is a folder; give a file in it{suggest_recipe(path / 'recipe')}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"recipe {path} is no text in UTF-8 (byte {error.start + 1}){_encoding_hint(error)}"
        ) from None
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}") from None


def _encoding_hint(error: UnicodeDecodeError) -> str:
    if error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "; it is UTF-16: iconv -f UTF-16 -t UTF-8 converts it"
    return "; a recipe is a JSON or YAML file"


def _check_is_recipe(values: dict[str, Any], path: Path) -> None:
    """Refuse a file of another kind, in which nothing is a recipe's."""
    if not values or values.keys() & {*RunConfig.model_fields, "extends"}:
        return
    place = "give a recipe that extends a shipped one; `megadeberta recipes` lists them"
    if "model_type" in values:
        place = "`megadeberta convert import` of its folder makes weights that training.init_from of a recipe takes"
    elif any(key in values for key in ("zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu")):
        place = "settings of DeepSpeed are the deepspeed section of a recipe"
    raise ConfigError(f"{path}: is no recipe, which has sections such as model, data and training; {place}")


def extend(parent: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` over those of ``parent``, whose description is of another run."""
    return _merge({key: value for key, value in parent.items() if key != "description"}, values)


def _expand_data_folder(values: dict[str, Any], *, source: str) -> None:
    """``data.folder`` of one recipe or override stands for three paths, which those of a parent give way to."""
    data = values.get("data")
    if isinstance(data, dict) and data.get("folder") is not None:
        try:
            values["data"] = expand_folder(data)
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from None


def _fill_vocabulary_size(values: dict[str, Any], vocabulary_size: VocabularySize, *, source: str) -> None:
    model, data = values.get("model"), values.get("data")
    if not isinstance(model, dict) or model.get("vocab_size") != AUTO_VOCABULARY:
        return
    tokenizer = data.get("tokenizer") if isinstance(data, dict) else None
    if not isinstance(tokenizer, str):
        raise ConfigError(
            f"{source}: model.vocab_size=auto is read from the tokenizer; set data.folder or data.tokenizer, or give "
            "the number"
        )
    try:
        values["model"] = model | {"vocab_size": vocabulary_size(as_path(tokenizer))}
    except DataError as error:
        raise DataError(f"{source}: model.vocab_size=auto: {error}") from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_objects = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_objects else value
    return merged


def _check_folder_overrides(overrides: Sequence[str]) -> None:
    """Of overrides, which have no order for a reader, the folder and one of its three paths are a contradiction."""
    given = dict(override.partition("=")[::2] for override in overrides)
    folder = given.get("data.folder", "null")
    if folder != "null":
        names = {key.removeprefix("data."): value for key, value in given.items() if key.startswith("data.")}
        _expand_data_folder(
            {"data": {key: value for key, value in names.items() if value != "null"}}, source="--set data.folder"
        )


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, e.g. --set optimizer.lr=5e-4")
    node = values
    for depth, key in enumerate(keys[:-1]):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {'.'.join(keys[: depth + 1])} is a value, not a section")
    try:
        node[keys[-1]] = json.loads(text)
    except (ValueError, RecursionError):  # not JSON: a plain text
        node[keys[-1]] = text
    if keys == ["data", "folder"]:
        others = {key: value for key, value in node.items() if key not in ("train", "valid", "tokenizer")}
        values["data"] = others
        _expand_data_folder(values, source=f"--set {override}")


def _describe(error: ValidationError, source: str) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    location = dotted(first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key {location}{_did_you_mean(first['loc'])}{more}"
    if first["type"] == "missing":
        return f"{source}: {location} is required and missing; set it in the recipe or with --set {location}=...{more}"
    return f"{source}: {first_problem(error, show_value=True)}{more}"


def _did_you_mean(location: tuple[int | str, ...]) -> str:
    ours = name_of_ours(str(location[-1]))
    if ours is not None:
        return f"; did you mean {ours}?"
    if location[-1] in KNOWN_KEYS - OURS.keys():
        return f"; did you mean deepspeed.{location[-1]}?"
    section: type[BaseModel] = RunConfig
    for part in location[:-1]:
        if str(part) in section.model_fields:  # else a tag, or the name of a source
            section = _section_type(section.model_fields[str(part)].annotation)
    known = list(section.model_fields)
    if elsewhere := places_of_setting(str(location[-1])):
        return f"; did you mean {' or '.join(elsewhere)}?"
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known keys here: {', '.join(known)}"


def places_of_setting(name: str) -> list[str]:
    """Dotted names of the settings whose last part is ``name``."""
    sections = {place.rpartition(".")[0] for place in _places(RunConfig)}
    return [place for place in _places(RunConfig) if place.rpartition(".")[2] == name and place not in sections]


def _places(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """Dotted paths of all settings of a section and of those in it."""
    for name, field in section.model_fields.items():
        yield above + name
        for inner in _section_types(field.annotation):
            yield from _places(inner, f"{above}{name}.")


def _section_type(annotation: Any) -> type[BaseModel]:
    return next(_section_types(annotation))


def _section_types(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _section_types(part)
