"""The JSON Schema of a recipe, for editors: names, types, ranges and descriptions, all of them the code's own."""

from typing import Any

from megadeberta.config.run import RunConfig

SCHEMA_KEY = "$schema"
"""A recipe may name its schema; nothing reads it but editors."""
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """Of one file, which may leave out whatever the recipe that it extends has: so nothing is required in it."""
    schema = _without_requirements(RunConfig.model_json_schema())
    own = {
        SCHEMA_KEY: {"type": "string", "description": "this schema; read by editors alone"},
        "extends": {"type": "string", "description": "name of a shipped recipe, or path of one from this file on"},
    }
    return {
        SCHEMA_KEY: _DIALECT,
        **schema,
        "title": "megadeberta recipe",
        "description": "One run. `megadeberta train RECIPE --dry-run` checks what a schema cannot.",
        "properties": own | schema["properties"],
    }


def _without_requirements(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_requirements(item) for item in node]
    if not isinstance(node, dict):
        return node
    is_source = node.get("title") == "TrainSource"  # no part of it can come from elsewhere
    left_out = {"title"} if is_source or "properties" not in node else {"title", "required"}
    kept = {key: value for key, value in node.items() if not (key in left_out and not isinstance(value, dict))}
    return {key: _without_requirements(value) for key, value in kept.items()}
