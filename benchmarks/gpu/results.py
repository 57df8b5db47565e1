"""What was measured, one JSON line each, written as it is measured; and how goals and note look it up. Torch-free."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

MEASURED, FAILED, SKIPPED = "measured", "failed", "skipped"


@dataclass(frozen=True)
class Record:
    """One line of results.jsonl."""

    name: str
    kind: str
    status: str
    """MEASURED, FAILED or SKIPPED."""
    parameters: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    """By name, the unit at its end: milliseconds ``_ms``, GiB ``_gib``, none for fractions. Empty unless measured."""
    reason: str = ""
    """Why there is no value."""
    seconds: float = 0.0
    """Since the measurement was started."""


class Results:
    """All records so far, each in the file as soon as it is added."""

    def __init__(self, file: TextIO) -> None:
        self.records: list[Record] = []
        self._file = file

    @classmethod
    def create(cls, folder: Path) -> "Results":
        return cls((folder / "results.jsonl").open("w", encoding="utf-8"))

    def add(self, record: Record) -> None:
        self.records.append(record)
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()

    def with_status(self, status: str) -> list[Record]:
        return [record for record in self.records if record.status == status]

    def measured(self, kind: str, **parameters: Any) -> Iterator[Record]:
        """Those of a kind whose parameters hold these."""
        for record in self.records:
            if record.kind == kind and record.status == MEASURED and parameters.items() <= record.parameters.items():
                yield record

    def value(self, kind: str, key: str, **parameters: Any) -> float | None:
        """The smallest such value, so of several backends the best time; None if there is none."""
        found = [record.values.get(key) for record in self.measured(kind, **parameters)]
        return min((number for number in found if number is not None), default=None)

    def largest(self, kind: str, key: str, **parameters: Any) -> float | None:
        """The largest such value, so of several backends the best rate."""
        found = [record.values.get(key) for record in self.measured(kind, **parameters)]
        return max((number for number in found if number is not None), default=None)
