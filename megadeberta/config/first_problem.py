"""What is wrong with values from a file, as one sentence for an error message."""

from pydantic import ValidationError


def first_problem(error: ValidationError, *, show_value: bool = False) -> str:
    """The first of the problems: ``world_size: Field required``; the words of a check of ours stand alone.

    Args:
        show_value: also what was found: ``hidden_size=0: Input should be greater than 0``.
    """
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    where = ".".join(str(part) for part in first["loc"])
    found = f"={first['input']!r}" if show_value else ""
    return f"{where}{found}: {first['msg']}" if where else first["msg"]
