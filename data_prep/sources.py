"""The files of a corpus: found, told apart by their first bytes, and what of a folder is not read."""

import difflib
import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from megadeberta.config.set_files import TOKENIZER_FOLDER, TRAIN_NAME, broken_link, shard_exists
from megadeberta.data_prep.compression import (
    DamagedFile,
    UnpackedStream,
    compression_of,
    compression_of_ending,
)
from megadeberta.data_prep.detect import HEAD_BYTES, Refusal, detect
from megadeberta.data_prep.folder_walk import is_of_the_kernel, walk
from megadeberta.data_prep.formats.base import Format
from megadeberta.data_prep.formats.table import FORMATS, check_format_name, format_of_ending, what_is_missing
from megadeberta.data_prep.formats.tar import TAR
from megadeberta.data_prep.options import AUTO_FORMAT, ReadOptions, UnreadablePolicy
from megadeberta.errors import DataError
from megadeberta.remote.files import FilePath, RemoteFile, expand, remote_address
from megadeberta.storage import LFS_POINTER

_ABOUT_A_DATASET = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_DOCUMENTATION = ("readme", "license", "licence", "copying", "citation", "changelog", "notice")


UNPACKED = 4
"""About so many bytes of text come out of one compressed byte."""


@dataclass(frozen=True)
class Source:
    """One file of the corpus. ``size`` is its size on disk; ``name`` is relative to the folder that was given."""

    path: FilePath
    name: str
    split: str
    format_name: str
    compression: str | None
    size: int
    mtime_ns: int
    corpus: int = 0
    """Which of the given corpora it is of."""

    @property
    def file_format(self) -> Format:
        return FORMATS[self.format_name]

    @property
    def text_bytes(self) -> int:
        """About so many bytes of text it holds."""
        return self.size * (UNPACKED if self.compression else 1)


@dataclass(frozen=True)
class PassedOver:
    """A file of a folder that is not read, and why."""

    name: str
    size: int
    reason: str


@dataclass
class Corpus:
    """The files that are read, in order, and those that are not."""

    sources: list[Source] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)


def find_sources(corpora: Iterable[Path], *, split: str, options: ReadOptions, outside: Path) -> Corpus:
    """All files of ``corpora``, folders walked in the order of their names.

    Args:
        outside: folder whose files are never taken (where the token files go).

    Raises:
        DataError: a path that is not there, an empty folder, a file given twice or of a kind that is not read.
    """
    check_format_name(options.input_format)
    corpus = Corpus()
    for number, pattern in enumerate(corpora):
        before = len(corpus.sources)
        for given in _expand(pattern):
            if given.is_dir():
                _check_is_text(given, outside)
                _add_folder(corpus, given, _files(given, outside), split=split, options=options)
                continue
            found = _describe(_existing(given), name=given.name, split=split, options=options)
            if isinstance(found, Refusal):
                raise DataError(f"{given}: is {found.what}; {found.remedy or 'give files that hold text'}")
            corpus.sources.append(found)
        corpus.sources[before:] = [replace(source, corpus=number) for source in corpus.sources[before:]]
    seen: dict[FilePath, FilePath] = {}
    for source in corpus.sources:
        twin = seen.setdefault(source.path.resolve(), source.path)
        if twin is not source.path:
            raise DataError(f"{source.path} is given twice (also as {twin}); its text would count double: name it once")
    return corpus


def check_unchanged(sources: Iterable[Source]) -> None:
    """Refuse files that are not what they were when they were found: a part of what was read may be of neither state.

    Raises:
        DataError: a file has another size or time, or is gone.
    """
    for source in sources:
        if isinstance(source.path, RemoteFile):
            continue
        try:
            status = source.path.stat()
            is_same = (status.st_size, status.st_mtime_ns) == (source.size, source.mtime_ns)
        except OSError:
            is_same = False
        if not is_same:
            raise DataError(
                f"{source.path}: changed while it was read; leave the corpus alone until `megadeberta prep` ends, and "
                "run the same command again"
            )


def _check_is_text(folder: FilePath, outside: Path) -> None:
    """Refuse a folder that has another use, before its files are judged one by one."""
    from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, list_checkpoints  # which no worker needs

    if isinstance(folder, RemoteFile):
        return
    if folder.resolve() == outside.resolve():
        raise DataError(f"--output={outside} is the folder of the text itself; give token files a folder of their own")
    what = None
    if shard_exists(folder / TRAIN_NAME) and (folder / TOKENIZER_FOLDER).is_dir():
        what = "a set of token files, which `megadeberta prep` wrote"
    elif list_checkpoints(folder / CHECKPOINTS_FOLDER):
        what = "the output of a training"
    elif (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        what = "a model"
    if what is not None:
        raise DataError(f"{folder}: is {what}, and no text; give the folder or files of the text")


def _expand(pattern: Path) -> Sequence[FilePath]:
    """The files and folders that a pattern such as "data/*.parquet" names, by name; a plain path as it is."""
    if address := remote_address(pattern):
        return expand(address)
    if pattern.exists() or not any(mark in str(pattern) for mark in "*?["):
        return [pattern]
    found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
    if not found:
        raise DataError(f"{pattern}: no file matches this pattern")
    return found


def _existing(path: FilePath) -> FilePath:
    if isinstance(path, RemoteFile) or path.is_file():
        return path
    if path.exists():
        raise DataError(
            f"{path}: is a pipe or device, which cannot be read twice; give - to read standard input, "
            "or write the text to a file"
        )
    raise DataError(f"{path}: not found{broken_link(path) or _nearest(path)}")


def _add_folder(
    corpus: Corpus,
    folder: FilePath,
    files: Sequence[tuple[FilePath, str, str]],
    *,
    split: str,
    options: ReadOptions,
) -> None:
    found: list[tuple[FilePath, str, Source | Refusal]] = [
        (path, name, Refusal(reason, "") if reason else _of_folder(path, name, split=split, options=options))
        for path, name, reason in files
    ]
    sources = [what for *_, what in found if isinstance(what, Source)]
    has_records = any(not source.file_format.is_plain_text for source in sources)
    taken = 0
    for path, name, what in found:
        is_text = isinstance(what, Source) or what.is_text
        if is_text and has_records and _is_documentation(path):
            what = Refusal("documentation beside the data", "")
        if isinstance(what, Source):
            corpus.sources.append(what)
            taken += 1
            continue
        if what.remedy and options.on_unreadable is UnreadablePolicy.STOP:
            raise DataError(
                f"{path}: is {what.what}; {what.remedy}, or use --on-unreadable=skip to go on without such files"
            )
        size = path.lstat().st_size if isinstance(path, Path) else path.stat().st_size  # a link may lead to nothing
        corpus.passed_over.append(PassedOver(_printable(name), size, what.what))
    if taken == 0:
        seen = f"; it holds {len(files)} other file(s), first {files[0][1]}" if files else ""
        kinds = ", ".join(known.summary for known in FORMATS.values())
        raise DataError(f"{folder}: no corpus file in this folder{seen}; looked for {kinds}")


def _files(folder: FilePath, outside: Path) -> Sequence[tuple[FilePath, str, str]]:
    """Files, their names, and why one is not read or an empty string."""
    if isinstance(folder, RemoteFile):
        return [(path, name, "") for path, name in folder.files()]
    return list(walk(folder, outside.resolve()))


def _of_folder(path: FilePath, name: str, *, split: str, options: ReadOptions) -> Source | Refusal:
    """A file that nobody named is read only if its name does not speak against it."""
    if path.name in _ABOUT_A_DATASET:
        return Refusal("a description of the data", "")
    if isinstance(path, Path) and (broken := broken_link(path)):
        return Refusal(broken.removeprefix("; it is "), "bring it back, or remove the link")
    found = _describe(path, name=name, split=split, options=options)
    ending = text_ending(path)
    if (
        isinstance(found, Source)
        and found.file_format.is_plain_text
        and ending
        and format_of_ending(ending) is None
        and options.input_format == AUTO_FORMAT
    ):
        return Refusal(f"a {ending} file", "")
    return found


def _printable(name: str) -> str:
    """A name as UTF-8 can say it: other bytes as ``\\xff``."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _is_documentation(path: FilePath) -> bool:
    return path.name.lower().startswith(_DOCUMENTATION)


def _nearest(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    near = difflib.get_close_matches(path.name, os.listdir(parent), n=1)
    return f"; did you mean {parent / near[0]}?" if near else f"; {parent} has nothing of a similar name"


def text_ending(path: FilePath) -> str:
    """The ending of a file's name, in small letters and without that of a compression; empty if there is none."""
    endings = [ending.lower() for ending in path.suffixes]
    while endings and compression_of_ending(endings[-1]):
        endings.pop()
    return endings[-1] if endings else ""


def _describe(path: FilePath, *, name: str, split: str, options: ReadOptions) -> Source | Refusal:
    if isinstance(path, Path) and is_of_the_kernel(path):
        return Refusal("a file of the kernel", "")
    try:
        with path.open("rb") as file:
            magic = file.read(len(LFS_POINTER))  # more than any compression has
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    compression = compression_of(magic)
    promised = compression_of_ending(path.suffix)
    if promised and not compression and magic != LFS_POINTER:
        raise DataError(f"{path}: ends in {path.suffix} but holds no {promised} data; fetch it again or rename it")
    found = _format(path, compression, options)
    if isinstance(found, Refusal):
        return found
    if missing := what_is_missing(found):
        return Refusal(found.summary, missing)
    return Source(path, _printable(name), split, found.name, compression, status.st_size, status.st_mtime_ns)


def _format(path: FilePath, compression: str | None, options: ReadOptions) -> Format | Refusal:
    head = _head(path, compression, options)
    found = detect(head, ending=text_ending(path), text_keys=options.text_keys)
    if options.input_format == AUTO_FORMAT:
        # Nobody sees what an archive holds: a readme beside the text would be trained on unnoticed.
        return (
            Refusal("a tar archive", "unpack it, or read all its members with --format=tar") if found is TAR else found
        )
    asked = FORMATS[options.input_format]
    if isinstance(found, Refusal):
        # Text that is refused as it stands is read by whoever names a format; what is no text is not.
        return asked if found.is_text else found
    if (found.needs or asked is TAR or found is TAR) and found is not asked:
        return Refusal(found.summary, f"use --format={found.name}, or auto")
    return asked


def _head(path: FilePath, compression: str | None, options: ReadOptions) -> bytes:
    stream = UnpackedStream(path, compression, max_expansion=options.max_expansion)
    head = b""
    try:
        while len(head) < HEAD_BYTES and (chunk := stream.read(HEAD_BYTES - len(head))):
            head += chunk
    except DamagedFile:
        pass  # counted when the whole file is read
    finally:
        stream.close()
    return head[:HEAD_BYTES]
