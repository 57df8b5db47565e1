"""The state of an engine into a checkpoint and back, each under its own layout.

Nothing of DeepSpeed's own checkpoints is used: those are pickles, cut as the run was. What is written is tensors under
global names and JSON (``checkpoint/content.py``); loading computes nothing but copies, so what is read is bit for bit
what was written, wherever it goes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from deepspeed.runtime.engine import DeepSpeedEngine

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.content import AVERAGE, WEIGHT, CheckpointContent
from megadeberta.checkpoint.durable import Digest
from megadeberta.checkpoint.manifest import RunRecord
from megadeberta.checkpoint.rank_share import Entry, RankContent, RankShare
from megadeberta.checkpoint.resume import ResumePoint
from megadeberta.checkpoint.stages import SaveStages
from megadeberta.checkpoint.store import CheckpointStore
from megadeberta.engine.state.host_copy import HostCopy
from megadeberta.engine.state.optimizer_state import OptimizerState, Piece
from megadeberta.errors import CheckpointError, ConfigError, DivergenceError


def refuse_unsaved_state(engine: DeepSpeedEngine) -> None:
    """Refuse what would keep a part of the state where no checkpoint finds it.

    Raises:
        ConfigError: the option, the reason and what to do; the same on every rank.
    """
    if engine.zero_partial_offload() not in (None, 1.0):
        raise ConfigError(
            "deepspeed.zero_optimization.offload_optimizer.ratio is set: DeepSpeed would keep optimizer states in a "
            "second optimizer, which no checkpoint covers; remove it from the recipe"
        )


def save_stages(
    state: OptimizerState,
    store: CheckpointStore,
    step: int,
    *,
    run: RunRecord,
    collectives: Collectives,
    required: bool = False,
    write_more: Callable[[Path], Mapping[str, Digest]] | None = None,
    copy: HostCopy | None = None,
) -> SaveStages:
    """The stages of a save of weights, moments and counters; every rank writes what it owns. Collective over all ranks.

    Args:
        step: optimizer steps done.
        required: raise ``StorageError`` if it fails; else that happens at the third failure in a row.
        write_more: called on every rank; as of ``CheckpointStore.stages``.
        copy: takes all that will be written before this returns, so that training may go on; without it the state must
            stay as it is until the last stage.

    Raises:
        DivergenceError: on every rank; a value is not finite, and nothing was written.
    """
    _refuse_not_finite(state, step, collectives)
    pieces = state.owned()
    content = RankContent(
        fragments=tuple(state.fragment(piece) for piece in pieces), counters=state.counters, scaler=state.scaler
    )
    entries = _entries(state, pieces) if copy is None else copy.take(state, pieces)
    share = RankShare(collectives.rank, content, entries)
    stages = store.stages(step, share, run=run, write_more=write_more, required=required)
    return stages if copy is not None else _release_after(stages, state)


def _release_after(stages: SaveStages, state: OptimizerState) -> SaveStages:
    try:
        return (yield from stages)
    finally:
        state.release(changed=False)


def _refuse_not_finite(state: OptimizerState, step: int, collectives: Collectives) -> None:
    if bad := find_not_finite(state, collectives):
        raise DivergenceError(
            f"step {step}: {bad}, so that no checkpoint was written; start again: the run resumes from its last one"
        )


def find_not_finite(state: OptimizerState, collectives: Collectives) -> str:
    """Which weight or moment holds a NaN or an infinity, on which rank; empty if none does. The same on every rank."""
    found = ""
    for piece in state.owned():
        for name in state.kept(piece):
            # Whatever is not finite makes the sum so, and a sum takes no memory.
            if not found and not state.tensor(piece, name).sum(dtype=torch.float32).isfinite():
                found = f"{piece.local.name} ({name})"
    state.release(changed=False)
    for rank, text in enumerate(collectives.all_gather_text(found)):
        if text:
            return f"{text} holds values that are not finite on rank {rank}"
    return ""


def load_checkpoint(state: OptimizerState, point: ResumePoint, *, collectives: Collectives) -> None:
    """Load weights, moments and counters, whatever layout wrote them. Collective over all ranks.

    Raises:
        CheckpointError: on every rank; a file is not what its index says, or elements are missing.
    """
    finding = ""
    try:
        _fill(state, CheckpointContent(point.folder))
    except CheckpointError as error:
        finding = str(error)
    for text in collectives.all_gather_text(finding):
        if text:
            raise CheckpointError(text)
    state.publish_weights()


@torch.no_grad()
def _fill(state: OptimizerState, content: CheckpointContent) -> None:
    groups: dict[int, list[Piece]] = {}
    for piece in state.pieces:
        groups.setdefault(id(piece.flat), []).append(piece)
    for pieces in groups.values():
        updates = [content.updates(piece.local.name) for piece in pieces]
        counts = [count for count in updates if count is not None]
        if counts:
            state.set_updates(pieces[0], max(counts))
        else:
            state.forget_updates(pieces[0])
        for piece, count in zip(pieces, updates, strict=True):
            _read(state, content, piece, WEIGHT)
            for moment in state.moments(piece) if counts else ():
                if moment == AVERAGE and not content.holds(AVERAGE, piece.local.name):
                    # Saved before the run had one, or before the parameter's first update: it begins as the weight.
                    _read(state, content, piece, WEIGHT, into=AVERAGE)
                elif count is None:
                    state.tensor(piece, moment).zero_()
                else:
                    _read(state, content, piece, moment)
        state.release(changed=True)
    state.counters = content.counters
    state.scaler = content.scaler


def _read(
    state: OptimizerState, content: CheckpointContent, piece: Piece, name: str, *, into: str | None = None
) -> None:
    target = state.tensor(piece, into or name)
    in_place = target.device.type == "cpu" and target.dtype == torch.float32
    buffer = target if in_place else torch.empty(target.shape, dtype=torch.float32)
    content.read(name, state.fragment(piece), buffer.numpy())
    if not in_place:
        target.copy_(buffer)


def _entries(state: OptimizerState, pieces: list[Piece]) -> list[Entry]:
    entries = []
    for piece in pieces:
        fragment = state.fragment(piece)
        for name in state.kept(piece):
            entries.append(Entry(name, fragment, partial(_on_host, state, piece, name)))
    return entries


def _on_host(state: OptimizerState, piece: Piece, name: str) -> np.ndarray:
    return state.tensor(piece, name).to("cpu", torch.float32).numpy()
