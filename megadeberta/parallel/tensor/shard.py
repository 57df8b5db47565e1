"""Which part of the model this rank holds among those that share its tensors."""

from dataclasses import dataclass

from torch import distributed
from torch.distributed import ProcessGroup

from megadeberta.layers.cuts import vocabulary_rows


@dataclass(frozen=True)
class VocabularyShard:
    """The rows of a vocabulary that this rank of ``group`` holds."""

    vocabulary: int
    group: ProcessGroup

    @property
    def rows(self) -> range:
        return self._all[distributed.get_rank(self.group)]

    @property
    def largest(self) -> int:
        """Rows of the largest shard: the same on every rank."""
        return max(len(rows) for rows in self._all)

    @property
    def _all(self) -> list[range]:
        return vocabulary_rows(self.vocabulary, distributed.get_world_size(self.group))
