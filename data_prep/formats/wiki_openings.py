"""Whether the markup of an article can be parsed in a time that follows from its size.

mwparserfromhell reads to the end of the article for what closes a template, link, table or tag, and where nothing does,
starts again behind the opening: 20 000 openings that nothing closes take hours. They are counted here in one pass.
"""

import re

_TOKEN = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|\[(?=[A-Za-z]+:|//)|\]|^[ \t:]*\{\||^[ \t]*\|\}(?!\}(?!\}))|<!--|-->|<(/?)([A-Za-z]+)|(/?)>",
    re.MULTILINE,
)
"""Tables begin and end at the beginning of a line."""
_CLOSES = {"}}": "{{", "]]": "[[", "]": "[", "|}": "{|", "-->": "<!--"}
_NEVER_CLOSED = frozenset("br wbr hr meta link img li dt dd th td tr".split())
_DEEPEST = 40
"""The parser takes what is deeper for text, after having looked for its end."""
_MOST_READ = 10_000_000
"""Characters that are read in vain: about a second."""


def is_readable(markup: str) -> bool:
    """Whether the parser comes to an end soon: openings that lead nowhere, times the size of the article, are few."""
    openings = sum(map(markup.count, "{[<"))
    return openings * len(markup) <= _MOST_READ or count_unclosed(markup) * len(markup) <= _MOST_READ


def count_unclosed(markup: str) -> int:
    """Openings of templates, links, tables, comments and tags that nothing closes, or that are nested too deep."""
    pairs = _Pairs()
    tag = ""
    for found in _TOKEN.finditer(markup):
        token, ends, name, is_empty = found[0].lstrip(" \t:"), found[1], found[2], found[3]
        if name is not None:
            pairs.open("<")
            tag = f"{ends}{name.lower()}"
        elif is_empty is not None:
            if pairs.close("<") and not is_empty:
                pairs.end(tag)
        elif token in _CLOSES:
            pairs.close(_CLOSES[token])
        else:
            pairs.open(token)
    return pairs.num_unclosed()


class _Pairs:
    """What is open, from the outside in, and how many of each kind; closing one leaves all inside it without an end."""

    def __init__(self) -> None:
        self._open: list[tuple[str, int]] = []
        self._number: dict[str, int] = {}
        self._depths: list[int] = []
        """By place: 1 where something begins that has an end, -1 at its end."""
        self._unclosed = 0

    def open(self, kind: str) -> None:
        """Something begins."""
        self._open.append((kind, len(self._depths)))
        self._depths.append(0)
        self._number[kind] = self._number.get(kind, 0) + 1

    def close(self, kind: str) -> bool:
        """It ends, if it is open; whether it was."""
        if not self._number.get(kind):
            return False
        while True:
            inner, place = self._open.pop()
            self._number[inner] -= 1
            if inner == kind:
                self._depths[place] = 1
                self._depths.append(-1)
                return True
            self._unclosed += 1

    def end(self, tag: str) -> None:
        """A tag is whole: it opens, or closes one of its name."""
        if tag.startswith("/"):
            self.close(f"<{tag[1:]}>")
        elif tag not in _NEVER_CLOSED:
            self.open(f"<{tag}>")

    def num_unclosed(self) -> int:
        """At the end of the article."""
        depth = too_deep = 0
        for step in self._depths:
            depth += step
            too_deep += step > 0 and depth > _DEEPEST
        return self._unclosed + len(self._open) + too_deep
