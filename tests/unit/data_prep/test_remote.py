"""Corpora behind addresses: the bytes of local ones, and every fault of the other side as one line."""

import gzip
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import TypeAdapter
from rich.console import Console

import megadeberta.data_prep.prepare
import megadeberta.remote.files
from megadeberta.config.blend import DataPath
from megadeberta.data_prep.options import PrepOptions, UnreadablePolicy, VocabularyOptions
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.sources import find_sources
from megadeberta.errors import DataError
from megadeberta.remote.files import remote_address
from megadeberta.remote.parameter import path_or_address
from megadeberta.remote.path import RemotePath, as_path
from tests.data_fixtures import SOTU
from tests.unit.data_prep.test_formats import as_parquet

FILES = ("train.bin", "train.idx", "valid.bin", "valid.idx")
PARAGRAPHS = SOTU.read_text(encoding="utf-8").split("\n\n")


class Unreliable(MemoryFileSystem):
    """The files of memory://; the first read of every file fails, or with ``is_gone`` every one."""

    protocol = "unreliable"
    is_gone = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("unreliable://", "memory://"))

    def _open(self, path: str, *arguments: Any, **options: Any) -> Any:
        return UnreliableFile(super()._open(path, *arguments, **options).getvalue())


class UnreliableFile(io.BytesIO):
    """Fails once."""

    has_failed = False

    def read(self, size: int | None = -1) -> bytes:
        if Unreliable.is_gone or not self.has_failed:
            self.has_failed = True
            raise RuntimeError("the line is\ndown")
        return super().read(size)


fsspec.register_implementation("unreliable", Unreliable, clobber=True)


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    """A folder with files of several formats, one large and plain, in the memory of this process."""
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/corpus/a.txt", "\n\n".join(PARAGRAPHS).encode())
    system.pipe("/bucket/corpus/b.jsonl.gz", gzip.compress(json.dumps({"text": "A document of its own."}).encode()))
    system.pipe("/bucket/corpus/deep/c.parquet", as_parquet(PARAGRAPHS[:20]))
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture
def model(prepared: Path) -> Path:
    return prepared / "tokenizer" / "spm.model"


def run(corpora: list[str], output: Path, model: Path) -> None:
    given = tuple(Path(corpus) for corpus in corpora)  # as the command line makes them
    options = PrepOptions(given, output, VocabularyOptions(tokenizer=model))
    prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)


def test_the_bytes_are_those_of_a_local_folder(
    store: MemoryFileSystem, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tmp_path / "corpus"
    store.get("/bucket/corpus", str(local), recursive=True)
    monkeypatch.setattr(megadeberta.data_prep.prepare, "choose_block_bytes", lambda sources: 20_000)
    run([str(local)], tmp_path / "local", model)
    run(["memory://bucket/corpus"], tmp_path / "remote", model)
    names = ["a.txt", "b.jsonl.gz", "deep/c.parquet"]
    run([f"memory://bucket/corpus/{name}" for name in names], tmp_path / "named", model)
    expected = {name: (tmp_path / "local" / name).read_bytes() for name in FILES}
    for other in ("remote", "named"):
        assert {name: (tmp_path / other / name).read_bytes() for name in FILES} == expected
    manifests = [json.loads((tmp_path / name / "train.json").read_bytes()) for name in ("local", "remote")]
    assert manifests[0]["sources"] == manifests[1]["sources"]


def test_patterns_and_folders_find_what_they_name(store: MemoryFileSystem) -> None:
    store.pipe("/bucket/corpus/.hidden/x.txt", b"hidden")
    store.pipe("/bucket/corpus/picture.bin", bytes(range(256)))

    def found(address: str) -> list[str]:
        read = PrepOptions((), Path(), VocabularyOptions(size=600)).read
        options = type(read)(on_unreadable=UnreadablePolicy.SKIP)
        sources = find_sources([Path(address)], split="train", options=options, outside=Path("/nowhere")).sources
        return [f"{source.name} {source.path}" for source in sources]

    (one,) = found("memory://bucket/corpus/*.txt")
    assert one.startswith("a.txt memory://") and one.endswith("bucket/corpus/a.txt")
    names = ["corpus/a.txt", "corpus/b.jsonl.gz", "corpus/deep/c.parquet"]
    assert [line.split()[0] for line in found("memory://bucket/corpus")] == names
    for address, message in (
        ("memory://bucket/none.txt", r"memory://bucket/none\.txt: not found; check the address"),
        ("memory://bucket/*.csv", r"\*\.csv: no file matches this pattern"),
        ("nosuch://bucket/a", r"nosuch is no known protocol; known: s3"),
    ):
        with pytest.raises(DataError, match=message):
            found(address)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    monkeypatch.setattr(megadeberta.remote.files, "find_spec", lambda name: None if name == "s3fs" else name)
    with pytest.raises(DataError, match=r"s3://bucket/a\.txt: needs s3fs: pip install 'megadeberta\[remote\]'"):
        run(["s3://bucket/a.txt"], tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_a_read_that_fails_once_is_tried_again_and_one_that_fails_is_one_line(
    store: MemoryFileSystem, tmp_path: Path, model: Path
) -> None:
    address = "unreliable://bucket/corpus/a.txt"
    run([address], tmp_path / "again", model)
    (tmp_path / "a.txt").write_bytes(store.cat("/bucket/corpus/a.txt"))
    run([str(tmp_path / "a.txt")], tmp_path / "local", model)
    assert (tmp_path / "again" / "train.bin").read_bytes() == (tmp_path / "local" / "train.bin").read_bytes()
    Unreliable.is_gone = True
    try:
        with pytest.raises(DataError, match=r"^unreliable://bucket/corpus/a\.txt: .*the line is down") as failed:
            run([address], tmp_path / "gone", model)
    finally:
        Unreliable.is_gone = False
    assert "\n" not in str(failed.value)
    assert not (tmp_path / "gone" / "train.json").exists()


def test_a_file_that_changed_is_read_again(store: MemoryFileSystem) -> None:
    read = PrepOptions((), Path(), VocabularyOptions(size=600)).read
    states = []
    for content in (b"One text.", b"Two text."):
        store.pipe("/bucket/changing.txt", content)
        (source,) = find_sources(
            [Path("memory://bucket/changing.txt")], split="train", options=read, outside=Path("/nowhere")
        ).sources
        states.append((source.size, source.mtime_ns))
    assert states[0][0] == states[1][0] and states[0][1] != states[1][1]


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("hdfs:///user/me/*.txt", "hdfs:///user/me/*.txt"),
        ("hdfs://name:8020/user/me", "hdfs://name:8020/user/me"),
        ("s3://bucket/set", "s3://bucket/set"),
        ("file:///set", "file:///set"),
    ],
)
def test_an_address_keeps_its_host_and_that_it_has_none(given: str, address: str) -> None:
    asked = path_or_address(given)
    for path in (asked, as_path(given), TypeAdapter(DataPath).validate_python(given)):
        found = remote_address(path, check=False)
        assert found is not None and found.address == address
    inside = pickle.loads(pickle.dumps(as_path(given) / "deep")) / "train"
    assert isinstance(inside, RemotePath) and str(inside) == f"{address}/deep/train"
    assert str(inside.parent.parent) == address
    assert str(as_path(str(inside))) == str(inside)


def test_a_path_of_this_machine_is_what_it_was(tmp_path: Path) -> None:
    for given in ("corpora/a.txt", str(tmp_path), "-", "C:/set", "a:b"):
        assert path_or_address(given) == Path(given)
        assert remote_address(Path(given), check=False) is None
