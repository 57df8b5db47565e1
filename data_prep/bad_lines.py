"""Counting what a corpus holds and what of it could not be used, with the place of the first of each kind."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from megadeberta.data_prep.left_out import LeftOutByReason
from megadeberta.errors import DataError

REJECTED = {
    "invalid_utf8": "not valid UTF-8",
    "lone_surrogate": "half of a UTF-16 surrogate pair",
    "nul_byte": "a NUL character",
    "line_too_long": "line longer than --max-line-bytes",
    "invalid_json": "not JSON",
    "nesting_too_deep": "JSON nested too deeply",
    "number_too_long": "a number of more than 4300 digits",
    "missing_key": "no such key",
    "wrong_type": "not an object, or its text is not a string",
    "row_broken": "a row that does not fit the header",
    "markup_broken": "an article with too many templates, links, tables or tags that nothing closes",
    "truncated_record": "a record that ends early",
}
"""Lines left out."""
TOLERATED = {
    "byte_order_mark": "byte order mark removed",
    "blank_line": "blank line between records",
    "member_passed_over": "a member of an archive that holds no text",
}
"""Lines that lose nothing by the repair."""
DAMAGED = {
    "truncated_file": "compressed file ends early",
    "decompression_bomb": "compressed file expands too far",
}
"""Files of which only the part before the damage is used."""
_LONGEST_DETAIL = 200
MEANING = {**REJECTED, **TOLERATED, **DAMAGED}


@dataclass(frozen=True)
class Example:
    """The first occurrence of a kind: line number from 1, byte offset of the line in the unpacked file."""

    line: int
    offset: int
    detail: str = ""


@dataclass
class Tally:
    """Counts of one block; ``add`` joins those of the blocks of one file in order."""

    start: int = 0
    """Where the block begins in the unpacked file: added to the offsets of its lines."""
    lines: int = 0
    text_bytes: int = 0
    rejected_bytes: int = 0
    """Of the lines left out."""
    documents: int = 0
    empty_documents: int = 0
    cut_documents: int = 0
    scripts: dict[str, int] = field(default_factory=dict)
    """Letters of each script in a sample of the documents."""
    languages: dict[str, int] = field(default_factory=dict)
    """Bytes of the documents of each language in that sample, if they are asked for."""
    described_bytes: int = 0
    """Of that sample, each document times those it stands for."""
    unfit: LeftOutByReason = field(default_factory=LeftOutByReason)
    """What of it is no prose, by the names of ``unfit_text.KINDS``."""
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, Example] = field(default_factory=dict)
    left_out: LeftOutByReason = field(default_factory=LeftOutByReason)
    """Documents that rules of quality or test sets left out."""

    def count(self, kind: str, *, line: int, offset: int, detail: str = "") -> None:
        """Count one line of ``kind``; the first of each kind is kept as example."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind not in self.examples:
            self.examples[kind] = Example(line, self.start + offset, detail[:_LONGEST_DETAIL])

    def reject(self, kind: str, *, line: int, offset: int, num_bytes: int, detail: str = "") -> None:
        """Count one line of ``num_bytes`` that is left out."""
        self.rejected_bytes += num_bytes
        self.count(kind, line=line, offset=offset, detail=detail)

    def add_rejected(self, other: "Tally", name: str) -> None:
        """Add what ``other`` left out of ``name``, a file inside this one, and nothing else of it."""
        for kind, number in other.counts.items():
            if kind in REJECTED:
                self.counts[kind] = self.counts.get(kind, 0) + number
                first = other.examples[kind]
                detail = f"{name}:{first.line}{': ' if first.detail else ''}{first.detail}"
                self.examples.setdefault(kind, Example(0, 0, detail[:_LONGEST_DETAIL]))
        self.lines += other.rejected
        self.text_bytes += other.rejected_bytes
        self.rejected_bytes += other.rejected_bytes

    def damaged(self, kind: str, *, offset: int, detail: str) -> None:
        """Count a damaged file; ``line`` 0 means that only the byte is known."""
        self.count(kind, line=0, offset=offset, detail=detail)

    @property
    def rejected(self) -> int:
        """Lines left out."""
        return sum(self.counts.get(kind, 0) for kind in REJECTED)

    @property
    def damaged_files(self) -> int:
        """Compressed files of which a part is lost; ``CorpusTally.total`` reads it by name."""
        return sum(self.counts.get(kind, 0) for kind in DAMAGED)

    def add(self, other: "Tally") -> None:
        """Append the tally of what follows in the same file, shifting its line numbers by the lines so far."""
        for kind, number in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + number
        for kind, example in other.examples.items():
            shifted = Example(example.line + self.lines if example.line else 0, example.offset, example.detail)
            self.examples.setdefault(kind, shifted)
        for script, number in other.scripts.items():
            self.scripts[script] = self.scripts.get(script, 0) + number
        for language, number in other.languages.items():
            self.languages[language] = self.languages.get(language, 0) + number
        self.described_bytes += other.described_bytes
        self.unfit.join(other.unfit)
        self.lines += other.lines
        self.text_bytes += other.text_bytes
        self.rejected_bytes += other.rejected_bytes
        self.documents += other.documents
        self.empty_documents += other.empty_documents
        self.cut_documents += other.cut_documents
        self.left_out.join(other.left_out)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without those that are 0 or empty; ``from_json`` gives the tally back."""
        examples = {kind: vars(example) for kind, example in self.examples.items()}
        described = {name: getattr(self, name).to_json() for name in ("left_out", "unfit")}
        fields = {**vars(self), "examples": examples, **described}
        return {name: value for name, value in fields.items() if value}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The tally that ``to_json`` described."""
        examples = {kind: Example(**value) for kind, value in fields.get("examples", {}).items()}
        described = {name: LeftOutByReason.from_json(fields.get(name, {})) for name in ("left_out", "unfit")}
        return cls(**{**fields, "examples": examples, **described})


class CorpusTally:
    """The tallies of all files of a corpus joined, and whether it is good enough to go on with."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._whole = Tally()
        self._first: dict[str, int] = {}  # kind of line or of unfit text -> the file of its example
        self._source, self._lines = -1, 0

    def add(self, source: int, tally: Tally) -> None:
        """Append a block's tally to that of its file. Tallies with line numbers come in the order of the corpus."""
        if source != self._source:
            self._source, self._lines = source, 0
        for kind, example in tally.examples.items():
            if source < self._first.get(kind, len(self._names)):
                line = example.line + self._lines if example.line else 0
                self._first[kind] = source
                self._whole.examples[kind] = Example(line, example.offset, example.detail)
        for kind in tally.unfit:
            self._first.setdefault(kind, source)
        self._lines += tally.lines
        self._whole.add(tally)

    def total(self, attribute: str) -> int:
        """Sum over the files of a numeric attribute of ``Tally``."""
        return getattr(self._whole, attribute)

    def scripts(self) -> Counter[str]:
        """Letters of each script in the sampled documents of all files."""
        return Counter(self._whole.scripts)

    def languages(self) -> Counter[str]:
        """Bytes of the sampled documents of each language, of all files."""
        return Counter(self._whole.languages)

    def left_out(self) -> LeftOutByReason:
        """Documents of all files that rules of quality or test sets left out."""
        return self._whole.left_out

    def unfit(self) -> dict[str, Any]:
        """For the report: per kind of text that is no prose its fraction of the bytes, the first file and examples."""
        bytes_of_all = max(1, self._whole.described_bytes)
        return {
            kind: {
                "fraction": round(found.num_bytes / bytes_of_all, 4),
                "documents": found.documents,
                "first": self._names[self._first[kind]],
                "examples": found.examples,
            }
            for kind, found in self._whole.unfit.items()
        }

    def first_unfit(self, kind: str) -> int:
        """Number of the file with the first text of a kind that ``unfit`` names."""
        return self._first[kind]

    def describe(self) -> dict[str, dict[str, Any]]:
        """For the report: per kind its meaning, count and first place."""
        return {
            kind: {"meaning": MEANING[kind], "count": count, "first": self._place(kind)}
            for kind in MEANING
            if (count := self._whole.counts.get(kind, 0))
        }

    def check(self, *, max_bad_fraction: float) -> None:
        """Refuse a corpus with too many unusable lines or damaged files.

        Raises:
            DataError: with the share, the most frequent kind and its first place.
        """
        found = self.describe()
        for unit, bad, total in (
            ("lines", self.total("rejected"), self.total("lines")),
            ("bytes of text", self.total("rejected_bytes"), self.total("text_bytes")),
            ("files", self.total("damaged_files"), len(self._names)),
        ):
            if bad <= max_bad_fraction * total:
                continue
            kinds = [kind for kind in found if kind in (DAMAGED if unit == "files" else REJECTED)]
            worst = max(kinds, key=lambda kind: found[kind]["count"])
            or_allow = "" if bad == total else " or raise --max-bad-fraction"
            raise DataError(
                f"{bad} of {total} {unit} cannot be used ({bad / total:.2%}, allowed {max_bad_fraction:.2%}); most: "
                f"{found[worst]['count']} x {MEANING[worst]}, first at {found[worst]['first']}; fix the "
                f"corpus{or_allow}"
            )

    def check_none_bad(self) -> None:
        """Refuse the first unusable line or damaged file (the `stop` policy).

        Raises:
            DataError: with its kind and place.
        """
        for kind, entry in self.describe().items():
            if kind not in TOLERATED:
                raise DataError(f"{entry['first']}: {MEANING[kind]}; fix it, or use --on-bad-line=skip")

    def _place(self, kind: str) -> str:
        name, example = self._names[self._first[kind]], self._whole.examples[kind]
        place = f"{name}:{example.line}" if example.line else name
        detail = f": {example.detail}" if example.detail else ""
        return f"{place} (byte {example.offset}){detail}"
