"""Many source files: a summary in the manifest, their names beside it."""

from pathlib import Path

import numpy as np
import pytest

from megadeberta.data.shard_manifest import ShardSource, read_manifest
from megadeberta.data.shard_writer import ShardWriter
from megadeberta.data.source_list import MOST_IN_MANIFEST, read_sources
from megadeberta.errors import DataError


def write(prefix: Path, count: int) -> list[ShardSource]:
    sources = [ShardSource(name=f"folder/file-{number}.txt", bytes=number) for number in range(count)]
    with ShardWriter(prefix, dtype=np.dtype("<u2")) as writer:
        writer.add_document([5, 6, 7])
        writer.commit(tokenizer_sha256="0" * 64, tokenizer_pieces=8, sources=sources)
    return sources


def test_few_sources_are_in_the_manifest_and_many_beside_it(tmp_path: Path) -> None:
    for count in (0, 1, MOST_IN_MANIFEST, MOST_IN_MANIFEST + 1, 5000):
        sources = write(tmp_path / "train", count)
        manifest = read_manifest(tmp_path / "train.json")
        assert list(read_sources(tmp_path / "train", manifest)) == sources
        assert (tmp_path / "train.sources").exists() == (count > MOST_IN_MANIFEST)
        assert (tmp_path / "train.json").stat().st_size < 10_000
    assert manifest.source_list is not None
    assert (manifest.source_list.count, manifest.source_list.bytes) == (5000, sum(range(5000)))


def test_a_list_that_is_missing_or_changed_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train", 200)
    manifest = read_manifest(tmp_path / "train.json")
    path = tmp_path / "train.sources"
    path.write_bytes(path.read_bytes().replace(b"file-7.", b"file-8."))
    with pytest.raises(DataError, match=r"train\.sources: SHA-256 is not the manifest's: the list changed"):
        list(read_sources(tmp_path / "train", manifest))
    path.write_bytes(b"{}\n")
    with pytest.raises(DataError, match=r"train\.sources: a line does not name a file and its size"):
        list(read_sources(tmp_path / "train", manifest))
    path.unlink()
    with pytest.raises(DataError, match=r"train\.sources: cannot be read"):
        list(read_sources(tmp_path / "train", manifest))
