"""The position side of disentangled attention, by row of the relative table and by distance.

Shapes: N heads · H head size · L keys · P rows of the (windowed) relative table · B batch · Q query rows.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PositionTerms:
    """The projected relative table and the row that each distance reads.

    rows: ``[2L - 1]`` integers for the distances ``-(L-1) .. L-1``, query minus key. key: K_r ``[N, P, H]`` for the
    content-to-position term, or None. query: Q_r ``[N, P, H]`` for the position-to-content term, or None.
    """

    rows: Tensor
    key: Tensor | None
    query: Tensor | None

    @property
    def count(self) -> int:
        return (self.key is not None) + (self.query is not None)


def score_scale(head_size: int, position: PositionTerms | None) -> float:
    """1 / sqrt(H s), with s = 1 + the number of position terms."""
    return float(head_size * (1 + (0 if position is None else position.count))) ** -0.5
