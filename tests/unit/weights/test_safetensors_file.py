"""Numbers that are not finite are found in the bytes of a file, as torch would find them, and without it."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from megadeberta.errors import CheckpointError
from megadeberta.weights import safetensors_file
from megadeberta.weights.hub import check_start
from megadeberta.weights.safetensors_file import check_finite_at, check_finite_file

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = {dtype: [torch.finfo(dtype).max, -torch.finfo(dtype).max, torch.finfo(dtype).tiny, -0.0] for dtype in TYPES}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found_anywhere(
    dtype: torch.dtype, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_file, "_BLOCK", 4)  # several blocks, the last one not full
    sound = torch.tensor(LARGEST[dtype] * 2 + [1.0, 2.0], dtype=dtype)
    others = {"whole": torch.tensor([[7]]), "none": torch.empty(0, dtype=dtype), "one": torch.tensor(1.0, dtype=dtype)}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": sound} | others, path, metadata={"format": "pt"})
    check_finite_file(path)
    for place in range(len(sound)):
        bad = sound.clone()
        bad[place] = value
        safetensors.torch.save_file({"a": sound, "b": bad.reshape(2, 5)} | others, path)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: 1 of 5 tensors hold NaN or infinity, first b;"):
            check_finite_file(path)


def test_damaged_files_are_named_and_others_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for content in (b"", b"\xff" * 20, b"\2" + bytes(7) + b"{}  "):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read .*the file is damaged"):
            check_finite_at(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle")
    check_finite_at(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("names_file", [False, True])
def test_a_start_from_such_weights_is_refused(names_file: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.tensor([1.0, float("nan")])}, path)
    place = path if names_file else tmp_path
    with pytest.raises(CheckpointError, match="first a"):
        check_start(place)
