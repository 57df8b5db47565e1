"""Tells an optimizer that looks at whole tensors which rank holds what of each."""

import json
from collections.abc import Sequence
from typing import Any

from deepspeed.runtime.engine import DeepSpeedEngine
from torch.distributed import ProcessGroup

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.library_optimizer import HeldTensor, LibraryOptimizer
from megadeberta.engine.optimizer import group_key
from megadeberta.engine.state.local_parameters import LocalParameter
from megadeberta.engine.state.optimizer_state import OptimizerState, Piece
from megadeberta.topology import Coordinates


def place_tensors(
    engine: DeepSpeedEngine,
    parameters: Sequence[LocalParameter],
    config: OptimizerConfig,
    *,
    place: Coordinates,
    tensor: ProcessGroup,
    data: ProcessGroup,
    ranks: Collectives,
) -> None:
    """Once, before the first step; for AdamW alone there is nothing to do. Otherwise all-gathers text over the world.

    Args:
        parameters: all of this rank's module.
        tensor, data: the groups of this rank at ``place``.
    """
    optimizer = engine.basic_optimizer
    if not isinstance(optimizer, LibraryOptimizer):
        return
    pieces = {piece.local.name: piece for piece in OptimizerState(engine, parameters).pieces}
    divided = _divided_over_data(pieces, place, ranks)
    held: dict[Any, list[HeldTensor]] = {}
    for local in parameters:
        group = data if local.name in divided else None
        cut = None if local.slice is None else tensor
        held.setdefault(group_key(local.name, config), []).append(_held(local, pieces.get(local.name), group, cut))
    optimizer.place(held)


def _divided_over_data(pieces: dict[str, Piece], place: Coordinates, ranks: Collectives) -> set[str]:
    """Parameters of this stage of which not every rank that holds some holds its whole shard, or whose shards are on
    different data-parallel ranks: the same on all ranks of the stage."""
    whole = {name: piece.stop - piece.start == piece.local.parameter.numel() for name, piece in pieces.items()}
    texts = ranks.all_gather_text(json.dumps([place.stage, place.data, place.tensor, whole]))
    of_stage = [said[1:] for said in map(json.loads, texts) if said[0] == place.stage]
    found, holders = set(), dict[str, dict[int, set[int]]]()
    for data, tensor, held in of_stage:
        for name, is_whole in held.items():
            holders.setdefault(name, {}).setdefault(tensor, set()).add(data)
            if not is_whole:
                found.add(name)
    return found | {name for name, sets in holders.items() if len({frozenset(each) for each in sets.values()}) > 1}


def _held(
    local: LocalParameter, piece: Piece | None, data: ProcessGroup | None, cut: ProcessGroup | None
) -> HeldTensor:
    dim, first, _ = local.slice or (0, 0, 0)
    return HeldTensor(
        flat=None if piece is None else piece.flat,
        offset=0 if piece is None else piece.offset,
        start=0 if piece is None else piece.start,
        stop=0 if piece is None else piece.stop,
        shape=tuple(local.parameter.shape),
        whole=local.full_shape,
        dim=dim,
        first=first,
        data_group=data,
        tensor_group=cut,
    )
