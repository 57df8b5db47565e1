"""The files a token file was made from. A few are in the manifest itself. Many are in ``PREFIX.sources``, one JSON line
each, which training never opens: every rank reads the manifest.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from megadeberta.data.shard_files import shard_file
from megadeberta.data.shard_manifest import ShardManifest, ShardSource, SourceList
from megadeberta.data.steady_file import AGAIN
from megadeberta.errors import DataError

SUFFIX = "sources"
MOST_IN_MANIFEST = 100


def encode_sources(sources: Sequence[ShardSource]) -> tuple[bytes, SourceList] | None:
    """``PREFIX.sources`` and what the manifest says of it; None for few files: the manifest names them itself."""
    if len(sources) <= MOST_IN_MANIFEST:
        return None
    lines = (json.dumps({"name": source.name, "bytes": source.bytes}, ensure_ascii=False) for source in sources)
    payload = "".join(f"{line}\n" for line in lines).encode()
    total = sum(source.bytes for source in sources)
    return payload, SourceList(count=len(sources), bytes=total, sha256=hashlib.sha256(payload).hexdigest())


def read_sources(prefix: Path, manifest: ShardManifest) -> Iterator[ShardSource]:
    """The files, one after another.

    Raises:
        DataError: ``PREFIX.sources`` is missing, or is not the one the manifest was written with.
    """
    if manifest.source_list is None:
        yield from manifest.sources
        return
    path = shard_file(prefix, SUFFIX)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for line in file:
                digest.update(line)
                yield ShardSource.model_validate_json(line)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); it lists the files of the corpus; {AGAIN}"
        ) from error
    except ValidationError:
        raise DataError(f"{path}: a line does not name a file and its size: the list is damaged; {AGAIN}") from None
    if digest.hexdigest() != manifest.source_list.sha256:
        raise DataError(f"{path}: SHA-256 is not the manifest's: the list changed since it was written; {AGAIN}")
