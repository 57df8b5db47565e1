"""Findings of trials on disk: a fact about a machine and a shape, one file each, which the next start reads.

No file is trusted: one that is damaged, or whose contents are of another question, is as good as none. Torch-free.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from megadeberta.errors import StorageError
from megadeberta.model.kernel_choice.findings import Findings
from megadeberta.storage import write_file

logger = logging.getLogger(__name__)

VARIABLE = "MEGADEBERTA_KERNEL_CACHE"
"""The folder to use instead, or "off"."""

Facts = Mapping[str, str]
"""Everything that the findings depend on, in words."""


@dataclass(frozen=True)
class Entry:
    """The contents of a file."""

    facts: dict[str, str]
    findings: Findings


_ENTRY = TypeAdapter(Entry)


class KernelCache:
    """The files of a folder; ``folder`` None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "KernelCache":
        """The user's own, or what the variable says."""
        asked = environ.get(VARIABLE)
        if asked == "off":
            return cls(None)
        home = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache")
        return cls(Path(asked) if asked else home / "megadeberta" / "kernels")

    def path(self, facts: Facts) -> Path | None:
        """Where the findings for these facts are, if they are."""
        if self.folder is None:
            return None
        digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:16]}.json"

    def read(self, facts: Facts) -> Findings | None:
        """The findings for these facts; None, with one line in the log if a file had to be ignored."""
        path = self.path(facts)
        if path is None or not path.exists():
            return None
        try:
            entry = _ENTRY.validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            logger.warning("%s is not readable (%s): trying the kernels again", path, type(error).__name__)
            return None
        if entry.facts != dict(facts):
            logger.warning("%s is about something else: trying the kernels again", path)
            return None
        return entry.findings

    def write(self, facts: Facts, findings: Findings) -> bool:
        """Keep the findings; whether they are, with one line in the log where the folder cannot be written."""
        path = self.path(facts)
        if path is None:
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_file(path, _ENTRY.dump_json(Entry(dict(facts), findings), indent=1))
        except (OSError, StorageError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            logger.warning("the next start will try the kernels again: %s: %s (%s moves it)", path, reason, VARIABLE)
            return False
        return True

    def entries(self) -> Iterator[tuple[Path, Entry]]:
        """Every readable file."""
        for path in self._files():
            try:
                yield path, _ENTRY.validate_json(path.read_bytes())
            except (OSError, ValidationError):
                continue

    def clear(self) -> int:
        """Delete every file; how many."""
        paths = self._files()
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def _files(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob("*.json"))
