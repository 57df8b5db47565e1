"""Files are hashed as written, and loading runs no code that a file asks for."""

import builtins
import collections
import errno
import hashlib
import io
import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from megadeberta.checkpoint.durable import hash_file
from megadeberta.engine.checkpoint_engine import HashingCheckpointEngine
from megadeberta.errors import CheckpointError


def _state() -> dict[str, Any]:
    torch.manual_seed(5)
    return {
        "module": collections.OrderedDict(weight=torch.randn(300, 70), half=torch.randn(5).bfloat16()),
        "shape": torch.Size([3, 4]),
        "scaler": LossScaler(1),
        "dynamic": DynamicLossScaler(2**8, 2.0, 1000, 1, 2, False),
        "slice": fragment_address(numel=3, start=7),
        "stage": ZeroStageEnum.gradients,
        "nested": [1, 2.5, None, True, {"text": "größe"}],
    }


def test_a_file_is_hashed_while_it_is_written_and_loads_back(tmp_path: Path) -> None:
    engine = HashingCheckpointEngine()
    path = tmp_path / "states.pt"
    engine.save(_state(), str(path))
    digests = engine.take_digests()
    assert digests == {"states.pt": hash_file(path)}
    assert digests["states.pt"].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert engine.take_digests() == {}
    loaded, state = engine.load(str(path), map_location="cpu"), _state()
    assert torch.equal(loaded["module"]["weight"], state["module"]["weight"])
    assert vars(loaded["dynamic"]) == vars(state["dynamic"])
    assert loaded["slice"] == state["slice"]
    assert loaded["stage"] is ZeroStageEnum.gradients
    assert loaded["nested"] == state["nested"]


@pytest.mark.parametrize("fail_at", [0, 1, 5])
def test_a_full_disk_is_reported_after_the_save_and_not_from_within(
    tmp_path: Path, fail_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = os.write, iter(range(10_000))

    def write(fd: int, data: bytes) -> int:
        if next(count) >= fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    engine = HashingCheckpointEngine()
    monkeypatch.setattr(os, "write", write)
    engine.save(_state(), str(tmp_path / "first.pt"))
    engine.save(_state(), str(tmp_path / "second.pt"))  # DeepSpeed goes on to its other files
    monkeypatch.undo()
    with pytest.raises(OSError, match=r"No space left on device: .*first\.pt"):
        engine.take_digests()
    assert not (tmp_path / "second.pt").exists()
    engine.save(_state(), str(tmp_path / "third.pt"))
    assert list(engine.take_digests()) == ["third.pt"]


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "states.pt").write_text("keep me")
    engine = HashingCheckpointEngine()
    engine.save({}, str(tmp_path / "states.pt"))
    with pytest.raises(FileExistsError):
        engine.take_digests()
    assert (tmp_path / "states.pt").read_text() == "keep me"


class _Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def _payloads(marker: Path) -> dict[str, Any]:
    """Objects whose unpickling by Python's own loader would run something that touches ``marker``."""
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": _Call(os.system, command),
        "exec": _Call(builtins.exec, code),
        "eval": _Call(builtins.eval, code),
        "io.open": _Call(io.open, str(marker), "w"),
        "subprocess.Popen": _Call(subprocess.Popen, ["touch", str(marker)]),
        "shutil.rmtree": _Call(shutil.rmtree, str(marker.parent)),
        "pickle.loads": _Call(pickle.loads, pickle.dumps(_Call(os.system, command))),
        "torch.load": _Call(torch.load, str(marker)),
        "builtins.__import__": _Call(builtins.__import__, "antigravity"),
        "os.rename": _Call(os.rename, str(marker), str(marker)),
    }


@pytest.mark.parametrize("name", list(_payloads(Path("x"))))
@pytest.mark.parametrize("place", ["alone", "in the state", "bare pickle", "protocol 4", "old torch format"])
def test_a_pickle_payload_is_refused_and_not_executed(tmp_path: Path, name: str, place: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "mp_rank_00_model_states.pt"
    payload = _payloads(marker)[name]
    state = payload if place == "alone" else {**_state(), "extra": [payload]}
    if place == "bare pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        options: dict[str, Any] = {"pickle_protocol": 4} if place == "protocol 4" else {}
        torch.save(state, path, _use_new_zipfile_serialization=place != "old torch format", **options)
    with pytest.raises(CheckpointError, match=r"mp_rank_00_model_states\.pt: (asks for|cannot be read)"):
        HashingCheckpointEngine().load(str(path))
    assert not marker.exists()


def test_the_refusal_names_what_the_file_asked_for(tmp_path: Path) -> None:
    torch.save({"a": _Call(os.system, "true")}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"bad\.pt: asks for posix\.system; refused, because loading it"):
        HashingCheckpointEngine().load(str(tmp_path / "bad.pt"))


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "zip of something else", "missing"])
def test_a_file_that_holds_no_tensors_is_a_clear_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "states.pt"
    if kind == "text":
        path.write_text("hello")
    elif kind == "truncated":
        torch.save(_state(), path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "zip of something else":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme", "hello")
    elif kind == "empty":
        path.touch()
    with pytest.raises(CheckpointError, match=r"states\.pt: cannot be read as tensors \(\w+: .*\); use an older"):
        HashingCheckpointEngine().load(str(path))
