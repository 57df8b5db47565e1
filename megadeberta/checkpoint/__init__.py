"""Checkpoints that are whole or invisible: manifest, commit, verify, resume."""

from megadeberta.checkpoint.collectives import Collectives, SingleProcess
from megadeberta.checkpoint.durable import Digest
from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER
from megadeberta.checkpoint.lock import OutputLock, SharedOutputLock
from megadeberta.checkpoint.manifest import Manifest, RunRecord, WorldLayout
from megadeberta.checkpoint.resume import ResumePoint, find_resumable
from megadeberta.checkpoint.store import CheckpointStore
from megadeberta.checkpoint.verify import verify_checkpoint

__all__ = [
    "CHECKPOINTS_FOLDER",
    "CheckpointStore",
    "Collectives",
    "Digest",
    "Manifest",
    "OutputLock",
    "ResumePoint",
    "RunRecord",
    "SharedOutputLock",
    "SingleProcess",
    "WorldLayout",
    "find_resumable",
    "verify_checkpoint",
]
