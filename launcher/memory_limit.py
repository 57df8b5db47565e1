"""Whether the kernel has ended processes because the control group of this job was out of memory (cgroup v1 and v2)."""

from contextlib import suppress
from pathlib import Path

_NO_LIMIT_BYTES = 1 << 60
"""From here on cgroup v1 means none."""


class MemoryLimit:
    """Of the group in which the launcher and, as they inherit it, its ranks are."""

    def __init__(self, *, groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> None:
        """
        Args:
            groups: what the kernel says of this process.
            root: where the control groups are mounted.
        """
        self._counter, self._limit = _files(groups, root)
        self._before = self._count()

    def describe_kills(self) -> str:
        """What happened since this object was made, as a part of a sentence; "" for nothing."""
        kills = self._count() - self._before
        if kills <= 0:
            return ""
        limit = ""
        with suppress(OSError, ValueError):
            size = int(self._limit.read_text())
            limit = f" of {size / 2**30:.2f} GiB" if size < _NO_LIMIT_BYTES else ""
        group = f"this job's control group ({self._counter.parent})"
        return f"the memory limit{limit} of {group} was reached, oom_kill {kills}"

    def _count(self) -> int:
        with suppress(OSError, ValueError, IndexError):
            lines = [line.split() for line in self._counter.read_text().splitlines()]
            return next((int(words[1]) for words in lines if words[0] == "oom_kill"), 0)
        return 0


def _files(groups: Path, root: Path) -> tuple[Path, Path]:
    """The file that counts, and that of the limit; they need not exist."""
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        lines = []
    for _, controllers, path in (words for words in lines if len(words) == 3):
        if "memory" in controllers.split(","):
            folder = _existing(root / "memory", path, "memory.oom_control")
            return folder / "memory.oom_control", folder / "memory.limit_in_bytes"
    path = next((words[2] for words in lines if len(words) == 3 and not words[1]), "/")
    folder = _existing(root, path, "memory.events")
    return folder / "memory.events", folder / "memory.max"


def _existing(root: Path, path: str, name: str) -> Path:
    """In a container the path may be that of the host, and the group be mounted at the root."""
    folder = root / path.strip("/")
    return folder if (folder / name).exists() else root
