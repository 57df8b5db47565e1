"""A model family in one file: BERT, which our model without relative attention is, under other tensor names.

Nothing outside this file knows it: ``register_family`` is all that export, import, fill-mask and the check need.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from megadeberta.config.model import ModelConfig
from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.fill_mask import predict_masks
from megadeberta.convert.formats.families import FAMILIES, register_family
from megadeberta.convert.formats.family import Family, FileFormat, ModelKind
from megadeberta.convert.formats.names import LEGACY_MLM_HEAD
from megadeberta.convert.import_folder import import_folder
from megadeberta.errors import ConfigError
from megadeberta.weights.source import load_weights
from tests.unit.convert.small_models import padded_batch, small_config, small_model, weights_of, write_weights_folder

RENAMED = {f".self.{name}_proj.": f".self.{name}." for name in ("query", "key", "value")}


class Bert(Family):
    """transformers' ``bert``."""

    model_type = "bert"
    versions = "BERT"
    class_prefix = "Bert"
    prefixes = ("bert.", "")
    mlm_heads = (LEGACY_MLM_HEAD,)
    newly_drawn = ("pooler.",)

    def supports(self, config: ModelConfig) -> str | None:
        is_plain = not config.relative_attention and config.position_biased_input and config.type_vocab_size > 0
        return None if is_plain and not config.conv_kernel_size else "it is not a BERT"

    def written_mlm_head(self, config: ModelConfig, file_format: FileFormat) -> dict[str, str]:
        return LEGACY_MLM_HEAD

    def stored_name(self, name: str) -> str:
        return next((name.replace(v2, own) for v2, own in RENAMED.items() if v2 in name), name)

    def pack(self, backbone: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        return {self.stored_name(name): tensor for name, tensor in backbone.items()}

    def unpack(self, backbone: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        v2_names = {own: v2 for v2, own in RENAMED.items()}
        return {
            next((name.replace(own, v2) for own, v2 in v2_names.items() if own in name), name): tensor
            for name, tensor in backbone.items()
        }


NO_RELATIVE_TABLE = {"position_buckets": -1, "norm_rel_ebd": "none", "share_att_key": False, "pos_att_type": ""}
CONFIG = small_config(
    relative_attention=False,
    position_biased_input=True,
    enhanced_mask_decoder=False,
    type_vocab_size=2,
    **NO_RELATIVE_TABLE,
)
OF_OURS = ("enhanced_mask_decoder", "key_bias", "relative_attention", "position_biased_input", "pos_att_type")


@pytest.fixture
def bert() -> Iterator[Bert]:
    family = Bert()
    register_family(family)
    yield family
    FAMILIES.remove(family)


@pytest.fixture
def source(tmp_path: Path, spm: Path) -> Path:
    return write_weights_folder(tmp_path / "source", small_model(CONFIG), CONFIG, spm)


@pytest.mark.parametrize("kind", [ModelKind.MLM, ModelKind.BACKBONE])
def test_the_export_is_what_transformers_class_of_the_family_loads(
    kind: ModelKind, bert: Bert, source: Path, tmp_path: Path
) -> None:
    findings = export_checkpoint(source, tmp_path / "out", kind=kind)
    compared = ["BertModel states", "BertForMaskedLM logits"] if kind == ModelKind.MLM else ["BertModel states"]
    outputs = findings[2:-1]  # behind the folder and its weights, before the tokenizer
    assert [finding.what for finding in outputs] == compared
    assert all("equal to ours" in finding.detail for finding in outputs)
    names = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors").keys()
    prefix = "bert." if kind == ModelKind.MLM else ""
    assert f"{prefix}encoder.layer.0.attention.self.query.weight" in names
    assert "use_fast_attention" not in (tmp_path / "out" / "README.md").read_text()  # it takes DeBERTa alone
    assert not [name for name in names if "_proj." in name or name.startswith(("deberta.", "lm_predictions."))]


def test_its_class_computes_our_logits(bert: Bert, source: Path, tmp_path: Path) -> None:
    export_checkpoint(source, tmp_path / "out")
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert isinstance(theirs, BertForMaskedLM)
    ids, mask = padded_batch(CONFIG)
    with torch.no_grad():
        ours, logits = small_model(CONFIG).mlm_logits(ids, mask), theirs(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours[mask.bool()], logits[mask.bool()], rtol=0, atol=1e-5)


@pytest.mark.parametrize("file_format", FileFormat)
def test_import_gives_every_tensor_back(bert: Bert, file_format: FileFormat, source: Path, tmp_path: Path) -> None:
    export_checkpoint(source, tmp_path / "out", file_format=file_format)
    lines = import_folder(tmp_path / "out", tmp_path / "back")
    back, expected = load_weights(tmp_path / "back"), weights_of(small_model(CONFIG))
    assert back.config == CONFIG and back.weights.keys() == expected.keys()
    assert all(torch.equal(back.weights[name], expected[name]) for name in expected)
    assert "encoder.layer.0.attention.self.query.weight" in {line.theirs for line in lines}
    assert predict_masks(tmp_path / "out", "The [MASK] of the") == predict_masks(source, "The [MASK] of the")


def test_a_folder_of_its_own_program_is_read(bert: Bert, source: Path, tmp_path: Path) -> None:
    """No key of ours or of DeBERTa's in config.json, and a pooler."""
    export_checkpoint(source, tmp_path / "out")
    theirs = BertForMaskedLM.from_pretrained(tmp_path / "out")
    theirs.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in values.items() if key not in OF_OURS}))
    import_folder(tmp_path / "theirs", tmp_path / "back")
    back, expected = load_weights(tmp_path / "back"), weights_of(small_model(CONFIG))
    assert not back.config.relative_attention and back.config.position_biased_input
    assert all(torch.equal(back.weights[name], expected[name]) for name in expected)


def test_other_models_keep_their_family(bert: Bert, spm: Path, tmp_path: Path) -> None:
    config = small_config()
    write_weights_folder(tmp_path / "source", small_model(config), config, spm)
    export_checkpoint(tmp_path / "source", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "deberta-v2"


def test_a_model_type_has_one_family(bert: Bert) -> None:
    with pytest.raises(ConfigError, match="a family of model_type='bert' is registered already"):
        register_family(Bert())
