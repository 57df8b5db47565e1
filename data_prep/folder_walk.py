"""The files below a folder: every real folder once, whatever links lead to it, and nothing of the kernel's."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from megadeberta.errors import DataError

_MOUNTS = "/proc/self/mountinfo"
_OF_THE_KERNEL = frozenset(
    "binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl hugetlbfs mqueue nsfs proc "
    "pstore rpc_pipefs securityfs selinuxfs sysfs tracefs".split()
)
"""Types of file systems whose files are made as they are read, without end or with an effect, some of them."""


class Found(NamedTuple):
    """A file, its name relative to what holds the folder, and why it is not read, or an empty string."""

    path: Path
    name: str
    reason: str = ""


def walk(folder: Path, outside: Path) -> Iterator[Found]:
    """All files below ``folder`` in the order of names, without hidden ones; links are followed.

    A link to a folder that is walked anyway, or that holds the walk, and a folder of the kernel are one entry with a
    reason each.

    Args:
        outside: a folder that is left out.

    Raises:
        DataError: a folder cannot be listed, or ``folder`` is of the kernel.
    """
    if is_of_the_kernel(folder):
        raise DataError(f"{folder}: is a folder of the kernel, and no text; give the folder or files of the text")
    return _Walk(folder, outside).files()


def is_of_the_kernel(path: Path) -> bool:
    """Whether a file or folder is none on a disk, but made by the kernel, as all of /proc and /sys."""
    try:
        return path.stat().st_dev in _kernel_devices()
    except OSError:
        return False


@lru_cache(maxsize=1)
def _kernel_devices() -> frozenset[int]:
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file]
    except OSError:  # another system than Linux
        return frozenset()
    numbers = [fields[2].split(":") for fields in mounts if fields[fields.index("-") + 1] in _OF_THE_KERNEL]
    return frozenset(os.makedev(int(major), int(minor)) for major, minor in numbers)


class _Walk:
    def __init__(self, folder: Path, outside: Path) -> None:
        self._folder = folder
        self._outside = outside
        self._seen = {_identity(folder)}
        self._without_links: set[tuple[int, int]] | None = None

    def files(self) -> Iterator[Found]:
        for place, folders, names in os.walk(self._folder, followlinks=True, onerror=_refuse):
            kept = []
            for name in sorted(name for name in folders if not name.startswith(".")):
                path = Path(place, name)
                if path.resolve() == self._outside:
                    continue
                if reason := self._reason(path):
                    yield Found(path, self._name(path), reason)
                else:
                    kept.append(name)
            folders[:] = kept
            for name in sorted(name for name in names if not name.startswith(".")):
                path = Path(place, name)
                is_other = not path.is_file() and path.exists()
                yield Found(path, self._name(path), "a pipe, socket or device" if is_other else "")

    def _reason(self, path: Path) -> str:
        """Why a folder is not entered; one that is counts as seen."""
        if is_of_the_kernel(path):
            return "a folder of the kernel"
        identity = _identity(path)
        if path.is_symlink() and (identity in self._walked_anyway() or self._leads_back(path)):
            return "a link to a folder that is read without it, or that it is in"
        if identity in self._seen:
            return "a folder that another link leads to"
        self._seen.add(identity)
        return ""

    def _walked_anyway(self) -> set[tuple[int, int]]:
        if self._without_links is None:
            self._without_links = {_identity(self._folder)}
            for place, folders, _ in os.walk(self._folder, onerror=_refuse):
                folders[:] = [name for name in folders if not name.startswith(".")]
                paths = (Path(place, name) for name in folders)
                self._without_links.update(_identity(path) for path in paths if not path.is_symlink())
        return self._without_links

    def _leads_back(self, path: Path) -> bool:
        target, real = path.resolve(), path.parent.resolve()
        return target == real or target in real.parents or target in self._folder.resolve().parents

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder.parent))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error
