"""Text among ranks, as bytes."""

from tests.distributed.checkpoint_toy import collectives
from tests.ranks import run_ranks


def _exchange(rank: int, world_size: int) -> tuple[list[str], list[str]]:
    ranks = collectives()
    assert (ranks.rank, ranks.world_size) == (rank, world_size)
    broadcast = [ranks.broadcast_text(text if rank == 0 else None) for text in ("", "größe ✓", "x" * 100_000)]
    gathered = ranks.all_gather_text("ä" * (rank * 50))
    return broadcast, gathered


def test_text_of_any_length_reaches_all_ranks() -> None:
    for broadcast, gathered in run_ranks(_exchange, 3):
        assert broadcast == ["", "größe ✓", "x" * 100_000]
        assert gathered == ["", "ä" * 50, "ä" * 100]
