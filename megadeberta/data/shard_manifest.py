"""The manifest of a token file, ``PREFIX.json``: what the pair ``PREFIX.bin``, ``PREFIX.idx`` holds and hashes to."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megadeberta.config.first_problem import first_problem
from megadeberta.errors import DataError

_Hash = Field(pattern="^[0-9a-f]{64}$")
_Count = Field(ge=0)
_LARGEST_MANIFEST = 256 << 20


class ShardSource(BaseModel):
    """One file the shard was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    bytes: int = _Count


class SourceList(BaseModel):
    """Of files too many for the manifest: how many, their size, and the hash of ``PREFIX.sources`` that names them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    count: int = _Count
    bytes: int = _Count
    sha256: str = _Hash


class FileOfSet(BaseModel):
    """One of several token files of a set, ``PREFIX-00000`` and so on, in their order."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    num_tokens: int = _Count
    num_documents: int = _Count
    content: str = _Hash


class ShardManifest(BaseModel):
    """Counts, hashes and origin of a shard. Holds no time, no absolute path and nothing of the machine.

    ``content`` identifies the data: it covers dtype, both files and the tokenizer, so two shards with equal
    ``content`` give the same samples. Of several files all counts and hashes are those of the one file that they are
    when laid end to end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["megadeberta-shard"] = "megadeberta-shard"
    version: Literal[1] = 1
    dtype: Literal["uint8", "int8", "int16", "int32", "int64", "uint16"]
    num_tokens: int = _Count
    num_documents: int = _Count
    num_sequences: int = _Count
    max_token_id: int = Field(ge=-1, description="-1 = the shard has no token")
    tokenizer_sha256: str = _Hash
    tokenizer_pieces: int = _Count
    bin_bytes: int = _Count
    idx_bytes: int = _Count
    bin_sha256: str = _Hash
    idx_sha256: str = _Hash
    sum_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="null = made before there were sums")
    content: str = _Hash
    options: dict[str, Any] = Field(default_factory=dict)
    sources: list[ShardSource] = Field(default_factory=list)
    source_list: SourceList | None = Field(None, description="null = all files are in sources")

    files: list[FileOfSet] = Field(default_factory=list, description="empty = PREFIX.bin and so on are the one file")

    def to_bytes(self) -> bytes:
        """The manifest file: indented JSON, fields in the order of this class."""
        left_out = {name for name in ("source_list", "files") if not getattr(self, name)}
        return (json.dumps(self.model_dump(exclude=left_out), indent=2, ensure_ascii=False) + "\n").encode()


def content_fingerprint(*, dtype: str, bin_sha256: str, idx_sha256: str, tokenizer_sha256: str) -> str:
    """SHA-256 that names the data of a shard: dtype, tokens, cuts between documents, and the vocabulary."""
    line = f"megadeberta-shard 1 {dtype} {bin_sha256} {idx_sha256} {tokenizer_sha256}\n"
    return hashlib.sha256(line.encode()).hexdigest()


def read_manifest(path: Path) -> ShardManifest:
    """Read and check a manifest.

    Raises:
        DataError: missing, not JSON, a field wrong or missing, or ``content`` not that of the other fields.
    """
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise DataError(f"{path}: {path.stat().st_size} bytes is no shard manifest; run `megadeberta prep` again")
        fields = json.loads(path.read_bytes())
        manifest = ShardManifest.model_validate(fields)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: not found; a shard is PREFIX.bin, PREFIX.idx and PREFIX.json, "
            "and without the manifest it is unfinished: run `megadeberta prep` again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}; run `megadeberta prep` again") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({_one_line(error)}); run `megadeberta prep` again") from error
    expected = content_fingerprint(
        dtype=manifest.dtype,
        bin_sha256=manifest.bin_sha256,
        idx_sha256=manifest.idx_sha256,
        tokenizer_sha256=manifest.tokenizer_sha256,
    )
    if manifest.content != expected:
        raise DataError(
            f"{path}: content {manifest.content[:12]}… is not the fingerprint of its other fields "
            f"({expected[:12]}…): the manifest was edited or damaged; run `megadeberta prep` again"
        )
    return manifest


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
