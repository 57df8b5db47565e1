"""Regular expressions for the ``tokenizers`` library (Oniguruma)."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

_MEANS_MORE_IN_A_CLASS = "\\[]^-&"
_END = ""


def any_of(characters: Iterable[str]) -> str:
    """A class of these characters."""
    return f"[{_ranges({ord(character) for character in characters})}]"


def none_of(characters: Iterable[str]) -> str:
    """A class of all others."""
    return f"[^{_ranges({ord(character) for character in characters})}]"


def longest_of(words: Iterable[str]) -> str:
    """The longest of these words at a place. Words that share what follows share the pattern of it."""
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[_END] = {}
    return _pattern(root)


def _pattern(node: dict[str, Any]) -> str:
    by_rest: dict[str, list[str]] = defaultdict(list)
    for character, below in node.items():
        if character != _END:
            by_rest[_pattern(below)].append(character)
    if not by_rest:
        return ""
    body = "|".join(any_of(characters) + rest for rest, characters in by_rest.items())
    return f"(?:{body})?" if _END in node else f"(?:{body})"


def _ranges(codes: Collection[int]) -> str:
    found: list[list[int]] = []
    for code in sorted(codes):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return "".join(_quoted(low) if low == high else f"{_quoted(low)}-{_quoted(high)}" for low, high in found)


def _quoted(code: int) -> str:
    character = chr(code)
    return f"\\{character}" if character in _MEANS_MORE_IN_A_CLASS else character
