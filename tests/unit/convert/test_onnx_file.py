"""model.onnx computes what torch does, for every shape; what it needs is checked before the export."""

from pathlib import Path

import pytest

from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.family import FileFormat, ModelKind
from megadeberta.errors import ConfigError
from tests.unit.convert.small_models import small_config, small_model, write_weights_folder


@pytest.fixture
def source(tmp_path: Path, spm: Path) -> Path:
    config = small_config(num_hidden_layers=2)
    return write_weights_folder(tmp_path / "source", small_model(config), config, spm)


def test_the_mask_decoder_goes_out_as_onnx(source: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    findings = export_checkpoint(source, tmp_path / "out", onnx=True)
    assert findings[-1].what == "model.onnx" and findings[-1].detail.startswith("logits of onnxruntime equal")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert all(isinstance(size, str) for value in session.get_inputs() for size in value.shape), "any batch and length"
    assert "input_ids, attention_mask (int64) to logits" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.campaign
@pytest.mark.parametrize("kind", [ModelKind.MLM, ModelKind.BACKBONE])
@pytest.mark.parametrize(
    "changes",
    [
        {"enhanced_mask_decoder": False, "conv_kernel_size": 3, "share_att_key": False},
        {"enhanced_mask_decoder": False, "position_biased_input": True, "type_vocab_size": 2},
        {"key_bias": False, "share_att_key": False, "position_buckets": -1, "norm_rel_ebd": "none"},
    ],
)
def test_other_models_go_out_as_onnx(changes: dict, kind: ModelKind, tmp_path: Path, spm: Path) -> None:
    pytest.importorskip("onnxscript")
    config = small_config(**changes)
    source = write_weights_folder(tmp_path / "source", small_model(config), config, spm)
    assert export_checkpoint(source, tmp_path / "out", kind=kind, onnx=True)[-1].what == "model.onnx"


def test_what_onnx_needs_is_said_before_the_export(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"--onnx is of a model of transformers; export with --format hf"):
        export_checkpoint(source, tmp_path / "out", file_format=FileFormat.MICROSOFT, onnx=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--onnx needs the package onnx, .*pip install 'megadeberta\[onnx\]'"):
        export_checkpoint(source, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()
