"""Text that is no prose: records, tables and markup under a name that does not say so.

What is looked at are whole lines of the beginning of a file, and how many of them have the form: prose that mentions a
tag or a table stays prose. Nothing of it is read as text unless ``--format=text`` asks for it.
"""

import ast
import csv
import json
import re
from collections import Counter
from collections.abc import Callable

from megadeberta.data_prep.machine_text import is_log_file, is_settings, is_terminal, is_yaml

_LINES = 200
_FEWEST_ROWS = 5
_MOST, _HALF = 0.8, 0.5
TAG = re.compile(r"</?[A-Za-z][\w:.-]*(?:\s[^<>]*)?/?>|<!--")
_FEWEST_TAGS = 6
_COMMENTS = re.compile(r"\A(?:<!--.*?-->\s*)+", re.DOTALL)
HTML_HEADS = ("<!doctype html", "<html")
MARKUP_HEADS = (*HTML_HEADS, "<?xml", "<!doctype")
_CUE = re.compile(r"(?:\d+:)?\d\d:\d\d[.,]\d+ --> ")
_FEWEST_CUES = 2
_HEX = re.compile(r"(?:[0-9a-f]{6,8}:? +)?(?:[0-9a-f]{2,4}[ :]?){8}", re.IGNORECASE)
_QUOTED = re.compile(r"=(?:[0-9A-F]{2}|$)", re.MULTILINE)
_MOST_WITHOUT_SPACE, _FEWEST_CHARACTERS = 40, 1000
"""ASCII characters for each white one; the words of languages written so are shorter by far."""
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_SQL = re.compile(r"INSERT INTO\s|CREATE TABLE\s", re.IGNORECASE)
_OPENINGS = {
    re.compile(r"\{\\rtf"): ("rich text (RTF)", "save it as plain text"),
    re.compile(r"%!PS"): ("PostScript", "extract its text"),
    re.compile(r"WEBVTT\b"): ("a file of subtitles (WebVTT)", "take the text out of them"),
    re.compile(r"From \S+ (?>.*?\d\d:\d\d:\d\d).*+\n[\w-]++:.*+\n"): ("a mailbox", "take the text out of its messages"),
    re.compile(r"(?:--(?! (?:MySQL|MariaDB|PostgreSQL database) dump).*+\s*+)*+--"): (
        "an SQL dump",
        "write its text as JSON lines",
    ),
    re.compile(r"begin [0-7]{3,4} \S.*\n[ -`]{2,61}\n"): ("uuencoded data", "decode it"),
    re.compile(r"(?:[\w-]++:.*+\n(?:[ \t].*+\n)*+)*?(?i:mime-version|content-transfer-encoding):"): (
        "an e-mail message",
        "take the text out of it",
    ),
    re.compile(r"[^\n]*\x1b\$[@AB)]"): ("ISO-2022 text", "convert it: iconv -f ISO-2022-JP -t UTF-8"),
}
_JSON_REMEDY = "write records with the text under a key, one per line"
_AS_IT_IS = "or read it as it stands with --format=text"


def begin_of_markup(text: str) -> str:
    """The beginning of a text in small letters, without comments of markup before it."""
    return _COMMENTS.sub("", text[:2000]).lower()


def json_records(lines: list[str]) -> bool:
    """Whether nearly all lines are JSON objects, whatever the first one is."""
    return _fraction(lines, lambda line: line.lstrip("\x1e").startswith("{") and _is(line, json.loads, dict)) >= _MOST


def structure_of(text: str, *, is_whole: bool) -> tuple[str, str] | None:
    """What a text is if it is no prose, and what to do; None for prose.

    Args:
        text: the beginning of a file, without what precedes its first character.
        is_whole: it is all of the file, so that its last line is whole.
    """
    for opening, found in _OPENINGS.items():
        if opening.match(text):
            return found
    lines = sample_lines(text, is_whole=is_whole)
    if not lines:
        return None
    if _is_json_lists(lines) or (_are_json_strings(lines) and not _BLANK_LINE.search(text.strip())):
        return "a file of JSON values without keys, one per line", f"{_JSON_REMEDY}, {_AS_IT_IS}"
    for what, remedy, holds in _KINDS:
        if holds(lines):
            return what, f"{remedy}, {_AS_IT_IS}"
    return None


def sample_lines(text: str, *, is_whole: bool) -> list[str]:
    """The first lines that are not blank, without the last one of a beginning, which is cut off, unless it is all."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not is_whole and len(lines) > 1:
        lines.pop()
    return lines[:_LINES]


def has_old_line_ends(head: bytes) -> bool:
    """Whether lines end in a carriage return alone, as on old Macs: all lines would be one."""
    return head.count(b"\r") - head.count(b"\r\n") > max(1, head.count(b"\n"))


def _fraction(lines: list[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, lines)) / max(1, len(lines))


def _is(line: str, parse: Callable[[str], object], kind: type | tuple[type, ...]) -> bool:
    try:
        return isinstance(parse(line.strip().lstrip("\x1e")), kind)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def _is_json_lists(lines: list[str]) -> bool:
    return len(lines) > 1 and _fraction(lines, lambda line: line[0] == "[" and _is(line, json.loads, list)) >= _MOST


def _are_json_strings(lines: list[str]) -> bool:
    """All of them, as dialogue has many lines between quotation marks; it is written with blank lines, too."""
    return len(lines) > 1 and all(line[0] == '"' and _is(line, json.loads, str) for line in lines)


def is_python(lines: list[str]) -> bool:
    """Whether lines are dictionaries as Python prints them."""
    return _fraction(lines, lambda line: line.startswith("{'") and _is(line, ast.literal_eval, dict)) >= _MOST


def _is_markup(lines: list[str]) -> bool:
    if _fraction(lines, lambda line: TAG.match(line.lstrip()) is not None) < _HALF:
        return False
    tags = [tag for line in lines for tag in TAG.findall(line)]
    return len(tags) >= _FEWEST_TAGS and any(tag.startswith("</") for tag in tags)


def _is_subtitles(lines: list[str]) -> bool:
    return sum(_CUE.match(line) is not None for line in lines) >= max(_FEWEST_CUES, len(lines) / 10)


def is_sql(lines: list[str]) -> bool:
    """Whether lines begin a statement that fills a database."""
    return _fraction(lines, lambda line: _SQL.match(line.lstrip()) is not None) >= _HALF


def _is_table(lines: list[str]) -> bool:
    """Rows of equally many columns: by tabs, or as CSV, where no column begins with the space of prose."""
    if len(lines) < _FEWEST_ROWS:
        return False
    if _same_width([line.strip().split("\t") for line in lines], narrowest=2):
        return True
    return any(_same_width(_rows(lines, delimiter), narrowest=3) for delimiter in ",;|")


def _rows(lines: list[str], delimiter: str) -> list[list[str]]:
    try:
        return [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except csv.Error:
        return []


def _same_width(rows: list[list[str]], *, narrowest: int) -> bool:
    if len(rows) < _FEWEST_ROWS:
        return False
    width, number = Counter(map(len, rows)).most_common(1)[0]
    if width < narrowest or number < _MOST * len(rows):
        return False
    of_width = [row for row in rows if len(row) == width]
    if width == 2:  # one tab per line may be prose; a column of names, numbers or labels is not
        return any(all(" " not in row[column].strip() for row in of_width) for column in range(width))
    return not any(column.startswith(" ") for row in of_width for column in row)


def _is_encoded(lines: list[str]) -> bool:
    text = "\n".join(lines)
    is_ascii = len(text) >= _FEWEST_CHARACTERS and text.isascii()
    return is_ascii and len(text) > _MOST_WITHOUT_SPACE * (text.count(" ") + text.count("\t") + len(lines))


def _is_hex(lines: list[str]) -> bool:
    return len(lines) >= _FEWEST_ROWS and _fraction(lines, lambda line: _HEX.match(line.strip()) is not None) >= _MOST


def _is_quoted_printable(lines: list[str]) -> bool:
    breaks = _fraction(lines, lambda line: line.endswith("=")) if len(lines) >= _FEWEST_ROWS else 0.0
    return breaks >= _HALF / 2 and len(_QUOTED.findall("\n".join(lines))) > len(lines)


_KINDS: tuple[tuple[str, str, Callable[[list[str]], bool]], ...] = (
    ("a file of records as Python prints them", "write them with json.dumps", is_python),
    ("HTML or XML without a head", "extract its text first", _is_markup),
    ("a file of subtitles", "take the text out of them", _is_subtitles),
    ("an SQL dump", "write its text as JSON lines", is_sql),
    ("a hex dump", "decode it", _is_hex),
    ("a capture of a terminal with escape codes", "take the codes out (ansi2txt)", is_terminal),
    ("a log", "take the text out of its lines", is_log_file),
    ("quoted-printable text", "decode it", _is_quoted_printable),
    (
        "letters without spaces, such as base64, percent or UTF-7 encoding writes",
        "decode it, or write words with spaces between them",
        _is_encoded,
    ),
    (
        "a table without a column of the text's name",
        "give it a header, name it .csv or .tsv and name the column with --text-key",
        _is_table,
    ),
    ("YAML", "write its text as JSON lines", is_yaml),
    ("a file of settings (INI, TOML, properties)", "leave it out", is_settings),
)
