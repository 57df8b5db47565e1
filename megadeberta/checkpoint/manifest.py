"""``manifest.json``: what a checkpoint folder must contain, byte for byte, and which run wrote it.

The file carries the SHA-256 of all its other bytes, on a line of its own: one flipped bit anywhere, white space
included, is an error.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError

from megadeberta.checkpoint.durable import Digest, read_small_file
from megadeberta.config.blend import BlendSegment
from megadeberta.config.first_problem import first_problem
from megadeberta.config.section import Section
from megadeberta.config.spikes import SpikeRecord
from megadeberta.errors import CheckpointError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 3
SAFE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
"""Names of checkpoint folders and of the files in them: never a path, never hidden."""
_MAX_BYTES = 64 << 20
_HASH_LINE = re.compile(rb'^ "manifest_sha256": "([0-9a-f]{64})",\n', re.MULTILINE)


class PartRecord(Section):
    """What one rank wrote without a gap."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rank: int = Field(ge=0)


class FileRecord(Section):
    """One file of the folder: its parts from the first byte to the last, each where the one before ends."""

    parts: tuple[PartRecord, ...] = Field(min_length=1)

    @classmethod
    def of_one(cls, digest: Digest, rank: int) -> Self:
        """A file that one rank wrote as a whole."""
        return cls(parts=(PartRecord(bytes=digest.bytes, sha256=digest.sha256, rank=rank),))

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return sum(part.bytes for part in self.parts)

    @property
    def writers(self) -> str:
        """``rank 3``, or the first and the last of several: ``ranks 0 to 7``."""
        ranks = {part.rank for part in self.parts}
        return f"rank {min(ranks)}" if len(ranks) == 1 else f"ranks {min(ranks)} to {max(ranks)}"


class WorldLayout(Section):
    """How the run that wrote it was laid out: for information, another one may go on from it."""

    world_size: int = Field(ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    pipeline: int = Field(default=1, ge=1)
    data_parallel: int = Field(ge=1)
    zero_stage: int = Field(ge=0, le=3)
    precision: str


class Origin(Section):
    """The checkpoint of another run that a run began with."""

    checkpoint: str
    """Its folder, as the recipe named it."""
    step: int = Field(ge=0)
    manifest_sha256: str
    changed: dict[str, str] = Field(description="lines of the fingerprint that are other ones: what they were")


class RunRecord(Section):
    """What a checkpoint must share with the run that resumes it, and what is good to know about the one that wrote it.

    ``fingerprint`` has one line per thing that may not change: model, tokenizer, data, objective and so on; a value is
    text that a person can compare, such as ``deberta-v3 4x256`` or a hash.
    """

    world: WorldLayout
    versions: dict[str, str] = Field(description="megadeberta, torch, deepspeed")
    hardware: str = Field("", description="what rank 0 computes on, as torch or Linux names it; empty = not recorded")
    fingerprint: dict[str, str]
    config: dict[str, Any] = Field(description="the resolved configuration")
    blend: tuple[BlendSegment, ...] = Field(
        (), description="of several sources of training data: which were mixed how, from which sample on"
    )
    origin: Origin | None = Field(None, description="of a run that began with a checkpoint of another one")
    spikes: SpikeRecord | None = Field(None, description="of a run that goes back where its loss jumps")


class Manifest(Section):
    """The whole of ``manifest.json`` but its own checksum."""

    format_version: int
    step: int = Field(ge=0)
    created: str = Field(description="UTC, ISO 8601")
    run: RunRecord
    files: dict[str, FileRecord]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, without the manifest."""
        return sum(record.bytes for record in self.files.values())


def encode_manifest(manifest: Manifest) -> bytes:
    """The exact bytes of ``manifest.json``."""
    content = manifest.model_dump(mode="json")
    # A line each: there may be thousands of parts, and an encoder that indents is many times slower.
    files = ",\n".join(f"  {json.dumps(name)}: {_to_json(record)}" for name, record in sorted(content["files"].items()))
    data = _to_json({**content, "files": {}}, indent=1).encode() + b"\n"
    data = data.replace(b'\n "files": {}', b'\n "files": {\n%s\n }' % files.encode(), 1)
    line = f' "manifest_sha256": "{hashlib.sha256(data).hexdigest()}",\n'.encode()
    place = data.index(b'\n "run": ') + 1  # the next key in order
    return data[:place] + line + data[place:]


def _to_json(value: object, *, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=True, allow_nan=False)


def manifest_digest(manifest: Manifest) -> Digest:
    """Size and SHA-256 of the manifest file itself."""
    data = encode_manifest(manifest)
    return Digest(len(data), hashlib.sha256(data).hexdigest())


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``folder/manifest.json``.

    Raises:
        CheckpointError: missing, unreadable, damaged, edited, or of another format version.
    """
    path = folder / MANIFEST_NAME
    advice = "the folder is not a whole checkpoint; use another one or delete it"
    try:
        data = read_small_file(path, _MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    try:
        (stated,) = _HASH_LINE.findall(data)
        content = json.loads(data)
        del content["manifest_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a manifest ({type(error).__name__}); {advice}") from error
    found, stated = hashlib.sha256(_HASH_LINE.sub(b"", data)).hexdigest(), stated.decode()
    if found != stated:
        raise CheckpointError(
            f"{path}: sha256 of its content is {found[:12]}…, it says {stated[:12]}…: damaged or edited; {advice}"
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {content.get('format_version')}, this megadeberta reads version {FORMAT_VERSION}; "
            "use the megadeberta version that wrote it"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {first_problem(error)}; {advice}") from error
