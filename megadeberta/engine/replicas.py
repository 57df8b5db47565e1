"""Do the data-parallel ranks still hold the same weights? A flipped bit in one of them would train on unnoticed.

Every parameter becomes one 64-bit number; of all of them the ranks exchange the largest and the smallest. ZeRO 3 keeps
no second copy, and what tensor-parallel ranks hold whole may differ by rounding: neither is compared.

Shapes: P parameters · K columns of a hash
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from megadeberta.engine.collectives import TorchCollectives
from megadeberta.errors import ReplicaError
from megadeberta.topology import Coordinates

_COLUMNS = 4096
_MOST_NAMED = 3
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of an element."""


class ReplicaCheck:
    """Compares the parameters of one rank with those of the ranks that train the same shard of the same layers."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        *,
        every: int,
        data_group: distributed.ProcessGroup,
        place: Coordinates,
        device: torch.device,
    ) -> None:
        """
        Args:
            named: of this rank's module; the same names on all ranks of ``data_group``.
            every: steps between two comparisons, for whoever calls ``compare``.
            data_group: the ranks that hold the same parameters.
        """
        self.every = every
        parameters = dict(named)
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._group = data_group
        self._place = place
        self._device = device
        self._factors = _factors(device)

    def compare(self, step: int) -> None:
        """After step ``step``. All-reduces ``[2 P]`` over the data-parallel ranks and a number over the world.

        Raises:
            ReplicaError: on every rank of the world; the ranks whose weights are not those of the most.
        """
        hashes = hash_parameters(self._parameters, self._factors)
        extremes = torch.cat([hashes, ~hashes])  # ~ turns the order around, and no number overflows
        distributed.all_reduce(extremes, op=distributed.ReduceOp.MAX, group=self._group)
        largest, smallest = extremes.chunk(2)
        differs = largest != ~smallest
        found = differs.any().long()
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        if found:
            self._name_ranks(step, hashes, differs)

    def _name_ranks(self, step: int, hashes: Tensor, differs: Tensor) -> None:
        names = [name for name, bad in zip(self._names, differs.tolist(), strict=True) if bad]
        mine = {"of": [self._place.stage, self._place.tensor], "hashes": hashes[differs].tolist(), "names": names}
        texts = TorchCollectives(self._device).all_gather_text(json.dumps(mine))
        raise ReplicaError(describe([json.loads(text) for text in texts], step))


def hash_parameters(parameters: Sequence[nn.Parameter], factors: Tensor) -> Tensor:
    """One int64 for each: of its bits, whatever they stand for, so that any single one that changes it is seen. ``[P]``

    Sums of columns in exact integers, each multiplied with an odd number of its own, modulo 2^64.

    Args:
        factors: ``[K]`` int64, odd.
    """
    return torch.stack([_hash(parameter.detach(), factors) for parameter in parameters])


def _hash(tensor: Tensor, factors: Tensor) -> Tensor:
    flat = tensor.contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
    rows, rest = divmod(flat.numel(), _COLUMNS)
    whole, tail = flat.split([rows * _COLUMNS, rest])
    sums = whole.view(rows, _COLUMNS).sum(0, dtype=torch.int64)
    sums[:rest] += tail
    return (sums * factors).sum()


def _factors(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-(2**62), 2**62, (_COLUMNS,), generator=generator) * 2 + 1).to(device)


def describe(reports: Sequence[dict[str, list[Any]]], step: int) -> str:
    """The message of what all ranks reported, in their order: ``of`` (whose replicas), ``hashes`` and ``names``."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank, report in enumerate(reports):
        groups.setdefault(tuple(report["of"]), []).append(rank)
    bad: list[int] = []
    for ranks in groups.values():
        kinds = Counter(tuple(reports[rank]["hashes"]) for rank in ranks)
        (most, count), *_ = kinds.most_common()
        clear = 2 * count > len(ranks)
        bad += [rank for rank in ranks if not clear or tuple(reports[rank]["hashes"]) != most]
    names = list(dict.fromkeys(name for rank in bad for name in reports[rank]["names"]))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    if len(bad) == 1:
        who = f"rank {bad[0]} holds other weights than its replicas"
    else:
        who = f"ranks {', '.join(map(str, sorted(bad)))} hold weights that differ"
    return (
        f"step {step}: {who} ({', '.join(names[:_MOST_NAMED])}{more}): memory, a device or a link is bad. Start again "
        "without that machine; the run resumes from its last checkpoint, which was compared before it was written"
    )
