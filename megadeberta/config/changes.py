"""The settings of a recipe under their dotted names, and which of them differ between two recipes."""

from collections.abc import Iterator, Mapping
from typing import Any

from megadeberta.config.redact import redact

_MOST_SHOWN = 12
_UNSAID = ("name", "description", "supervision.")
"""Settings, or the beginnings of their names, that no trained weight depends on."""


def flat_settings(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a recipe under their dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat_settings(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any], *, among: tuple[str, ...] = ("",)) -> str:
    """The settings that differ, with both values, separated by commas; empty where none does.

    Args:
        among: beginnings of the names that are looked at.
    """
    before, after = (dict(flat_settings(redact(values))) for values in (saved, current))
    keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    keys = [key for key in keys if key.startswith(among) and not key.startswith(_UNSAID)]
    shown = [f"{key} {_text(before.get(key))} -> {_text(after.get(key))}" for key in keys[:_MOST_SHOWN]]
    more = f" (and {len(keys) - _MOST_SHOWN} more)" if len(keys) > _MOST_SHOWN else ""
    return ", ".join(shown) + more


def _text(value: Any) -> str:
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
