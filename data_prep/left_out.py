"""Counts of the documents that rules left out, and examples of them."""

from dataclasses import asdict, dataclass, field
from typing import Any

_EXAMPLES, _EXAMPLE_CHARACTERS = 3, 200


def shorten(text: str) -> str:
    """The beginning of a document, as an example of it."""
    return text[:_EXAMPLE_CHARACTERS]


@dataclass
class LeftOut:
    """What one reason left out."""

    documents: int = 0
    num_bytes: int = 0
    examples: list[str] = field(default_factory=list)
    """The beginnings of the first few."""

    def count(self, text: str) -> None:
        """Count one document."""
        self.add(LeftOut(1, len(text.encode()), [shorten(text)]))

    def add(self, other: "LeftOut") -> None:
        """Append what followed in the same corpus."""
        self.documents += other.documents
        self.num_bytes += other.num_bytes
        self.examples = (self.examples + other.examples)[:_EXAMPLES]


class LeftOutByReason(dict[str, LeftOut]):
    """Reason -> what it left out."""

    def count(self, reason: str, text: str) -> None:
        """Count one document."""
        self.setdefault(reason, LeftOut()).count(text)

    def join(self, other: dict[str, LeftOut]) -> None:
        """Append what followed in the same corpus."""
        for reason, found in other.items():
            self.setdefault(reason, LeftOut()).add(found)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the report has them; ``from_json`` gives the counts back."""
        return {reason: asdict(found) for reason, found in self.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "LeftOutByReason":
        """The counts that ``to_json`` described."""
        return cls({reason: LeftOut(**values) for reason, values in fields.items()})

    def lines(self) -> list[str]:
        """One line per reason for the screen."""
        return [
            f"left out, {reason}: {found.documents:,} documents, {found.num_bytes / 1e6:.1f} MB"
            for reason, found in self.items()
        ]
