"""Processors, memory, disk and network of this machine, as Linux tells them. Torch-free."""

import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from megadeberta.doctor.findings import Finding, Status

AREA = "machine"
_GIB = 2**30
_SHM_WITH_GPUS, _SHM = 8 * _GIB, _GIB // 4
_FREE_DISK = 20 * _GIB  # a few checkpoints of a base model
_OPEN_FILES = 4096
_PROBE_BYTES = 64 << 20
_SLOW_DISK = 50e6  # bytes per second, synced: a checkpoint of 1.5 billion parameters takes six minutes then
_SHORT_LIVED = ("tmpfs", "ramfs", "overlay")


def examine_machine(folder: Path, environ: Mapping[str, str], *, gpus: int) -> Iterator[Finding]:
    """Everything that needs no package.

    Args:
        folder: where runs and token files are to lie; made for a moment if it is not there.
        gpus: how many this machine shows.
    """
    yield _processors(environ)
    yield _memory()
    yield _shared_memory(gpus)
    yield from _limits()
    yield from _disk(folder)
    yield from _network(environ)


def _processors(environ: Mapping[str, str]) -> Finding:
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    found = f"{usable} of {present}" if usable != present else f"{present}"
    quota = _cgroup("cpu.max")
    if quota and quota[0] != "max" and int(quota[0]) < usable * int(quota[1]):
        found += f", limited to {int(quota[0]) / int(quota[1]):.1f} by the container"
    if environ.get("OMP_NUM_THREADS"):
        found += f", OMP_NUM_THREADS={environ['OMP_NUM_THREADS']}"
    return Finding(AREA, "processors", found)


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = next(
        (int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")), total
    )
    limit = _cgroup("memory.max")
    if limit and limit[0] != "max" and int(limit[0]) < total:
        total = int(limit[0])
        free = min(free, total)
    return Finding(AREA, "memory", f"{total / _GIB:.1f} GiB, {free / _GIB:.1f} GiB free")


def _shared_memory(gpus: int) -> Finding:
    """/dev/shm: NCCL's transport between GPUs of one machine, and batches of loader processes, go through it."""
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Finding(AREA, "/dev/shm", "not there", Status.PROBLEM, "mount a tmpfs there; NCCL and loaders need it")
    wanted, found = (_SHM_WITH_GPUS if gpus > 1 else _SHM), f"{size / _GIB:.2f} GiB"
    if size >= wanted:
        return Finding(AREA, "/dev/shm", found)
    remedy = f"give it {wanted / _GIB:g} GiB: docker run --shm-size={wanted // 2**20}m, or --ipc=host"
    return Finding(AREA, "/dev/shm", found, Status.PROBLEM if gpus > 1 else Status.NOTE, remedy)


def _limits() -> Iterator[Finding]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < _OPEN_FILES:
        yield Finding(AREA, "open files", f"at most {files}", Status.NOTE, f"ulimit -n {_OPEN_FILES} for many ranks")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if locked != resource.RLIM_INFINITY and any(Path("/sys/class/infiniband").glob("*")):
        remedy = "ulimit -l unlimited (docker run --ulimit memlock=-1): InfiniBand registers memory"
        yield Finding(AREA, "locked memory", f"at most {locked} bytes", Status.PROBLEM, remedy)


def _disk(folder: Path) -> Iterator[Finding]:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free, kind = shutil.disk_usage(there).free, _file_system(there)
    found = f"{free / _GIB:.1f} GiB free on {kind} at {there}"
    if free < _FREE_DISK:
        remedy = f"a checkpoint of a base model takes 2 GiB; free {_FREE_DISK / _GIB:g} GiB or give another --folder"
        yield Finding(AREA, "disk", found, Status.NOTE, remedy)
    elif kind in _SHORT_LIVED:
        yield Finding(AREA, "disk", found, Status.NOTE, "it ends with the machine or container; keep runs elsewhere")
    else:
        yield Finding(AREA, "disk", found)
    try:
        rate = _write_rate(there)
    except OSError as error:
        yield Finding(AREA, "writing", f"{error.strerror} at {there}", Status.PROBLEM, "give another --folder")
        return
    status = Status.OK if rate >= _SLOW_DISK else Status.NOTE
    remedy = (
        "" if rate >= _SLOW_DISK else "checkpoints will take long; a faster folder, or a longer checkpoint.interval"
    )
    yield Finding(AREA, "writing", f"{rate / 1e6:.0f} MB/s, synced", status, remedy)


def _write_rate(folder: Path) -> float:
    """Bytes per second of one synced file of 64 MiB, which is removed."""
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".megadeberta-doctor-") as probe:
        began = time.perf_counter()
        for _ in range(_PROBE_BYTES // len(block)):
            probe.write(block)
        probe.flush()
        os.fsync(probe.fileno())
        return _PROBE_BYTES / (time.perf_counter() - began)


def _network(environ: Mapping[str, str]) -> Iterator[Finding]:
    cards = {path.name: path for path in sorted(Path("/sys/class/net").glob("*")) if path.name != "lo"}
    up = [name for name, path in cards.items() if _word(path / "operstate") in ("up", "unknown")]
    found = ", ".join(_card(cards[name]) for name in up) or "none is up"
    yield Finding(AREA, "network", found, *(() if up else (Status.NOTE, "several machines need a network")))
    for port in sorted(Path("/sys/class/infiniband").glob("*/ports/*")):
        state, rate = _word(port / "state"), " ".join(_words(port / "rate"))
        name = f"{port.parent.parent.name}:{port.name}"
        is_active = state.endswith("ACTIVE") or state.startswith("4")
        more = () if is_active else (Status.NOTE, "NCCL will not use it; ask the administrator if it should be up")
        yield Finding(AREA, name, f"{_word(port / 'link_layer')}, {rate}, {state}", *more)
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        yield from _chosen_card(variable, environ.get(variable, ""), cards)
    yield _own_address()


def _chosen_card(variable: str, value: str, cards: Mapping[str, Path]) -> Iterator[Finding]:
    """NCCL takes prefixes, "=" before a whole name and "^" before what to leave out."""
    if not value or value.startswith("^"):
        return
    exact = value.startswith("=")
    names = [name for name in value.removeprefix("=").split(",") if name]
    known = ("lo", *cards)
    unknown = [n for n in names if not any(card == n if exact else card.startswith(n) for card in known)]
    if unknown:
        remedy = f"unset it, or name one of {', '.join(known)}"
        yield Finding(AREA, variable, f"{value}: no card is called {unknown[0]}", Status.PROBLEM, remedy)


def _own_address() -> Finding:
    """The others reach rank 0 by this machine's name: an /etc/hosts that sends it to loopback breaks that."""
    name = socket.gethostname()
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError:
        remedy = "runs on one machine work; for several add it to DNS or /etc/hosts, or set MASTER_ADDR"
        return Finding(AREA, "host name", f"{name} has no address", Status.NOTE, remedy)
    found = f"{name} is {', '.join(addresses)}"
    if all(address.startswith("127.") or address == "::1" for address in addresses):
        remedy = "runs on one machine work; for several give --master-addr, or repair /etc/hosts"
        return Finding(AREA, "host name", f"{found}, this machine alone", Status.NOTE, remedy)
    return Finding(AREA, "host name", found)


def _card(path: Path) -> str:
    try:
        speed = int(_word(path / "speed"))
    except ValueError:
        speed = -1
    return f"{path.name} ({speed / 1000:g} Gb/s)" if speed > 0 else path.name


def _file_system(folder: Path) -> str:
    """Type of the mount that holds ``folder``."""
    best, kind = -1, "an unknown file system"
    for line in _lines("/proc/self/mounts"):
        _, point, found, *_ = line.split()
        point = point.encode().decode("unicode_escape")  # blanks are \040
        if len(point) > best and folder.is_relative_to(point):
            best, kind = len(point), found
    return kind


def _cgroup(name: str) -> list[str]:
    """Words of a limit of this process's control group (version 2), the tightest file that is there; else none."""
    return _words(Path("/sys/fs/cgroup") / name)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (OSError, UnicodeDecodeError):
        return []


def _word(path: Path) -> str:
    return " ".join(_words(path))
