"""docs/settings.md: every setting of a recipe, written from the classes that read it."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from megadeberta.config.run import RunConfig
from megadeberta.config.schema import recipe_schema

_WIDTH = 80
"""Columns: the page is read in terminals, too."""

_HEAD = """# Settings of a recipe

Written by `megadeberta recipes --settings`; a test compares it with the code.
`--set SECTION.KEY=VALUE` overrides any of them.
`megadeberta recipes --schema > recipe.schema.json` gives the same as JSON
Schema: with `"$schema": "./recipe.schema.json"` in a recipe, or
`# yaml-language-server: $schema=recipe.schema.json` at the top of a YAML one,
editors complete and check it. [recipes.md](recipes.md) says how the settings go
together.

A file may leave out whatever the recipe named by `extends` has. **required**:
some file, or `--set`, must give it.
"""


def settings_page() -> str:
    """The page, as Markdown."""
    schema = recipe_schema()
    sections = [("", "The recipe itself", RunConfig)]
    blocks = [_HEAD]
    while sections:
        name, title, model = sections.pop(0)
        entries, inner = _entries(name, model, schema)
        about = [_wrapped(_first_line(model))] if name else []
        blocks.append("\n\n".join([f"## {title}", *about, "\n".join(entries)]) + "\n")
        sections = inner + sections
    return "\n".join(blocks)


def _entries(name: str, model: type[BaseModel], schema: dict[str, Any]) -> tuple[list[str], list[Any]]:
    entries = []
    inner = []
    properties = schema["$defs"][model.__name__]["properties"] if name else schema["properties"]
    if not name:
        entries.append(_entry("extends", "text", properties["extends"]["description"]))
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            path = f"{name}.{key}" if name else key
            inner.append((path, f"`{path}`", field.annotation))
            continue
        node = properties[key]
        default = "**required**" if field.is_required() else f"default `{json.dumps(node.get('default'))}`"
        entries.append(_entry(key, f"{_values(node, schema)}; {default}", field.description or ""))
    return entries, inner


def _entry(key: str, values: str, text: str) -> str:
    return _wrapped(f"- `{key}` ({values}): {text}", indent="  ")


def _wrapped(text: str, *, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _values(node: dict[str, Any], schema: dict[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_alternatives(node, schema)))


def _alternatives(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    for inner in node.get("anyOf", node.get("oneOf", ())):
        yield from _alternatives(inner, schema)
    if "anyOf" in node or "oneOf" in node:
        return
    if "enum" in node:
        yield ", ".join(f"`{value}`" for value in node["enum"])
    elif "const" in node:
        yield f"`{node['const']}`"
    elif "patternProperties" in node:
        (value,) = node["patternProperties"].values()
        keys = schema["$defs"][value["$ref"].rsplit("/", 1)[1]]["properties"] if "$ref" in value else {}
        yield "object by name" + (f" of {', '.join(f'`{key}`' for key in keys)}" if keys else "")
    else:
        yield _plain(node)


def _plain(node: dict[str, Any]) -> str:
    names = {"integer": "whole number", "string": "text", "boolean": "`true`, `false`", "null": "`null`"}
    kind = "path" if node.get("format") == "path" else names.get(node.get("type", ""), node.get("type", "any"))
    if node.get("type") == "array":
        return f"list of {_plain(node['items']) if 'type' in node['items'] else _values(node['items'], {})}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {node[key]:g}" for key, sign in signs.items() if key in node]
    return " ".join([kind, ", ".join(limits)]).strip()


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]
