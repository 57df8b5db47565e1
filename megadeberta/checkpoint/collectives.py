"""What the checkpoint package needs from the other ranks; torch stays on the other side of this protocol."""

from typing import Protocol


class Collectives(Protocol):
    """Every method is a collective over all ranks of the job: all ranks call it, in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def broadcast_text(self, text: str | None) -> str:
        """The text of rank 0, on every rank; the others pass anything."""

    def all_gather_text(self, text: str) -> list[str]:
        """The texts of all ranks, in rank order, on every rank."""


class SingleProcess:
    """The collectives of a job of one process."""

    rank = 0
    world_size = 1

    def broadcast_text(self, text: str | None) -> str:
        """Gives the text back."""
        return text or ""

    def all_gather_text(self, text: str) -> list[str]:
        """Gives the text back."""
        return [text]
