"""Findings about devices, from what a probe on other machines would say."""

import os
from typing import Any

import pytest

from megadeberta.doctor import devices
from megadeberta.doctor.devices import examine_devices, probe_torch
from megadeberta.doctor.findings import Finding, Status


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_collective", lambda backend, ranks, _: Finding("devices", f"{backend} {ranks}", ""))
    monkeypatch.setattr(devices, "_run", lambda *_: ("", ""))


def _gpu(**changes: Any) -> dict[str, Any]:
    return {"name": "H200", "capability": [9, 0], "free": 140 << 30, "total": 141 << 30, "reaches": 1, **changes}


def _found(*gpus: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "torch": "2.13.0+cu130",
        "cuda": "13.0",
        "hip": "",
        "cuda_error": "",
        "nccl": "2.28.9",
        "architectures": ["sm_80", "sm_90", "compute_120"],
        "devices": list(gpus),
        "attention": {"reference": ""},
    } | changes


def _by_name(found: dict[str, Any], *, gpus: int) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine_devices(found, {}, gpus=gpus)}


def test_two_good_gpus_are_fine_and_reduce_through_nccl() -> None:
    findings = _by_name(_found(_gpu(), _gpu()), gpus=2)
    assert {finding.status for finding in findings.values()} == {Status.OK}
    assert findings["GPU 1"].found == "H200, 141 GiB, sm_90, reaches 1 of 1 others directly"
    assert "nccl 2" in findings


def test_a_torch_for_cpus_on_a_machine_with_gpus_is_a_problem() -> None:
    finding = _by_name(_found(cuda="", torch="2.13.0+cpu"), gpus=8)["GPUs"]
    assert finding.status is Status.PROBLEM
    assert finding.found == "8 here, but torch 2.13.0+cpu is built for CPUs"


def test_a_driver_that_is_too_old_is_quoted() -> None:
    finding = _by_name(_found(cuda_error="The NVIDIA driver on your system is too old"), gpus=1)["GPUs"]
    assert finding.status is Status.PROBLEM and "too old" in finding.found and "13.0" in finding.remedy


def test_no_gpu_at_all_is_a_note() -> None:
    assert _by_name(_found(), gpus=0)["GPUs"].status is Status.NOTE


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"capability": [7, 5]}, Status.PROBLEM, "no code for it"),
        ({"capability": [8, 9]}, Status.OK, "sm_89"),
        ({"capability": [12, 1]}, Status.OK, "sm_121"),
        ({"free": 100 << 30}, Status.NOTE, "41.0 GiB are in use"),
    ],
)
def test_a_gpu_is_judged(changes: dict[str, Any], status: Status, words: str) -> None:
    finding = _by_name(_found(_gpu(**changes)), gpus=1)["GPU 0"]
    assert finding.status is status and words in finding.found


def test_a_backend_that_is_wrong_is_a_problem_and_one_that_is_not_for_here_is_not() -> None:
    said = {"triton": "wrong: the output is 3 away", "gluon": "not here: it needs a GPU"}
    findings = _by_name(_found(attention=said), gpus=0)
    assert findings["attention triton"].status is Status.PROBLEM
    assert findings["attention gluon"].status is Status.OK


def test_a_torch_that_cannot_be_imported_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_run", lambda *_: ("", "ended by signal 4"))
    found, (finding,) = probe_torch(os.environ)
    assert found == {} and finding.found == "ended by signal 4" and finding.status is Status.PROBLEM
