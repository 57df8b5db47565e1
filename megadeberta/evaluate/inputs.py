"""The files that `megadeberta evaluate` scores: a text, and BLiMP's pairs of sentences. Read before torch is loaded."""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megadeberta.errors import DataError

_FIELDS = ("UID", "field", "linguistics_term", "sentence_good", "sentence_bad")


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ as little as possible."""

    paradigm: str
    phenomenon: str
    field: str
    good: str
    bad: str


def read_text(path: Path) -> str:
    """A UTF-8 text.

    Raises:
        DataError: it cannot be read, or is blank.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start}: {error.reason}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not content.strip():
        raise DataError(f"{path}: holds no text; nothing can be scored")
    return content


def read_pairs(path: Path, *, most: int | None = None) -> list[Pair]:
    """Pairs of a ``.jsonl`` (or ``.jsonl.gz``) in BLiMP's format, or of all such files of a folder.

    Args:
        most: the first pairs of each paradigm, at most.

    Raises:
        DataError: not there, no pairs, or a line is none.
    """
    files = sorted(path.glob("*.jsonl*")) if path.is_dir() else [path]
    seen: dict[str, int] = defaultdict(int)
    pairs = []
    for file in files:
        for pair in _pairs_of(file):
            seen[pair.paradigm] += 1
            if most is None or seen[pair.paradigm] <= most:
                pairs.append(pair)
    if not pairs:
        raise DataError(f"{path}: holds no pairs; give BLiMP's .jsonl, .jsonl.gz, or the folder of its files")
    return pairs


def _pairs_of(file: Path) -> Iterator[Pair]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _pair(line, f"{file}: line {number}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file}: cannot be read ({reason})") from None


def _pair(line: str, source: str) -> Pair:
    try:
        record = json.loads(line)
        paradigm, field, term, good, bad = (str(record[name]) for name in _FIELDS)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{source}: is no pair of BLiMP with {', '.join(_FIELDS)} ({type(error).__name__}: {error})"
        ) from None
    # The published files spell one field in two ways.
    return Pair(paradigm, term, field.replace("/", "_"), good, bad)
