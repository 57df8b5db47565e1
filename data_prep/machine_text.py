"""Text that programs write for whoever looks after them: logs, settings, captures of a terminal; told by its lines."""

import re
from collections import Counter
from collections.abc import Sequence

_MOST, _HALF = 0.8, 0.5
_FEWEST_LINES = 5
_LEVEL = "DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|FATAL|CRITICAL|TRACE"
_CLOCK = r"\d\d:\d\d:\d\d"
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_STAMP = "|".join(
    (
        rf"\d{{4}}[-/.]\d\d[-/.]\d\d[T _]{_CLOCK}",
        rf"{_MONTH} +\d{{1,2}} {_CLOCK} \S+ ",  # syslog
        rf"\S+ \S+ \S+ \[\d\d/{_MONTH}/\d{{4}}:{_CLOCK} [+-]\d{{4}}\]",  # a web server's
        rf"\[\w{{3}} {_MONTH} \d\d {_CLOCK}(?:\.\d+)? \d{{4}}\]",
        r"\[ *\d+\.\d{6}\] ",  # a kernel's
        rf"[IWEF]\d{{4}} {_CLOCK}\.\d+ ",
        rf"\d\d-\d\d {_CLOCK}\.\d{{3}} ",
        rf"\[?(?:{_LEVEL})\]?(?::| - |\s+\[|\s+\d)",
    )
)
_LOG_LINE = re.compile(rf"(?:\W{{0,2}}(?:{_STAMP}))")
_ANY_STAMP = re.compile(_STAMP)
_CHARACTERS_A_STAMP = 300
_KEY = re.compile(r"(?P<indent> *)(?P<item>- +)?(?P<key>[\w.$/\"'-]+):(?:\s+(?P<value>\S.*))?$")
_ITEM = re.compile(r" *- \S")
_YAML_MARK = re.compile(r"(?:---|\.\.\.)(?:\s|$)|\s*#|%YAML")
_MOST_WORDS = 4
_SECTION = re.compile(r"\s*\[\[?[\w.:\"' /\\@-]+\]\]?\s*(?:[;#].*)?$")
_SETTING = re.compile(r"\s*(?:export )?[A-Za-z_][\w.:\[\]/-]*\s*[=]\s*(?!=)")
_INI_COMMENT = re.compile(r"\s*[;#!]")
_ESCAPE = re.compile(r"\x1b(?:\[[\d;?]*[A-Za-z]|\][^\x07\n]*\x07|[()][0B]|[=>78])")
_FEWEST_ESCAPES, _CHARACTERS_AN_ESCAPE = 3, 1000


def is_log(text: str) -> bool:
    """Whether a text begins with a time or level as logs write it, and has one for each few lines that it was."""
    return bool(_LOG_LINE.match(text)) and len(_ANY_STAMP.findall(text)) * _CHARACTERS_A_STAMP >= len(text)


def is_log_file(lines: Sequence[str]) -> bool:
    """Whether half of the lines begin with a time or level as logs write it."""
    stamped = sum(_LOG_LINE.match(line.lstrip()) is not None for line in lines)
    return len(lines) >= _FEWEST_LINES and stamped >= _HALF * len(lines)


def is_terminal(lines: Sequence[str]) -> bool:
    """Whether escape codes of a terminal are all over the lines."""
    found = sum(len(_ESCAPE.findall(line)) for line in lines if "\x1b" in line)
    return found >= _FEWEST_ESCAPES and found * _CHARACTERS_AN_ESCAPE >= sum(map(len, lines))


def is_yaml(lines: Sequence[str]) -> bool:
    """Whether lines are keys with short values, nested or each key another one: no dialogue, glossary or list.

    A play has its speakers again and again, and a glossary has sentences behind its words.
    """
    lines = [line for line in lines if not _YAML_MARK.match(line)]
    if len(lines) < _FEWEST_LINES:
        return False
    found = [_KEY.match(line) for line in lines]
    keys = [match for match in found if match]
    items = sum(match is None and _ITEM.match(line) is not None for match, line in zip(found, lines, strict=True))
    if len(keys) < _HALF * len(lines) or len(keys) + items < _MOST * len(lines):
        return False
    values = [len(match["value"].split()) for match in keys if match["value"]]
    if values and sum(values) > _MOST_WORDS * len(values):
        return False
    nested = sum(
        _indent(after) > _indent(line)
        for match, line, after in zip(found, lines, lines[1:], strict=False)
        if match is not None and not match["value"]
    )
    return nested >= 2 or _are_different(keys)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" -"))


def _are_different(keys: Sequence[re.Match[str]]) -> bool:
    names = Counter(match["key"] for match in keys)
    return all(name.islower() for name in names) and max(names.values()) == 1


def is_settings(lines: Sequence[str]) -> bool:
    """Whether lines are ``name = value`` and ``[section]``: INI, TOML, properties, environment."""
    lines = [line for line in lines if not _INI_COMMENT.match(line)]
    settings = sum(_SETTING.match(line) is not None for line in lines)
    sections = sum(_SECTION.match(line) is not None for line in lines)
    return settings + sections >= max(_FEWEST_LINES, _MOST * len(lines)) and settings >= sections
