"""The text of a recipe: JSON, or YAML in a file that ends in .yaml or .yml."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from megadeberta.config.recipes import RECIPE_SUFFIXES
from megadeberta.errors import ConfigError

# The plain values of JSON, and no others: in YAML 1.1 `no` is false, 5e-4 a text, 1:30 a number and 2026-01-01 a date.
_PLAIN = (
    ("null", re.compile(r"(?:null|~|)\Z"), ("n", "~", "")),
    ("bool", re.compile(r"(?:true|false)\Z"), ("t", "f")),
    ("int", re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*\Z"), tuple("-+0123456789")),
    (
        "float",
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"),
        tuple("-+.0123456789"),
    ),
)

_CURLY = tuple("\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb")
"""What word processors write for quotes."""


def parse_recipe(text: str, path: Path) -> Any:
    """The values of a file's text.

    Raises:
        ConfigError: with file and line, where that is known.
    """
    if not text.strip():
        raise ConfigError(f"{path}: is an empty file; a recipe that extends a shipped one needs `extends` alone")
    return _parse_yaml(text, path) if is_yaml(path) else _parse_json(text, path)


def recipe_text(values: dict[str, Any], path: Path) -> str:
    """What is written to ``path``."""
    if not is_yaml(path):
        return json.dumps(values, indent=2) + "\n"
    import yaml

    return str(yaml.dump(values, Dumper=_dumper(), sort_keys=False, allow_unicode=True))


def is_yaml(path: Path) -> bool:
    """By the ending, since all JSON is YAML too."""
    return path.suffix in RECIPE_SUFFIXES[1:]


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not valid JSON: {error.msg}{_json_hint(text, error)}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a usable recipe: {error}") from None


def _json_hint(text: str, error: json.JSONDecodeError) -> str:
    before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    if before.endswith(",") and after[:1] in ("}", "]"):
        return "; JSON has no comma behind the last value"
    if after.startswith(("//", "#", "/*")):
        return "; JSON has no comments, a .yaml recipe may have some"
    if after[:1] in _CURLY:
        return '; JSON has straight quotes: "name"'
    if after.startswith("'"):
        return '; JSON has double quotes: "name"'
    if after[:4] in ("True", "Fals", "None"):
        return "; JSON writes true, false and null"
    if not before:
        return f"; a recipe is one object in JSON, or YAML in a file that ends in {' or '.join(RECIPE_SUFFIXES[1:])}"
    return ""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} is given twice in one object")
        result[key] = value
    return result


def _parse_yaml(text: str, path: Path) -> Any:
    import yaml  # most recipes are JSON

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a usable recipe: {error}") from None


def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Strict: no key twice, text keys alone, the plain values of JSON."""

        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
            self.flatten_mapping(node)
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str):
                    raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no text", key_node.start_mark)
                if key in found:
                    problem = f"key {key!r} is given twice in one object"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                found[key] = self.construct_object(value_node, deep=True)
            return found

    for name, pattern, firsts in _PLAIN:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", pattern, firsts)
    Loader.add_constructor(
        "tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node).replace("_", ""))
    )
    Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node))
    return Loader


def _dumper() -> Any:
    """Texts that this loader or one of YAML 1.1 would take for something else are quoted."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    for name, pattern, firsts in _PLAIN:
        Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{name}", pattern, firsts)
    return Dumper
