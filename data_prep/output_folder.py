"""The folder a preparation writes: one run at a time, and nothing finished is replaced unasked.

``train.json`` is written last of all, so a folder with it is whole and a folder without it is not.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, list_checkpoints
from megadeberta.config.set_files import (
    TOKENIZER_FILE,
    TOKENIZER_FOLDER,
    TOKENIZER_JSON,
    TRAIN_NAME,
    VALID_NAME,
    tokenizer_in,
)
from megadeberta.data.indexed import TokenShard
from megadeberta.data.packing_plan import remove_plans
from megadeberta.data.shard_files import SUFFIXES, numbered_files, shard_file
from megadeberta.data.shard_manifest import ShardManifest, read_manifest
from megadeberta.data.source_list import SUFFIX as SOURCES_SUFFIX
from megadeberta.data.tokenizer import VocabularyTokenizer
from megadeberta.data_prep.parts import FOLDER
from megadeberta.data_prep.report import REPORT
from megadeberta.errors import DataError
from megadeberta.remote.files import remote_address
from megadeberta.storage import storage_errors, sync_folder, take_lock, temporary_path, write_file

_LISTING = ".vocab"
_NAMED = 5


class OutputFolder:
    """``DIR`` of ``--output``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.train = path / TRAIN_NAME
        self.valid = path / VALID_NAME
        self.prefixes = {"train": self.train, "valid": self.valid, "test": path / "test"}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder and hold it for this process alone; the lock ends with the process, however it ends.

        Raises:
            StorageError: the folder cannot be made.
            DataError: it is a file, an address or the output of a training, or another run holds it.
        """
        if address := remote_address(self.path, check=False):
            raise DataError(
                f"--output={address} is an address; give a folder of this machine, and upload what is in it"
            )
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"--output={self.path} is a file; give a folder")
        if list_checkpoints(self.path / CHECKPOINTS_FOLDER):
            raise DataError(
                f"--output={self.path} is the output of a training, with its checkpoints; give token files a folder of "
                "their own, such as corpora/NAME"
            )
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not take_lock(descriptor, wait_seconds=0.0):
                raise DataError(
                    f"--output={self.path} is in use by another `megadeberta prep`; wait for it, or choose another "
                    "folder"
                )
            yield
        finally:
            os.close(descriptor)

    def is_finished(self, run_key: str, options: dict[str, Any], *, overwrite: bool) -> bool:
        """Whether the folder already holds the whole result of this very run; what it left behind is removed then.

        Raises:
            DataError: it holds another finished set, or shards of unknown origin, and ``overwrite`` is not set.
        """
        if shard_file(self.train, "json").exists():
            if not overwrite and self._recorded_key() == run_key:
                for prefix in self.prefixes.values():
                    if prefix == self.train or shard_file(prefix, "json").exists():
                        TokenShard.open(prefix).close()
                # Of a run that was killed after its last rename.
                shutil.rmtree(self.path / FOLDER, ignore_errors=True)
                return True
            if not overwrite:
                raise DataError(
                    f"--output={self.path} holds a finished set {self._difference(options)}; choose another folder, "
                    "or --overwrite to replace it"
                )
        strangers = [path.name for path in self._shard_files() if path.exists()]
        if strangers and not overwrite and not (self.path / FOLDER).exists():
            raise DataError(
                f"--output={self.path} already has {', '.join(strangers[:_NAMED])} and no manifest that says from "
                "what; choose another folder, or --overwrite to replace them"
            )
        return False

    @contextlib.contextmanager
    def unfinished(self) -> Iterator[Path]:
        """Mark the folder, until the block ends well, as one whose files a run that was stopped may replace.

        Yields a folder for temporary files.

        ``prep`` has no need of it: its finished blocks are the same mark.

        Raises:
            StorageError: the file system refused.
        """
        mark = self.path / FOLDER
        with storage_errors(mark):
            mark.mkdir(exist_ok=True)
        self.remove_drafts()
        yield mark
        with storage_errors(mark):
            shutil.rmtree(mark)

    def remove_drafts(self) -> None:
        """Remove the temporary files of a run that was killed while it wrote the shards.

        Raises:
            StorageError: the file system refused.
        """
        with storage_errors(self.path):
            for path in self._shard_files():
                temporary_path(path).unlink(missing_ok=True)
            for prefix in self.prefixes.values():
                for path in numbered_files(temporary_path(prefix)):
                    path.unlink()

    def begin_replacement(self) -> None:
        """Remove what marks an older set as whole, and everything of it that a new set may not have.

        Raises:
            StorageError: the file system refused.
        """
        with storage_errors(self.path):
            shard_file(self.train, "json").unlink(missing_ok=True)
            sync_folder(self.path)
            for prefix in self.prefixes.values():
                remove_plans(prefix)
                for path in numbered_files(prefix):
                    path.unlink()
                for suffix in (*reversed(SUFFIXES), SOURCES_SUFFIX):
                    shard_file(prefix, suffix).unlink(missing_ok=True)

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of the finished set."""
        return tokenizer_in(self.path / TOKENIZER_FOLDER)

    def write_tokenizer(self, tokenizer: VocabularyTokenizer) -> None:
        """Write ``tokenizer/spm.model``, or tokenizer.json, and its entries as ``.vocab`` beside it.

        Raises:
            StorageError: the file system refused.
        """
        folder = self.path / TOKENIZER_FOLDER
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        for name in {TOKENIZER_FILE, TOKENIZER_JSON} - {tokenizer.file_name}:  # of an older set
            (folder / name).unlink(missing_ok=True)
            (folder / name).with_suffix(_LISTING).unlink(missing_ok=True)
        write_file(folder / tokenizer.file_name, tokenizer.content)
        write_file((folder / tokenizer.file_name).with_suffix(_LISTING), tokenizer.listing())

    def manifests(self) -> tuple[ShardManifest, ShardManifest | None]:
        """Manifests of the finished train and valid shard.

        Raises:
            DataError: missing or damaged.
        """
        has_valid = shard_file(self.valid, "json").exists()
        train = read_manifest(shard_file(self.train, "json"))
        return train, read_manifest(shard_file(self.valid, "json")) if has_valid else None

    def all_manifests(self) -> dict[str, ShardManifest]:
        """Manifests of all splits of the finished set.

        Raises:
            DataError: missing or damaged.
        """
        paths = {split: shard_file(prefix, "json") for split, prefix in self.prefixes.items()}
        return {split: read_manifest(path) for split, path in paths.items() if split == "train" or path.exists()}

    def _shard_files(self) -> list[Path]:
        prefixes = self.prefixes.values()
        named = [shard_file(prefix, suffix) for prefix in prefixes for suffix in (*SUFFIXES, SOURCES_SUFFIX)]
        return named + [path for prefix in prefixes for path in sorted(numbered_files(prefix))]

    def _recorded_key(self) -> str | None:
        try:
            return json.loads((self.path / REPORT).read_bytes()).get("run_key")
        except (OSError, ValueError, AttributeError):
            return None

    def _difference(self, options: dict[str, Any]) -> str:
        before = read_manifest(shard_file(self.train, "json")).options
        names = [name for name in {**before, **options} if before.get(name) != options.get(name)]
        return f"with other {', '.join(names)}" if names else "from other files or another tokenizer"
