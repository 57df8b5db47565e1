import os
import socket
from pathlib import Path

import pytest

from megadeberta.errors import ConfigError, ParallelError, StorageError
from megadeberta.rank.devices import count_local_devices
from megadeberta.rank.machine import check_compiler, check_writable
from megadeberta.rank.ports import check_port_free, pick_free_port

OFFLOAD = "deepspeed.zero_optimization.offload_optimizer.device='cpu'"


def _make_tool(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def test_missing_compiler_names_the_setting_and_the_debian_packages(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"offload_optimizer\.device='cpu' .*g\+\+ and ninja is not.*apt install g\+\+ ninja-build"
    ):
        check_compiler(OFFLOAD, search_path=str(tmp_path))
    _make_tool(tmp_path, "g++")
    with pytest.raises(ConfigError, match=r"but ninja is not installed; run `apt install ninja-build`"):
        check_compiler(OFFLOAD, search_path=str(tmp_path))
    _make_tool(tmp_path, "ninja")
    check_compiler(OFFLOAD, search_path=str(tmp_path))


def test_nvme_without_libaio_is_refused_before_deepspeed_fails_to_build(tmp_path: Path) -> None:
    nvme = "deepspeed.zero_optimization.offload_optimizer.device='nvme'"
    for tool in ("g++", "ninja"):
        _make_tool(tmp_path, tool)
    check_compiler(nvme, search_path=str(tmp_path))  # a compiler that takes everything
    (tmp_path / "g++").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ConfigError, match=r"offload_optimizer\.device='nvme' .*libaio.*run `apt install libaio-dev`"):
        check_compiler(nvme, search_path=str(tmp_path))
    check_compiler(OFFLOAD, search_path=str(tmp_path))


def test_no_compiler_is_asked_for_without_offloading(tmp_path: Path) -> None:
    check_compiler(None, search_path=str(tmp_path))


def test_port_in_use_is_refused() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        with pytest.raises(ParallelError, match=rf"master port {port} is in use by another process; choose another"):
            check_port_free(port)
    check_port_free(port)


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ParallelError, match=rf"master port {port} is not a port"):
        check_port_free(port)


def test_reserved_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ParallelError, match="master port 80 is reserved for root"):
        check_port_free(80)


def test_picked_port_can_be_listened_on() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", pick_free_port()))


def test_output_folder_is_created_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "runs" / "one")
    assert list((tmp_path / "runs" / "one").iterdir()) == []


def test_file_in_the_way_of_the_output_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "one"):
        with pytest.raises(ConfigError, match=rf"{folder} cannot be the output folder: a file of that name"):
            check_writable(folder)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (PermissionError(13, "Permission denied"), ConfigError, r"cannot be written by user id \d+"),
        (OSError(28, "No space left on device"), StorageError, "cannot be written: No space left on device"),
        (OSError(30, "Read-only file system"), StorageError, "cannot be written: Read-only file system"),
    ],
)
def test_unwritable_output_folder_is_an_error_of_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: type[Exception], message: str
) -> None:
    def refuse(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(expected, match=message):
        check_writable(tmp_path)


def test_devices_are_counted(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert count_local_devices({}, device_folder=tmp_path) == 2
    assert count_local_devices({"CUDA_VISIBLE_DEVICES": "0,2,3"}, device_folder=tmp_path) == 3
    assert count_local_devices({"CUDA_VISIBLE_DEVICES": ""}, device_folder=tmp_path) == 0
    assert count_local_devices({"CUDA_VISIBLE_DEVICES": "-1"}, device_folder=tmp_path) == 0
