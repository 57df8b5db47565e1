"""Documents that are no prose, wherever they came from: what a record holds under the key of the text, or a paragraph.

``structured_text.py`` judges the beginning of a whole file by its lines; this judges clean documents, a sample of them,
and how many bytes of a corpus are so. A few of them are said; a corpus of which they are too many is refused.
"""

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from megadeberta.data_prep.machine_text import is_log
from megadeberta.data_prep.structured_text import MARKUP_HEADS, TAG, begin_of_markup, is_python, is_sql

_BEGINNING, _END = 3500, 500
"""Characters of a document that are looked at."""
_FEWEST_TAGS, _MOST_TAGS = 6, 0.2
_JSON_OPENING = re.compile(r'"?(?:\[\s*)?\{\s*\\?"[^"]{0,200}"\s*:')
_LONG_WORD, _LONGEST_WORD, _MOST_LONG = 24, 48, 0.5
_MIXED, _MARKS = re.compile(r"\d|[a-z][A-Z]"), re.compile(r"[+/=_.-]")
_FEWEST_DIFFERENT, _LETTERS_A_MARK = 10, 10
_ESCAPE = re.compile(r"\[(?:\d{1,3}(?:;\d{1,3})*m(?!\])|[0-2]?K\b)")
_CHARACTERS_AN_ESCAPE = 300
_MOST_REPLACED = 0.005
_TWICE_ENCODED = re.compile("[\xc2-\xf4][\x80-\xbf\u0152-\u02dc\u2013-\u203a\u20ac\u2122]+")
"""UTF-8 of a character, read byte by byte as Latin-1 or Windows-1252. Cleaning took half of the bytes of the former."""
_FEWEST_TWICE, _MOST_TWICE = 3, 0.3
_DAMAGED, _OTHER = 0.1, 0.5
_EXAMPLE = 60


@dataclass(frozen=True)
class Unfit:
    """A kind of text that is no prose."""

    what: str
    """"HTML or XML"."""
    remedy: str
    holds: Callable[[str], bool]
    most: float = _OTHER
    """Fraction of the bytes of a corpus above which it is refused: low for what nobody wants on purpose."""


def kind_of(text: str) -> str | None:
    """What a clean document is if it is no prose, a name of ``KINDS``; None for prose."""
    if len(text) > _BEGINNING + _END:
        text = f"{text[:_BEGINNING]} {text[-_END:]}"
    return next((kind.what for kind in KINDS.values() if kind.holds(text)), None)


def _is_markup(text: str) -> bool:
    if "<" not in text and "&lt;" in text:
        text = html.unescape(text)
    if text.startswith("<") and begin_of_markup(text).startswith(MARKUP_HEADS):
        return True
    tags = TAG.findall(text) if "</" in text else []
    if not any(tag.startswith("</") for tag in tags):
        return False
    if text.startswith(tags[0]) and text.endswith(tags[-1]):
        return True
    return len(tags) >= _FEWEST_TAGS and sum(map(len, tags)) >= _MOST_TAGS * len(text)


def _is_json(text: str) -> bool:
    if text[:1] not in '"[{':
        return False
    if _JSON_OPENING.match(text):
        return True
    try:
        return bool(value := json.loads(text)) and isinstance(value, dict | list)
    except (ValueError, RecursionError):
        return False


def _is_encoded(text: str) -> bool:
    words = [word for word in text.split(" ") if len(word) > _LONG_WORD and word.isascii()]
    return sum(len(word) for word in words if _is_code_word(word)) > _MOST_LONG * len(text)


def _is_code_word(word: str) -> bool:
    """A path or a name of many parts has more marks than base64, a line fewer characters, and a word no digit."""
    is_one_word = len(word) < _LONGEST_WORD and not _MIXED.search(word)
    is_other = "://" in word or len(set(word)) < _FEWEST_DIFFERENT or is_one_word
    return not is_other and len(_MARKS.findall(word)) * _LETTERS_A_MARK < len(word)


def _has_escapes(text: str) -> bool:
    # Cleaning took the escape character itself.
    return "[" in text and len(_ESCAPE.findall(text)) * _CHARACTERS_AN_ESCAPE >= len(text)


def _is_replaced(text: str) -> bool:
    return text.count("\ufffd") > _MOST_REPLACED * len(text)


def _is_twice_encoded(text: str) -> bool:
    if text.isascii():
        return False
    found = _TWICE_ENCODED.findall(text)
    others = sum(character > "\x7f" for character in text)
    return len(found) >= _FEWEST_TWICE and sum(map(len, found)) >= _MOST_TWICE * others


_AGAIN = "read the original again with its own encoding (iconv -f ENCODING -t UTF-8)"
KINDS = {
    kind.what: kind
    for kind in (
        Unfit("HTML or XML", "extract its text first (trafilatura, datatrove)", _is_markup),
        Unfit("JSON", "take the text out of it (jq), and write it as the value of a key", _is_json),
        Unfit("records as Python prints them", "take the text out of them", lambda text: is_python([text])),
        Unfit("SQL", "take the text out of it", lambda text: is_sql([text])),
        Unfit("lines of a log", "take the text out of them", is_log),
        Unfit("letters without spaces, such as base64 writes", "decode it", _is_encoded, _DAMAGED),
        Unfit("output of a terminal with escape codes", "take the codes out (ansi2txt)", _has_escapes, _DAMAGED),
        Unfit("text with U+FFFD in place of characters that a wrong decoding lost", _AGAIN, _is_replaced, _DAMAGED),
        Unfit("UTF-8 that was decoded as another encoding", _AGAIN, _is_twice_encoded, _DAMAGED),
    )
}
"""By what they are called in messages and reports."""


def in_file(name: str, example: str) -> str:
    """Where the first of a kind is, and its beginning."""
    return f"first in {name}: {example[:_EXAMPLE]!r}"
