"""`verify`, `data inspect` and `data stats` of sets behind addresses: what they say of local ones, read anew."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from range_server import serving
from rich.console import Console
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.data.indexed import TokenShard
from megadeberta.data_prep.options import PrepOptions, SplitOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.verify import verify_set
from megadeberta.errors import DataError
from tests.data_fixtures import SOTU


@pytest.fixture(scope="module")
def several(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of several files."""
    output = tmp_path_factory.mktemp("several") / "set"
    vocabulary = VocabularyOptions(tokenizer=prepared / "tokenizer" / "spm.model")
    options = PrepOptions((SOTU,), output, vocabulary, split=SplitOptions(fraction=0.1), max_file_bytes=12_000)
    prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
    return output


@pytest.fixture
def uploaded(prepared: Path) -> Iterator[str]:
    """The set in memory://."""
    memory = fsspec.filesystem("memory")
    memory.put(str(prepared), "/uploaded", recursive=True)
    yield "memory://uploaded"
    memory.rm("/uploaded", recursive=True)


def said(*arguments: str | Path) -> str:
    """What the command prints, without what it says while it waits."""
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("kind", ["memory", "file", "http"])
@pytest.mark.parametrize("files", ["one", "several"])
def test_what_is_said_of_a_local_set_is_said_of_its_address(
    prepared: Path, several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, files: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = prepared if files == "one" else several
    commands = [("verify",), ("data", "stats", "--json"), ("data", "inspect", "--documents", "2")]
    expected = [said(*command, folder) for command in commands]
    with serving(folder, delay=0.0) as address:
        if kind == "memory":
            fsspec.filesystem("memory").put(str(folder), f"/said-{files}", recursive=True)
        address = {"memory": f"memory://said-{files}", "file": f"file://{folder}", "http": address}[kind]
        assert [said(*command, address) for command in commands] == expected
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["train.bin", "train.sum", "train.idx", "valid.bin"])
def test_a_byte_that_changed_there_is_found_though_training_has_a_copy(
    uploaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with TokenShard.open(Path(f"{uploaded}/{name[:5]}")) as shard:
        shard.read_tokens(0, shard.num_tokens)
    assert os.listdir(tmp_path / "megadeberta" / "remote")
    memory = fsspec.filesystem("memory")
    content = bytearray(memory.cat_file(f"/uploaded/{name}"))
    content[41] ^= 4
    memory.pipe_file(f"/uploaded/{name}", bytes(content))
    with pytest.raises(DataError, match=rf"memory://uploaded/{name}: "):
        verify_set(Path(uploaded))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("file:///nothing/set", r"file:///nothing/set/train: no shard here"),
        ("memory://nothing", r"memory://nothing/train: no shard here \(no train.json\).*make one with"),
        ("nosuch://bucket/set", "nosuch is no known protocol"),
        ("http://127.0.0.1:9/set", r"http://127.0.0.1:9/set/train.bin: cannot be reached"),
    ],
)
def test_what_is_not_there_or_not_to_be_reached_is_named(address: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        verify_set(Path(address))


def test_a_set_behind_an_address_becomes_a_part_of_a_local_one(uploaded: str, prepared: Path, tmp_path: Path) -> None:
    said("data", "merge", uploaded, "--output", tmp_path / "there")
    said("data", "merge", prepared, "--output", tmp_path / "here")
    for name in ("train.bin", "train.idx", "valid.bin", "train.json"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


@pytest.mark.parametrize("command", [("prep", SOTU, "--vocab-size", "500"), ("data", "sample", "--fraction", "0.5")])
def test_an_address_to_write_to_is_refused(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str | Path, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [prepared] if command[0] == "data" else []
    result = CliRunner().invoke(app, [*map(str, (*command, *given)), "--output", "memory://made"])
    assert "--output=memory://made is an address; give a folder of this machine" in str(result.exception)
    assert not os.listdir(tmp_path)
