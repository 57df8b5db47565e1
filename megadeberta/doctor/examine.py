"""All of it, in order."""

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megadeberta.doctor.devices import examine_devices, probe_torch
from megadeberta.doctor.findings import Examination, Finding
from megadeberta.doctor.machine import examine_machine
from megadeberta.doctor.software import examine_software, package_versions
from megadeberta.rank.devices import count_local_devices

_SAME_EVERYWHERE = ("megadeberta", "torch", "deepspeed", "numpy", "sentencepiece", "triton")
"""Packages whose version changes numbers, messages between ranks or what a recipe means."""


def examine(folder: Path, environ: Mapping[str, str], *, say: Callable[[str], None]) -> Examination:
    """Look at this machine.

    Args:
        folder: where runs are to lie.
        say: gets one line before each part that takes a while.
    """
    gpus = count_local_devices(environ)
    say("software")
    findings = list(examine_software())
    say(f"machine, writing 64 MiB in {folder}")
    findings += examine_machine(folder, environ, gpus=gpus)
    say("torch, attention and collectives")
    found, failures = probe_torch(environ)
    findings += failures
    if found:
        findings += examine_devices(found, environ, gpus=gpus)
    return Examination(socket.gethostname(), tuple(findings), _facts(findings, found))


def _facts(findings: list[Finding], found: Mapping[str, Any]) -> dict[str, str]:
    facts = {**package_versions(*_SAME_EVERYWHERE)}
    facts["Python"] = next(finding.found.split()[0] for finding in findings if finding.name == "Python")
    if found:
        kinds = sorted({device["name"] for device in found["devices"]})
        facts |= {"CUDA of torch": found["cuda"], "NCCL": found["nccl"], "GPUs": ", ".join(kinds)}
    return {name: value or "none" for name, value in facts.items()}
