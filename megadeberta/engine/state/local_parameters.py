"""What this rank holds of every parameter: the border between the layouts and the checkpoints.

A checkpoint knows parameters by their global names and full shapes only. Whatever cuts a model (tensor parallel,
pipeline) describes its cut as a list of ``LocalParameter``; ZeRO's own partitions are found from the engine.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from megadeberta.checkpoint.fragments import TensorSlice

__all__ = ["LocalParameter", "TensorSlice", "whole_parameters"]


@dataclass(frozen=True)
class LocalParameter:
    """One parameter of this rank's module.

    ``name`` is the same under every layout. ``slice`` is None where the rank holds the whole of ``full_shape``.
    ``is_owner``: the data-parallel ranks of this shard write it into checkpoints; False on all but one rank of a tensor
    group for what that group replicates, and on all stages but one for a tied table. Over all owners each element is
    there once.
    """

    name: str
    parameter: nn.Parameter
    full_shape: tuple[int, ...]
    slice: TensorSlice | None = None
    is_owner: bool = True


def whole_parameters(named: Iterable[tuple[str, nn.Parameter]]) -> list[LocalParameter]:
    """Parameters that no layout cut: a model under data parallelism alone, where every rank owns everything.

    ZeRO-3 leaves an empty tensor in place of a partitioned parameter and its shape in ``ds_shape``.
    """
    return [
        LocalParameter(name, parameter, tuple(getattr(parameter, "ds_shape", parameter.shape)))
        for name, parameter in named
    ]
