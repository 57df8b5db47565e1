"""What torch, the kernels and the collectives do here, each tried in processes of its own: they may crash or hang."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megadeberta.doctor.findings import Finding, Status
from megadeberta.rank.ports import LOOPBACK, pick_free_port

AREA = "devices"
_PROBE_SECONDS, _COLLECTIVE_SECONDS, _IMPORT_SECONDS = 300.0, 90.0, 120.0
_OLDEST_CAPABILITY = (8, 0)  # bf16, and what the kernels are written for
_FREE_FRACTION = 0.9
_MOST_RANKS = 8
_COLLECTIVE_REMEDY = {
    "nccl": "unset NCCL_* variables one by one; NCCL_DEBUG=INFO says more",
    "gloo": f"check GLOO_SOCKET_IFNAME, and that processes reach each other over {LOOPBACK}",
}
_GIB = 2**30


def probe_torch(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[Finding]]:
    """What ``torch_probe`` says, empty if it could not, and a finding if it could not."""
    output, failure = _run(["-m", "megadeberta.doctor.torch_probe"], environ, _PROBE_SECONDS)
    if failure:
        remedy = "torch or its driver is broken: python -c 'import torch' shows more"
        return {}, [Finding(AREA, "torch", failure, Status.PROBLEM, remedy)]
    return json.loads(output.splitlines()[-1]), []


def examine_devices(found: Mapping[str, Any], environ: Mapping[str, str], *, gpus: int) -> Iterator[Finding]:
    """GPUs, attention backends, collectives and DeepSpeed.

    Args:
        found: of :func:`probe_torch`.
        gpus: device files that this process may use.
    """
    yield from _gpus(found, gpus)
    for name, said in found["attention"].items():
        if said.startswith("not here: "):
            yield Finding(AREA, f"attention {name}", said)
        else:
            remedy = "training.attention=auto leaves it out; please report it with `megadeberta doctor --json`"
            more = (Status.PROBLEM, remedy) if said else ()
            yield Finding(AREA, f"attention {name}", said or "right", *more)
    ranks = min(max(2, len(found["devices"])), _MOST_RANKS)
    backend = "nccl" if len(found["devices"]) > 1 else "gloo"
    yield _collective(backend, ranks, environ)
    failure = _run(["-c", "import deepspeed"], environ, _IMPORT_SECONDS)[1]
    more = (Status.PROBLEM, "pip install deepspeed again, with the torch that is installed now") if failure else ()
    yield Finding(AREA, "DeepSpeed", failure or "imports", *more)


def _gpus(found: Mapping[str, Any], gpus: int) -> Iterator[Finding]:
    build = f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {found['hip']}" if found["hip"] else "for CPUs"
    if gpus and not found["devices"]:
        if found["cuda_error"]:
            remedy = f"update NVIDIA's driver, or install a torch for its CUDA version ({found['cuda']} is this one's)"
            yield Finding(AREA, "GPUs", found["cuda_error"], Status.PROBLEM, remedy)
        else:
            remedy = "install the torch that pytorch.org/get-started names for this driver"
            there = f"{gpus} here, but torch {found['torch']} is built {build}"
            yield Finding(AREA, "GPUs", there, Status.PROBLEM, remedy)
        return
    yield Finding(
        AREA, "torch", f"{found['torch']}, built {build}" if not found["cuda"] else f"{found['torch']}, {build}"
    )
    if not found["devices"]:
        yield Finding(AREA, "GPUs", "none: training runs on the CPU", Status.NOTE, "fit for small models and trials")
        return
    if found["nccl"]:
        yield Finding(AREA, "NCCL", found["nccl"])
    for number, device in enumerate(found["devices"]):
        yield _gpu(number, device, found)


def _gpu(number: int, device: Mapping[str, Any], found: Mapping[str, Any]) -> Finding:
    name, capability = f"GPU {number}", tuple(device["capability"])
    text = f"{device['name']}, {device['total'] / _GIB:.0f} GiB, sm_{capability[0]}{capability[1]}"
    others = len(found["devices"]) - 1
    if others:
        text += f", reaches {device['reaches']} of {others} others directly"
    if found["cuda"] and not _has_code(capability, found["architectures"]):
        remedy = "install a torch that is built for this GPU, or use another GPU"
        return Finding(AREA, name, f"{text}: this torch has no code for it", Status.PROBLEM, remedy)
    if capability < _OLDEST_CAPABILITY and found["cuda"]:
        return Finding(
            AREA, name, text, Status.NOTE, "before sm_80: use fp16 or fp32, and training.attention=reference"
        )
    if device["free"] < _FREE_FRACTION * device["total"]:
        used = f"{(device['total'] - device['free']) / _GIB:.1f} GiB are in use"
        return Finding(
            AREA, name, f"{text}; {used}", Status.NOTE, "nvidia-smi names the process; end it if it is yours"
        )
    return Finding(AREA, name, text)


def _has_code(capability: tuple[int, ...], architectures: Sequence[str]) -> bool:
    """Machine code runs on its own major version; "compute_XY" is compiled for anything newer."""
    for name in architectures:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")
        built = (int(digits[:-1]), int(digits[-1]))
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _collective(backend: str, ranks: int, environ: Mapping[str, str]) -> Finding:
    """All ranks together; the first one that failed is quoted."""
    job = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(pick_free_port()), "WORLD_SIZE": str(ranks)}
    words = [sys.executable, "-m", "megadeberta.doctor.collective_probe", backend]
    processes = [
        subprocess.Popen(
            words,
            env={**environ, **job, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for rank in range(ranks)
    ]
    failures = [failure for failure in (_wait(process) for process in processes) if failure]
    name = f"{backend} all-reduce"
    if not failures:
        return Finding(AREA, name, f"right between {ranks} processes")
    return Finding(AREA, name, failures[0], Status.PROBLEM, _COLLECTIVE_REMEDY[backend])


def _run(words: Sequence[str], environ: Mapping[str, str], seconds: float) -> tuple[str, str]:
    """Output of ``python WORDS``, and how it failed; one of them is empty."""
    process = subprocess.Popen(
        [sys.executable, *words],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "", f"no answer within {seconds:.0f} s"
    return (output, "") if process.returncode == 0 else ("", _last_words(errors, process.returncode))


def _wait(process: "subprocess.Popen[str]") -> str:
    try:
        errors = process.communicate(timeout=_COLLECTIVE_SECONDS)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"no answer within {_COLLECTIVE_SECONDS:.0f} s"
    return "" if process.returncode == 0 else _last_words(errors, process.returncode)


def _last_words(errors: str, code: int) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    end = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{end}: {lines[-1][:300]}" if lines else end
