"""Python, packages and programs: what is installed against what megadeberta asks for. Nothing is imported."""

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from megadeberta.doctor.findings import Finding, Status
from megadeberta.rank.machine import BUILD_TOOLS, has_libaio

AREA = "software"
OLDEST_PYTHON = (3, 11)
_DEVELOPMENT = ("test", "dev")  # extras for those who change megadeberta
_LAUNCHERS = {
    "pdsh": "several machines through `megadeberta launch --hostfile`; Debian: apt install pdsh openssh-client",
    "mpiexec": "ranks under MPI; pip install 'megadeberta[mpi]', or the MPI of the cluster",
    "srun": "ranks under Slurm; on a cluster with Slurm only",
}


def examine_software() -> Iterator[Finding]:
    """Python, required packages, optional ones, compiler and launchers."""
    yield _python()
    if not sys.platform.startswith("linux"):
        yield Finding(
            AREA, "system", platform.platform(), Status.PROBLEM, "use Linux: process and file handling rely on it"
        )
    for requirement in _requirements():
        yield from _package(requirement)
    yield from _extras()
    yield _compiler()
    for program, use in _LAUNCHERS.items():
        where = shutil.which(program)
        yield Finding(AREA, program, where) if where else Finding(AREA, program, "not there", Status.NOTE, f"for {use}")


def package_versions(*names: str) -> dict[str, str]:
    """Version by package, "none" for one that is not installed."""
    return {name: _version(name) or "none" for name in names}


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info >= OLDEST_PYTHON:
        return Finding(AREA, "Python", found)
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Finding(AREA, "Python", found, Status.PROBLEM, f"use Python {oldest} or newer")


def _requirements() -> Iterator[Requirement]:
    """Every requirement of the installed megadeberta that holds on this system, those of extras with their marker."""
    yield from map(Requirement, metadata.requires("megadeberta") or ())


def _package(requirement: Requirement) -> Iterator[Finding]:
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return
    wanted = f"{requirement.name}{requirement.specifier}"
    version = _version(requirement.name)
    if version is None:
        yield Finding(AREA, requirement.name, "not installed", Status.PROBLEM, f"pip install '{wanted}'")
    elif not requirement.specifier.contains(version, prereleases=True):
        yield Finding(AREA, requirement.name, version, Status.PROBLEM, f"megadeberta needs {wanted}: pip install it")
    else:
        yield Finding(AREA, requirement.name, version)


def _extras() -> Iterator[Finding]:
    """One line for each extra of ours that is not whole."""
    missing: dict[str, list[str]] = {}
    extras = metadata.metadata("megadeberta").get_all("Provides-Extra") or []
    for extra in (name for name in extras if name not in _DEVELOPMENT):
        for requirement in _requirements():
            if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
                continue
            version = _version(requirement.name)
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                has = f"{requirement.name} {version}, not {requirement.specifier}" if version else requirement.name
                missing.setdefault(extra, []).append(has)
    for extra, packages in missing.items():
        found = f"without {', '.join(packages)}"
        yield Finding(AREA, f"extra {extra}", found, Status.NOTE, f"pip install 'megadeberta[{extra}]' if you want it")


def _compiler() -> Finding:
    """What DeepSpeed's own extensions are built with; only offloading needs them."""
    missing = [package for tool, package in BUILD_TOOLS.items() if shutil.which(tool) is None]
    for_offload = "only for an optimizer that is offloaded to the host or to NVMe"
    if missing:
        names = " ".join(missing)
        return Finding(AREA, "C++ build", f"without {names}", Status.NOTE, f"apt install {names}; {for_offload}")
    if not has_libaio():
        return Finding(
            AREA, "C++ build", "without libaio", Status.NOTE, "apt install libaio-dev; only to offload to NVMe"
        )
    return Finding(AREA, "C++ build", "g++, ninja and libaio")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
