"""Checks before long work: compiler and output folder. Each failure is one clear line."""

import errno
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from megadeberta.errors import ConfigError, StorageError

BUILD_TOOLS = {"g++": "g++", "ninja": "ninja-build"}
"""What DeepSpeed builds its extensions with -> Debian's package."""
_LIBAIO_PROGRAM = "#include <libaio.h>\nint main() { io_context_t context = 0; return io_setup(1, &context); }\n"


def check_compiler(setting: str | None, *, search_path: str | None = None) -> None:
    """Refuse a setting that needs a C++ build on a machine that cannot build.

    Args:
        setting: with its value, from ``EngineSettings.needs_compiler``; None = nothing is built.
        search_path: where to look instead of PATH.

    Raises:
        ConfigError: naming the setting and the Debian packages.
    """
    if setting is None:
        return
    way_out = "or leave the optimizer on the device"
    missing = [tool for tool in BUILD_TOOLS if shutil.which(tool, path=search_path) is None]
    if missing:
        packages = " ".join(BUILD_TOOLS[tool] for tool in missing)
        raise ConfigError(
            f"{setting} makes DeepSpeed compile an extension, but {' and '.join(missing)} is not installed; "
            f"run `apt install {packages}`, {way_out}"
        )
    if "'nvme'" in setting and not has_libaio(search_path):
        raise ConfigError(
            f"{setting} makes DeepSpeed compile an extension that needs libaio, and a program that uses it does not "
            f"compile here; run `apt install libaio-dev` or name its place in CFLAGS and LDFLAGS, {way_out}"
        )


def has_libaio(search_path: str | None = None) -> bool:
    """Whether DeepSpeed's async_io can be built, which takes CFLAGS and LDFLAGS from the environment."""
    flags = [shlex.split(os.environ.get(name, "")) for name in ("CFLAGS", "LDFLAGS")]
    compiler = shutil.which("g++", path=search_path) or "g++"
    command = [compiler, *flags[0], "-x", "c++", "-", *flags[1], "-laio", "-o", os.devnull]
    return subprocess.run(command, input=_LIBAIO_PROGRAM, text=True, capture_output=True).returncode == 0


def check_writable(folder: Path) -> None:
    """Create ``folder`` if need be and prove that a file can be written into it.

    Raises:
        ConfigError: the path is a file, or permissions forbid it.
        StorageError: the file system is full or read-only.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test-") as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{folder} cannot be the output folder: a file of that name is in the way") from None
    except PermissionError:
        raise ConfigError(
            f"{folder} cannot be written by user id {os.getuid()}; choose another training.output_dir or fix its "
            "permissions"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}; free space or choose another folder"
        ) from None
