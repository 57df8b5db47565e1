from pathlib import Path
from types import SimpleNamespace

import pytest

from megadeberta.doctor import machine, software
from megadeberta.doctor.findings import Finding, Status


def _by_name(folder: Path, environ: dict[str, str] | None = None, *, gpus: int = 0) -> dict[str, Finding]:
    return {finding.name: finding for finding in machine.examine_machine(folder, environ or {}, gpus=gpus)}


def test_this_machine_is_described_and_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    findings = _by_name(tmp_path)
    assert {"processors", "memory", "/dev/shm", "disk", "writing", "network", "host name"} <= set(findings)
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) in findings["disk"].found


def test_a_folder_that_is_not_there_yet_is_judged_by_what_is_above_it(tmp_path: Path) -> None:
    findings = _by_name(tmp_path / "runs" / "new")
    assert findings["disk"].found.endswith(str(tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("gpus", "status"), [(0, Status.NOTE), (2, Status.PROBLEM)])
def test_small_shared_memory_matters_most_between_gpus(
    gpus: int, status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(total=64 << 20, free=64 << 20))
    finding = _by_name(tmp_path, gpus=gpus)["/dev/shm"]
    assert finding.status is status and "--shm-size" in finding.remedy


@pytest.mark.parametrize(
    ("value", "is_wrong"), [("no_such_card", True), ("=l", True), ("lo", False), ("l", False), ("^docker", False)]
)
def test_a_variable_that_names_no_card_is_a_problem(value: str, is_wrong: bool, tmp_path: Path) -> None:
    finding = _by_name(tmp_path, {"NCCL_SOCKET_IFNAME": value}).get("NCCL_SOCKET_IFNAME")
    assert (finding is not None and finding.status is Status.PROBLEM) is is_wrong


def test_a_name_that_only_this_machine_knows_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", ("127.0.1.1", 0))])
    assert _by_name(tmp_path)["host name"].status is Status.NOTE
    monkeypatch.setattr(machine.socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", ("10.0.0.7", 0))])
    assert _by_name(tmp_path)["host name"].status is Status.OK


def test_packages_are_compared_with_what_megadeberta_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "1.9", "numpy": None}
    real = software._version
    monkeypatch.setattr(software, "_version", lambda name: versions.get(name, real(name)))
    findings = {finding.name: finding for finding in software.examine_software()}
    assert findings["torch"].status is Status.PROBLEM and "torch<2.15,>=2.13" in findings["torch"].remedy
    assert findings["numpy"].status is Status.PROBLEM and findings["numpy"].remedy == "pip install 'numpy>=2.0'"
    assert findings["rich"].status is Status.OK


def test_an_extra_that_is_not_whole_is_a_note_that_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = software._version
    monkeypatch.setattr(software, "_version", lambda name: None if name == "pyarrow" else real(name))
    findings = {finding.name: finding for finding in software.examine_software()}
    assert findings["extra parquet"] == Finding(
        "software",
        "extra parquet",
        "without pyarrow",
        Status.NOTE,
        "pip install 'megadeberta[parquet]' if you want it",
    )
