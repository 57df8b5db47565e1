"""The text of a record, whatever kind of file it came from."""

import json
from typing import Any

from megadeberta.data_prep.lines import BadLine

_DECODER = json.JSONDecoder()


def parse_record(line: str, keys: tuple[str, ...]) -> str:
    """The text of one JSON record; NaN and Infinity in other fields, as Python writes them, are no reason to refuse it.

    Raises:
        BadLine: not JSON, beyond Python's limits, without a key, or a value that is not usable text.
    """
    try:
        record = _DECODER.decode(line)
    except RecursionError:
        raise BadLine("nesting_too_deep") from None
    except json.JSONDecodeError as error:
        raise BadLine("invalid_json", f"{error.msg} at character {error.pos}") from None
    except ValueError:
        raise BadLine("number_too_long") from None
    if not isinstance(record, dict):
        raise BadLine("wrong_type", f"the record is {_kind(record)}")
    return record_text(record, keys)


def record_text(record: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The values under ``keys``, one per line. A key with dots ("meta.text") goes into nested records.

    Raises:
        BadLine: a key is missing, or its value is not usable text.
    """
    return "\n".join(_value(record, key) for key in keys)


def _value(record: dict[str, Any], key: str) -> str:
    value: Any = record.get(key, _MISSING)
    if value is _MISSING and "." in key:
        value = record
        for step in key.split("."):
            value = value.get(step, _MISSING) if isinstance(value, dict) else _MISSING
    if value is _MISSING:
        raise BadLine("missing_key", f"has {', '.join(map(repr, list(record)[:5])) or 'no key'}, not {key!r}")
    return usable_text(value, key)


_MISSING = object()


def usable_text(value: Any, key: str) -> str:
    """``value`` of a record, if it is text that can be used.

    Raises:
        BadLine: it is not text, or holds NUL or half a surrogate pair.
    """
    if not isinstance(value, str):
        raise BadLine("wrong_type", f"{key!r} is {_kind(value)}")
    if "\0" in value:
        raise BadLine("nul_byte")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadLine("lone_surrogate") from None
    return value


def _kind(value: Any) -> str:
    """What JSON calls a value that is not what was wanted; a table's own kinds by their Python name."""
    names = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a record"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
