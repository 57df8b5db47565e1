"""What is wrong with values from a file, as one sentence for an error message."""

import json
from collections.abc import Iterable

from pydantic import ValidationError


def hidden(tag: str) -> str:
    """A tag of a union that no message shows: pydantic puts it among the keys of what is wrong."""
    return f"<{tag}>"


def dotted(location: Iterable[int | str]) -> str:
    """The path of a value in a file, ``model.hidden_size``, from a location of pydantic."""
    return ".".join(str(part) for part in location if not is_hidden(part))


def is_hidden(part: int | str) -> bool:
    """Whether a part of a location is a tag and no key of the file."""
    return str(part).startswith("<")


def first_problem(error: ValidationError, *, show_value: bool = False) -> str:
    """The first of the problems: ``world_size: Field required``; the words of a check of ours stand alone.

    Args:
        show_value: also what was found: ``hidden_size=0: Input should be greater than 0``.
    """
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    where = dotted(first["loc"])
    found = f"={first['input']!r}" if show_value else ""
    message = first["msg"]
    if first["type"] == "tuple_type":
        message = f"must be a list, such as [{json.dumps(first['input'], default=str)}]"
    elif first["type"] == "path_type":
        message = "must be the path of a file or folder"
    elif first["type"] == "too_short":
        message = "must not be empty"
    elif first["type"] == "string_pattern_mismatch":
        message = f"must match {first['ctx']['pattern']}"
    elif first["type"] in ("model_type", "dict_type") and where:
        message = "must be a section with keys of its own" + ("; indent them" if first["input"] is None else "")
    return f"{where}{found}: {message}" if where else message
