"""The master weights and moments inside an engine, parameter by parameter, whichever optimizer DeepSpeed wrapped.

DeepSpeed 0.19.8 keeps them in four ways: torch's optimizer on the parameters themselves (ZeRO-0, fp32), an fp32 copy of
every parameter (ZeRO-0, fp16 and bf16), one flat tensor per group and rank (ZeRO-1 and 2), and one per sub-group and
rank (ZeRO-3). In each of them a rank's part of a parameter is a range of the flattened parameter and lies in one flat
tensor that the optimizer updates; that is all this file tells others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, distributed

from megadeberta.checkpoint.content import AVERAGE, WEIGHT
from megadeberta.checkpoint.fragments import Fragment
from megadeberta.engine.optimizer import StateFormat, state_format
from megadeberta.engine.state.local_parameters import LocalParameter
from megadeberta.engine.state.swapped_state import SwappedState
from megadeberta.engine.weight_average import keeps_average
from megadeberta.errors import ConfigError

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Piece:
    """Elements ``[start, stop)`` of a flattened local parameter; ``flat`` of the optimizer has them from ``offset``."""

    local: LocalParameter
    start: int
    stop: int
    flat: Tensor
    offset: int

    def part(self, start: int, stop: int) -> "Piece":
        """The elements of it that are in ``[start, stop)`` of the flattened parameter."""
        first, last = max(start, self.start), min(stop, self.stop)
        return Piece(self.local, first, last, self.flat, self.offset + first - self.start)

    def of(self, tensor: Tensor) -> Tensor:
        """This piece of ``flat``, or of a state of the same form: a flat view."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.stop - self.start]


class OptimizerState:
    """Reads and writes what a checkpoint must hold of an engine's model and optimizer."""

    def __init__(self, engine: DeepSpeedEngine, parameters: Sequence[LocalParameter]) -> None:
        """``parameters``: all of this rank's module.

        Raises:
            ConfigError: the optimizer keeps its state where this class does not find it.
        """
        self.engine = engine
        self.parameters = parameters
        self._wrapper = engine.optimizer
        self._inner = engine.basic_optimizer
        if type(self._wrapper) not in (*_PIECES, type(self._inner)):
            raise ConfigError(
                f"the deepspeed block makes DeepSpeed use {type(self._wrapper).__name__}, whose state checkpoints "
                "cannot hold; leave out the option that asks for it"
            )
        find = _PIECES.get(type(self._wrapper), _plain_pieces)
        pieces = [piece for piece in find(self._wrapper, parameters) if piece.start < piece.stop]
        # Together what is in one flat tensor: it may have to be read from a file.
        places: dict[int, int] = {}
        self.pieces = sorted(pieces, key=lambda piece: places.setdefault(id(piece.flat), len(places)))
        self._swapped = SwappedState(self._wrapper)
        self._formats = {id(piece.flat): state_format(self._inner, piece.flat) for piece in self.pieces}

    def moments(self, piece: Piece) -> tuple[str, ...]:
        """Names of what the optimizer keeps for every element of the piece besides its weight; the average of the
        weights among them, where the run has one."""
        return self._format(piece).moments + ((AVERAGE,) if keeps_average(self._inner) else ())

    def owned(self) -> list[Piece]:
        """The pieces that this rank writes: over all ranks every element is in one of them."""
        mine = [piece for piece in self.pieces if piece.local.is_owner]
        if type(self._wrapper) not in _REPLICATED | {type(self._inner)}:
            return mine
        # Every data-parallel rank holds everything: laid end to end, each writes an equal share.
        group = self.engine.seq_data_parallel_group
        rank, ranks = distributed.get_rank(group), distributed.get_world_size(group)
        total = sum(piece.stop for piece in mine)
        first, last = total * rank // ranks, total * (rank + 1) // ranks
        shares, begin = [], 0
        for piece in mine:
            shares.append(piece.part(first - begin, last - begin))
            begin += piece.stop
        return [piece for piece in shares if piece.start < piece.stop]

    def fragment(self, piece: Piece) -> Fragment:
        """What the index says about the piece."""
        local = piece.local
        return Fragment(
            name=local.name,
            shape=local.full_shape,
            slice=local.slice,
            start=piece.start,
            stop=piece.stop,
            updates=self.updates(piece),
        )

    def kept(self, piece: Piece) -> tuple[str, ...]:
        """Names of what there is of the piece: its weight, and its moments once it has been updated."""
        return (WEIGHT, *self.moments(piece)) if self.updates(piece) is not None else (WEIGHT,)

    def tensor(self, piece: Piece, state: str) -> Tensor:
        """A flat view of the piece's master weights or of one of its moments, good until the next flat tensor's.

        What was written to it stays after ``release(changed=True)``.
        """
        self._swapped.bring(piece.flat)
        return piece.of(piece.flat if state == WEIGHT else self._inner.state[piece.flat][state])

    def release(self, *, changed: bool) -> None:
        """Done with the views of one flat tensor; ``changed``: they were written to."""
        self._swapped.put_back(changed=changed)

    def updates(self, piece: Piece) -> float | None:
        """How often the piece has been updated; None before the first time."""
        state = self._inner.state.get(piece.flat)
        return self._format(piece).updates(state) if state else None

    def set_updates(self, piece: Piece, updates: float) -> None:
        """Set the count for the whole flat tensor of the piece; moments that are not there yet begin as zeros."""
        self._swapped.bring(piece.flat)
        state = self._inner.state[piece.flat]
        state["step"] = self._format(piece).step(updates, piece.flat.device)
        dtype = torch.float32 if getattr(self._inner, "fp32_optimizer_states", False) else piece.flat.dtype
        for moment in self.moments(piece):
            if moment not in state:
                state[moment] = torch.zeros_like(piece.flat, dtype=dtype)

    def forget_updates(self, piece: Piece) -> None:
        """As before the first update of the piece's flat tensor."""
        self._inner.state.pop(piece.flat, None)

    @torch.no_grad()
    def publish_weights(self) -> None:
        """Give the model the master weights, rounded to its precision. ZeRO gathers over its data-parallel group."""
        optimizer = self._wrapper
        if isinstance(optimizer, FP16_UnfusedOptimizer):
            for weights, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
                for weight, master in zip(weights, masters, strict=True):
                    weight.copy_(master)
        elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            # As ``_reassign_or_swap_out_partitioned_parameters`` after a step, and the persistent ones gathered again.
            optimizer.checkpoint_event_prologue()
            for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
                self._swapped.bring(flat)
                optimizer._reassign_or_swap_out_partitioned_parameters(number)
            self._swapped.put_back(changed=False)
            optimizer.checkpoint_event_epilogue()
        elif isinstance(optimizer, (DeepSpeedZeroOptimizer, BF16_Optimizer)):
            optimizer.update_lp_params()

    @property
    def counters(self) -> dict[str, int | float]:
        """DeepSpeed's own, the same on every rank."""
        engine = self.engine
        return {name: getattr(engine, name) for name in ("global_steps", "global_samples", "skipped_steps")}

    @counters.setter
    def counters(self, values: dict[str, int | float]) -> None:
        for name in self.counters:
            setattr(self.engine, name, values[name])

    @property
    def scaler(self) -> dict[str, int | float]:
        """State of the dynamic loss scale; empty where there is none."""
        scaler = self._scaler()
        return {name: getattr(scaler, name) for name in _SCALER_FIELDS if hasattr(scaler, name)}

    @scaler.setter
    def scaler(self, values: dict[str, int | float]) -> None:
        scaler = self._scaler()
        for name in _SCALER_FIELDS:
            if name in values and hasattr(scaler, name):
                setattr(scaler, name, values[name])

    def _format(self, piece: Piece) -> StateFormat:
        return self._formats[id(piece.flat)]

    def _scaler(self) -> Any:
        """The object that holds it: None for a scale that does not move."""
        if isinstance(self._wrapper, FP16_UnfusedOptimizer):
            config = self._wrapper.loss_scale_config
            return config if config.dynamic_loss_scale else None
        scaler = getattr(self._wrapper, "loss_scaler", None)
        return scaler if getattr(scaler, "dynamic", False) else None


def _plain_pieces(optimizer: torch.optim.Optimizer, parameters: Sequence[LocalParameter]) -> Iterator[Piece]:
    """fp32 without ZeRO: a parameter is its own master."""
    for local in parameters:
        yield Piece(local, 0, local.parameter.numel(), local.parameter, 0)


def _copied_pieces(optimizer: FP16_UnfusedOptimizer, parameters: Sequence[LocalParameter]) -> Iterator[Piece]:
    masters = {
        id(weight): master
        for group, copies in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        for weight, master in zip(group, copies, strict=True)
    }
    for local in parameters:
        yield Piece(local, 0, local.parameter.numel(), masters[id(local.parameter)], 0)


def _partitioned_pieces(
    optimizer: DeepSpeedZeroOptimizer | BF16_Optimizer, parameters: Sequence[LocalParameter]
) -> Iterator[Piece]:
    is_bf16 = isinstance(optimizer, BF16_Optimizer)
    flats = optimizer.fp32_groups_flat_partition if is_bf16 else optimizer.single_partition_of_fp32_groups
    for local in parameters:
        parameter: Any = local.parameter  # with attributes that DeepSpeed gave it
        mapping = parameter._hp_mapping  # None where the rank's partition has nothing of it
        if mapping is not None:
            place, start = mapping.hp_fragment_address, mapping.lp_fragment_address.start
            yield Piece(local, start, start + place.numel, flats[mapping.param_group_index], place.start)


def _sharded_pieces(optimizer: DeepSpeedZeroOptimizer_Stage3, parameters: Sequence[LocalParameter]) -> Iterator[Piece]:
    for local in parameters:
        parameter: Any = local.parameter
        group, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = count * optimizer._get_param_partition_rank(parameter)
        # The last ranks' partitions are filled up to equal size, or are nothing but filling.
        stop = min(start + count, parameter.ds_numel)
        yield Piece(local, start, stop, optimizer.fp32_partitioned_groups_flat[group], offset)


_PIECES: dict[type, Any] = {
    FP16_UnfusedOptimizer: _copied_pieces,
    BF16_Optimizer: _partitioned_pieces,
    DeepSpeedZeroOptimizer: _partitioned_pieces,
    DeepSpeedZeroOptimizer_Stage3: _sharded_pieces,
}
_REPLICATED = {FP16_UnfusedOptimizer}
