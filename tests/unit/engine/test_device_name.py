"""The name of what a rank computes on, which checkpoints and model cards keep."""

from pathlib import Path

import pytest
import torch

from megadeberta.engine.device_name import device_name


def test_a_gpu_has_torchs_name_and_processors_that_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = [line for line in lines if line.startswith("model name")]
    assert device_name() and "\n" not in device_name()
    assert not named or named[0].endswith(device_name())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert device_name() == "NVIDIA H100 80GB HBM3"
