"""Which checkpoint to go on from: the one ``latest`` names, else the newest sound one, never silently none.

Rank 0 decides the order, every candidate is verified by all ranks together, and all ranks come to the same answer or
raise the same error.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.folder import CheckpointName, checkpoint_path, list_checkpoints, read_pointer
from megadeberta.checkpoint.manifest import Manifest, Origin, RunRecord, manifest_digest, read_manifest
from megadeberta.checkpoint.verify import verify_together
from megadeberta.errors import CheckpointError

log = logging.getLogger(__name__)

_SHOWN_REASONS = 5
_MASKING = ("mask_rate", "mask_rate_schedule", "mask_token_prob", "random_token_prob", "max_gram", "whole_word")
MASKS = "data.masks"
"""The line of a fingerprint with the version of the code that draws masks."""
MAY_CHANGE = frozenset({"data.train", "data.packing", MASKS, *(f"objective.{name}" for name in _MASKING)})
"""Lines of a fingerprint that may be other ones in a new run that goes on from a checkpoint: what it learns from. The
step goes on, so the batch and the length stay: samples would come twice or never."""
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ResumePoint:
    """A verified checkpoint of this run."""

    folder: Path
    manifest: Manifest
    damaged: frozenset[str] = frozenset()
    """Names of newer checkpoints that are not sound."""

    @property
    def step(self) -> int:
        """Optimizer steps done when it was written."""
        return self.manifest.step


def find_resumable(
    root: Path, *, collectives: Collectives, run: RunRecord, required: bool = False, rejected: Mapping[str, str] = _NONE
) -> ResumePoint | None:
    """Find, verify and check the checkpoint to resume from; the same on every rank. Broadcasts and all-gathers text.

    The one that the pointer names; if that is not sound, the newest sound one, with one warning per rejected one. None
    when there is nothing that looks like a checkpoint, unless ``required``.

    Args:
        root: ``OUTPUT/checkpoints``.
        run: the run that wants to resume; its fingerprint must equal that in the manifest.
        rejected: names of checkpoints that are not to be tried, and why; the same on every rank.

    Raises:
        CheckpointError: there are checkpoints but none is sound; none at all and ``required``; or it belongs to
            another run.
    """
    plan = _plan(root, run) if collectives.rank == 0 else None
    names, complaints, refusal = json.loads(collectives.broadcast_text(plan))
    if refusal:
        raise CheckpointError(refusal)
    if not names and not complaints:
        if required:
            raise CheckpointError(f"{root}: there is no checkpoint to resume from; start without resuming")
        return None
    complaints += rejected.values()
    candidates = [name for name in names if name not in rejected]
    for number, candidate in enumerate(candidates):
        try:
            manifest = verify_together(root, candidate, collectives)
        except CheckpointError as error:
            complaints.append(str(error))
            continue
        _report(collectives, candidate, complaints, names)
        check_same_run(root / candidate, manifest.run, run)
        if collectives.rank == 0:
            _note_changes(candidate, manifest.run, run)
        return ResumePoint(root / candidate, manifest, frozenset(rejected) | frozenset(candidates[:number]))
    raise _none_is_sound(root, complaints)


def _none_is_sound(root: Path, complaints: list[str]) -> CheckpointError:
    reasons = "; ".join(complaints[:_SHOWN_REASONS])
    more = f" (and {len(complaints) - _SHOWN_REASONS} more)" if len(complaints) > _SHOWN_REASONS else ""
    return CheckpointError(
        f"{root}: no sound checkpoint to resume from: {reasons}{more}. "
        f"Put a sound one back; to start from the beginning, delete {root.parent} or choose another training.output_dir"
    )


def begin_from(folder: Path, *, collectives: Collectives, run: RunRecord) -> tuple[ResumePoint, Origin]:
    """Verify the checkpoint of another run that this one begins with. Broadcasts and all-gathers text.

    Raises:
        CheckpointError: it is not sound, or differs in more than a new run may change.
    """
    manifest = verify_together(folder.parent, folder.name, collectives)
    different = _differences(manifest.run, run)
    if forbidden := [key for key in different if key not in MAY_CHANGE]:
        raise CheckpointError(
            f"training.continue_from={folder}: {_described(different, forbidden)}. A run that begins with another "
            f"one's optimizer state may change {', '.join(sorted(MAY_CHANGE))}; `megadeberta extend` takes the weights "
            "alone to longer sequences, and training.init_from to everything else"
        )
    changed = {key: there for key, (_, there) in different.items()}
    origin = Origin(
        checkpoint=str(folder),
        step=manifest.step,
        manifest_sha256=manifest_digest(manifest).sha256,
        changed=changed,
    )
    return ResumePoint(folder, manifest), origin


def check_same_run(folder: Path, saved: RunRecord, current: RunRecord) -> None:
    """Refuse a checkpoint of another model, tokenizer or data set; the layout may be another one.

    Raises:
        CheckpointError: the fields that differ, with both values.
    """
    different = _differences(saved, current)
    if not different:
        return
    elsewhere = "choose another training.output_dir"
    if different.keys() <= MAY_CHANGE:
        elsewhere += f" and go on from this checkpoint there, with training.continue_from={folder}"
    if different.keys() == {MASKS}:
        way_out = f"This megadeberta draws other masks than the one that began the run; {elsewhere}"
    else:
        way_out = f"Change the recipe back, or {elsewhere}"
    raise CheckpointError(f"checkpoint {folder.name} is of another run: {_described(different, different)}. {way_out}")


def _differences(saved: RunRecord, current: RunRecord) -> dict[str, tuple[str, str]]:
    """Lines of the fingerprint that are not alike: what is here, and what is there."""
    keys = sorted(saved.fingerprint.keys() | current.fingerprint.keys())
    both = {key: (current.fingerprint.get(key, "absent"), saved.fingerprint.get(key, "absent")) for key in keys}
    return {key: (here, there) for key, (here, there) in both.items() if here != there}


def _described(different: Mapping[str, tuple[str, str]], keys: Iterable[str]) -> str:
    return "; ".join(f"{key} is {different[key][0]!r} here and {different[key][1]!r} there" for key in keys)


def _note_changes(name: str, saved: RunRecord, current: RunRecord) -> None:
    if saved.world != current.world:
        log.info("checkpoint %s was saved by %s; going on with %s", name, _layout(saved), _layout(current))
    for package, version in saved.versions.items():
        if current.versions.get(package) != version:
            log.info("checkpoint %s was written with %s %s", name, package, version)


def _layout(run: RunRecord) -> str:
    world = run.world
    return (
        f"{world.world_size} ranks (tensor {world.tensor_parallel} x pipeline {world.pipeline} x data "
        f"{world.data_parallel}), ZeRO stage {world.zero_stage}, {world.precision}"
    )


def _plan(root: Path, run: RunRecord) -> str:
    """Rank 0 alone: the names to try in order, complaints about the pointer, and why not to try at all, as JSON."""
    names, complaints = _order(root)
    for candidate in names:
        try:
            saved = read_manifest(checkpoint_path(root, candidate)).run
        except CheckpointError:
            continue
        try:
            check_same_run(root / candidate, saved, run)
        except CheckpointError as error:
            # Said before the first byte of a large checkpoint is hashed.
            return json.dumps([[], [], str(error)])
        break
    return json.dumps([names, complaints, ""])


def _order(root: Path) -> tuple[list[str], list[str]]:
    """The pointer's checkpoint first, then newest first; and complaints about the pointer."""
    existing: list[str] = []
    complaints: list[str] = []
    pointed = None
    try:
        existing = [str(checkpoint) for checkpoint in list_checkpoints(root)]
        pointed = read_pointer(root)
        if pointed is not None:
            checkpoint_path(root, pointed)
            if CheckpointName.parse(pointed) is None:
                raise CheckpointError(f"{root / pointed}: is not named like a checkpoint, step-N")
    except CheckpointError as error:
        pointed = None
        complaints.append(f"the pointer is not usable: {error}")
    except OSError as error:
        complaints.append(f"{root}: cannot be read ({error.strerror})")
    if pointed is not None:
        existing.remove(pointed)
        existing.insert(0, pointed)
    elif existing and not complaints:
        complaints.append(f"{root / 'latest'}: is missing")
    return existing, complaints


def _report(collectives: Collectives, chosen: str, complaints: list[str], names: list[str]) -> None:
    if collectives.rank != 0:
        return
    for complaint in complaints:
        log.warning("%s", complaint)
    if complaints:
        log.warning("falling back to %s, the newest sound checkpoint (verified)", chosen)
    newer = [name for name in names if (CheckpointName.parse(name) or ()) > (CheckpointName.parse(chosen) or ())]
    if newer and not complaints:
        log.warning("latest names %s; newer folders are left alone: %s", chosen, ", ".join(newer))
