"""What a data section names and is not there, and what was probably meant."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megadeberta.config.data import DataConfig
from megadeberta.config.set_files import TOKENIZER_FOLDER, TRAIN_NAME, VALID_NAME, shard_exists, tokenizer_in
from megadeberta.data.shard_files import numbered, shard_file
from megadeberta.data.shard_manifest import read_manifest
from megadeberta.errors import DataError
from megadeberta.remote.path import RemotePath

_NEEDED = ("bin", "idx", "json")


@dataclass(frozen=True)
class Missing:
    """A token file, one of its three files, or the tokenizer."""

    key: str
    path: Path
    what: str
    suggestion: Path | None

    def __str__(self) -> str:
        hint = f", did you mean {self.suggestion}?" if self.suggestion else ""
        return f"{self.key}={self.path}: {self.what}{hint}"


def find_missing(data: DataConfig) -> list[Missing]:
    """Everything that is missing, in the order of the keys."""
    return [*_missing_shards(data), *_missing_tokenizer(data)]


def check_prepared_folder(folder: Path) -> None:
    """Refuse a folder that `megadeberta prep` did not write, before anything in it is opened.

    Raises:
        DataError: it is missing, a file, or holds no training documents.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        meant = f"; did you mean {folder.parent}?" if shard_exists(folder) else ""
        raise DataError(
            f"{folder} {what}; give the --output folder of `megadeberta prep`, which holds {TRAIN_NAME}.bin{meant}"
        )
    if not shard_exists(folder / TRAIN_NAME):
        raise DataError(
            f"{folder} holds no {TRAIN_NAME}.bin, .idx and .json: no `megadeberta prep` has finished in it; "
            f"start it again, or, if the folder holds text, run `megadeberta prep {folder} --vocab-size 32000 --output "
            "OTHER` first and give OTHER"
        )


def is_unprepared(data: DataConfig) -> bool:
    """Whether nothing of it exists, nor anything of a similar name: the data is still to be prepared, or elsewhere."""
    prefixes = [*data.train_prefixes.values(), *data.valid_prefixes.values()]
    if any(map(shard_exists, prefixes)) or data.tokenizer.exists():
        return False
    if any(prefix.name == TRAIN_NAME and _holds_something_else(prefix.parent) for prefix in prefixes):
        return False
    return not any(missing.suggestion for missing in find_missing(data))


def _holds_something_else(folder: Path) -> bool:
    """Whether a folder has files, and `megadeberta prep` is not at work in it: it is that of the text, say."""
    if isinstance(folder, RemotePath) or not folder.is_dir() or (folder / TOKENIZER_FOLDER).exists():
        return False
    return any(entry.is_file() and not entry.name.startswith(".") for entry in folder.iterdir())


def check_nothing_is_missing(data: DataConfig) -> None:
    """
    Raises:
        DataError: all that is missing, in one line.
    """
    missing = find_missing(data)
    if missing:
        raise DataError("; ".join(map(str, missing)) + "; `megadeberta prep` makes token files and tokenizer")


def check_prefix(key: str, prefix: Path) -> None:
    """Refuse a prefix without a token file, before anything heavy is loaded.

    Args:
        key: what named it, for the error.

    Raises:
        DataError: what is missing, and what was probably meant.
    """
    missing = _missing_shard(key, prefix, VALID_NAME)
    if missing is not None:
        raise DataError(f"{missing}; `megadeberta prep` makes token files")


def suggest_path(path: Path) -> Path | None:
    """A file or folder of a similar path; every part of the path may have its own mistake."""
    if isinstance(path, RemotePath):
        return None
    parts = list(path.parts)
    found = Path(parts[0]) if path.is_absolute() else Path()
    for part in parts[1:] if path.is_absolute() else parts:
        step = found / part
        if not step.exists():
            names = [child.name for child in found.iterdir()] if found.is_dir() else []
            near = difflib.get_close_matches(part, names, n=1, cutoff=0.6)
            if not near:
                return None
            step = found / near[0]
        found = step
    return found


def suggest_prefix(prefix: Path, wanted: str = TRAIN_NAME) -> Path | None:
    """A token file that may have been meant: one in the folder of that name, or one of a similar name or folder."""
    if prefix.suffix.removeprefix(".") in _NEEDED and shard_exists(prefix.with_suffix("")):
        return prefix.with_suffix("")
    if isinstance(prefix, RemotePath):
        return None
    folder = prefix if prefix.is_dir() else suggest_path(prefix)
    if folder is not None and folder.is_dir() and shard_exists(folder / wanted):
        return folder / wanted
    parent = prefix.parent if prefix.parent.is_dir() else suggest_path(prefix.parent)
    if parent is None or not parent.is_dir():
        return None
    if shard_exists(parent / prefix.name):
        return parent / prefix.name
    names = sorted(file.stem for file in parent.glob("*.idx"))
    near = difflib.get_close_matches(prefix.name, names, n=1, cutoff=0.6)
    return parent / near[0] if near else None


def _missing_shards(data: DataConfig) -> Iterator[Missing]:
    for section, wanted, prefixes in (
        ("data.train", TRAIN_NAME, data.train_prefixes),
        ("data.valid", VALID_NAME, data.valid_prefixes),
    ):
        for name, prefix in prefixes.items():
            missing = _missing_shard(f"{section}.{name}" if name else section, prefix, wanted)
            if missing is not None:
                yield missing


def _missing_shard(key: str, prefix: Path, wanted: str) -> Missing | None:
    files = [shard_file(prefix, suffix) for suffix in _NEEDED]
    if files[-1].exists() and not any(file.exists() for file in files[:-1]):
        files = _files_of_set(prefix)
    gone = [file for file in files if not file.exists()]
    if len(gone) == len(files):
        what = f"{prefix.name}.bin, .idx and .json do not exist"
        if prefix.parent.is_file():
            what = f"{prefix.parent} is a file and no folder that `megadeberta prep` wrote"
        if prefix.is_dir() or prefix.is_file():
            what = "is a folder" if prefix.is_dir() else "is a file, and no prefix"
        return Missing(key, prefix, what, suggest_prefix(prefix, wanted))
    if gone:
        names = " and ".join(file.name for file in gone)
        return Missing(key, prefix, f"{names} of it does not exist, prepare it again", None)
    return None


def _files_of_set(prefix: Path) -> list[Path]:
    """Those of a set of several files, where the manifest says so; else those of one."""
    try:
        manifest = read_manifest(shard_file(prefix, "json"))
    except DataError:
        return [shard_file(prefix, "json")]  # opening it says what is wrong
    prefixes = [numbered(prefix, number) for number in range(len(manifest.files))] or [prefix]
    return [shard_file(one, suffix) for one in prefixes for suffix in _NEEDED]


def _missing_tokenizer(data: DataConfig) -> Iterator[Missing]:
    path = data.tokenizer
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        inside = [path, path / TOKENIZER_FOLDER]
        near = [tokenizer_in(folder) for folder in inside] if path.is_dir() else [suggest_path(path)]
        yield Missing("data.tokenizer", path, what, next((file for file in near if file and file.is_file()), None))
