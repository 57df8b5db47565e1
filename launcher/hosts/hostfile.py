"""Several machines through DeepSpeed's own launcher, with every word checked first.

DeepSpeed 0.19.8 builds shell lines from hostfile entries, arguments and ``.deepspeed_env`` without quoting them
(launcher/runner.py, launcher/multinode_runner.py: PDSHRunner), so a word that a shell would expand is refused here.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from megadeberta.errors import ConfigError, ParallelError

_HOST = re.compile(r"[A-Za-z0-9_.:][A-Za-z0-9_.:-]*")
_LINE = re.compile(r"(\S+)\s+slots=(\d{1,4})\s*(?:#.*)?")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and their slots, in order. A line is ``HOST slots=N``; ``#`` begins a comment.

    Raises:
        ParallelError: with file, line number and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParallelError(f"hostfile {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise ParallelError(f"{path}:{number}: {line.strip()[:60]!r} is not of the form 'HOST slots=N'")
        host, slots = match[1], int(match[2])
        if not _HOST.fullmatch(host):
            raise ParallelError(
                f"{path}:{number}: {host!r} is not a host name; letters, digits, '_', '.', ':' and '-' are allowed, "
                "and '-' not at the start"
            )
        if slots < 1:
            raise ParallelError(f"{path}:{number}: slots={slots} starts no rank on {host}; give at least 1")
        if host in hosts:
            raise ParallelError(f"{path}:{number}: {host} is listed twice; add its slots up in one line")
        hosts[host] = slots
    if not hosts:
        raise ParallelError(f"hostfile {path} names no host; write one line 'HOST slots=N' for each machine")
    return hosts


def write_hostfile(path: Path, hosts: Mapping[str, int]) -> Path:
    """Write what ``read_hostfile`` reads; the path."""
    path.write_text("".join(f"{host} slots={slots}\n" for host, slots in hosts.items()), encoding="utf-8")
    return path


def build_command(
    hostfile: Path,
    words: Sequence[str],
    *,
    master_port: int,
    environ: Mapping[str, str],
    master_addr: str | None = None,
) -> list[str]:
    """The deepspeed launcher's command for ``python -m megadeberta train WORDS`` on the hosts of ``hostfile``.

    Args:
        master_addr: where rank 0 is reached by the others; None takes the first address of the first host.

    Raises:
        ConfigError: a word or folder that the remote shell would change.
        ParallelError: a bad hostfile, or pdsh is missing.
    """
    read_hostfile(hostfile)
    if shutil.which("pdsh", path=environ.get("PATH")) is None:
        raise ParallelError("pdsh is not installed; run `apt install pdsh openssh-client`, or use srun or mpiexec")
    for word in (*words, str(hostfile), *([master_addr] if master_addr is not None else [])):
        _check_word(word)
    for name, folder in (("the working folder", os.getcwd()), ("Python's path", sys.executable)):
        if not _PLAIN_WORD.fullmatch(folder):
            raise ConfigError(f"{name} {folder!r} holds characters that the remote shell would change; move it")
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "--launcher", "pdsh"]
    runner += ["--force_multi", "--no_local_rank", "--no_ssh_check", "--master_port", str(master_port)]
    if master_addr is not None:
        runner += ["--master_addr", master_addr]
    return [*runner, "--module", "megadeberta", "train", *words]


def _check_word(word: str) -> None:
    if not _PLAIN_WORD.fullmatch(word):
        raise ConfigError(
            f"{word!r} cannot be passed to other machines: DeepSpeed's launcher does not quote it and the remote shell "
            "would change it; put the value into a recipe file instead"
        )
