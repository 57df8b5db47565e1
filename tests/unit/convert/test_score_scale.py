"""Imports compute what the code that wrote the folder computes, whatever its ``pos_att_type`` names.

transformers is the other side of every comparison. It computes what microsoft/DeBERTa does, but for defaults, so a
folder of Microsoft's is compared with a configuration that spells the default out.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import DebertaConfig, DebertaForMaskedLM, DebertaV2Config, DebertaV2ForMaskedLM

from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.family import FileFormat
from megadeberta.convert.formats.read_folder import read_hf_folder
from megadeberta.convert.import_folder import import_folder
from megadeberta.errors import CheckpointError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.whole import WholeModel
from megadeberta.weights.source import load_weights
from tests.models import INPUT_POSITIONS
from tests.unit.convert.small_models import NO_MASK_DECODER, small_config, small_model, write_weights_folder

NAMES: tuple[Any, ...] = (
    *("c2p|p2c", "p2c|c2p", "c2p", "p2c", "none", "None", "", " C2P | p2c ", "none|c2p", "c2p|c2p", None),
    *([], ["none"], ["c2p"], ["p2c", "c2p"], ["none", "p2c"], [" p2c"]),
)
NUM_CONFIGURATIONS = 200
# fp32 through one layer with values of order one, two orders of the same sums.
WITHIN = {"rtol": 0, "atol": 2e-5}
SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def random_values(draw: random.Random) -> dict[str, Any]:
    """A config.json of any kind; keys are left out as well as set."""
    values: dict[str, Any] = SIZES | {"max_position_embeddings": 16}
    choices: dict[str, tuple[Any, ...]] = {
        "pos_att_type": NAMES,
        "relative_attention": (True, False, False),
        "position_biased_input": (True, False),
        "type_vocab_size": (0, 2),
        "max_relative_positions": (-1, 12),
    }
    is_v1 = draw.random() < 0.3
    if not is_v1:
        choices |= {
            "share_att_key": (True, False),
            "norm_rel_ebd": ("none", "layer_norm", " Layer_Norm"),
            "position_buckets": (-1, 5, 6),
        }
    values |= {name: draw.choice(options) for name, options in choices.items() if draw.random() < 0.8}
    if draw.random() < 0.3:  # as Microsoft writes it
        if not isinstance(values.get("pos_att_type", ""), str):
            del values["pos_att_type"]
        return values
    return values | {"model_type": "deberta" if is_v1 else "deberta-v2"}


def model_of(values: dict[str, Any]) -> nn.Module:
    """transformers' model for such a configuration."""
    values = dict(values)
    model_type = values.pop("model_type", None)
    if model_type is None:
        values.setdefault("pos_att_type", "c2p")
    is_v1 = model_type == "deberta"
    config = (DebertaConfig if is_v1 else DebertaV2Config)(legacy=False, **values)
    model = (DebertaForMaskedLM if is_v1 else DebertaV2ForMaskedLM)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


def write(folder: Path, values: dict[str, Any], model: nn.Module) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


def difference(folder: Path, model: nn.Module) -> float:
    """Largest difference of logits over real tokens, at a length that all distances are told apart in."""
    imported = read_hf_folder(folder)
    assert not imported.missing
    ours = WholeModel(token_model_layers(imported.config)).eval()
    ours.load_state_dict(imported.weights, strict=False)
    ids = torch.randint(1, 20, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad():
        found, expected = ours.mlm_logits(ids, mask), model(input_ids=ids, attention_mask=mask).logits
    return float((found - expected)[mask.bool()].abs().max())


def test_random_configurations_import_with_the_outputs_of_transformers(tmp_path: Path) -> None:
    draw = random.Random(14)
    torch.manual_seed(14)
    seen, worst = set(), 0.0
    for _ in range(NUM_CONFIGURATIONS):
        values = random_values(draw)
        model = model_of(values)
        found = difference(write(tmp_path / "hf", values, model), model)
        assert found < WITHIN["atol"], values
        worst = max(worst, found)
        seen.add((values.get("model_type"), values.get("relative_attention"), str(values.get("pos_att_type"))))
    assert len(seen) > 60 and worst > 0


@pytest.mark.parametrize("names", NAMES, ids=repr)
def test_every_spelling_of_the_terms_is_read(names: Any, tmp_path: Path) -> None:
    """``["none"]``, as transformers saves "none", and names with blanks and capitals among them."""
    torch.manual_seed(5)
    values = SIZES | {"model_type": "deberta-v2", "relative_attention": True, "max_position_embeddings": 16}
    values |= {"pos_att_type": names}
    model = model_of(values)
    assert difference(write(tmp_path / "hf", values, model), model) < WITHIN["atol"]


@pytest.mark.parametrize("relative", [False, None])
@pytest.mark.parametrize("model_type", ["deberta", "deberta-v2", None])
def test_terms_without_relative_attention_go_into_the_query_projection_and_the_report(
    model_type: str | None, relative: bool | None, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    values = SIZES | {"pos_att_type": "c2p|p2c", "max_position_embeddings": 16}
    values |= {"model_type": model_type} if model_type else {}
    values |= {} if relative is None else {"relative_attention": relative}
    model = model_of(values)
    folder = write(tmp_path / "hf", values, model)
    assert difference(folder, model) < WITHIN["atol"]
    lines = {line.ours: line.reason for line in read_hf_folder(folder).lines}
    scaled = {name for name, reason in lines.items() if "times 0.577350" in reason}
    assert scaled == {f"layer.0.self_attention.attention.query_proj.{kind}" for kind in ("weight", "bias")}


def test_microsofts_default_is_one_term(tmp_path: Path) -> None:
    torch.manual_seed(3)
    values = SIZES | {"relative_attention": True, "max_position_embeddings": 16, "position_biased_input": False}
    model = model_of(values)
    folder = write(tmp_path / "hf", values, model)
    assert read_hf_folder(folder).config.pos_att_type == ("c2p",)
    assert difference(folder, model) < WITHIN["atol"]
    other = values | {"model_type": "deberta-v2"}
    model = model_of(other)
    assert read_hf_folder(write(tmp_path / "other", other, model)).config.pos_att_type == ()
    assert difference(tmp_path / "other", model) < WITHIN["atol"]


def test_a_model_of_microsofts_bert_base_comes_in_without_the_norm_of_no_table(tmp_path: Path) -> None:
    """``experiments/language_model/bert_base.json``: no relative attention, yet a LayerNorm for its table."""
    torch.manual_seed(4)
    values = SIZES | {"relative_attention": False, "position_buckets": 6, "norm_rel_ebd": "layer_norm"}
    values |= {"share_att_key": True, "pos_att_type": "none", "position_biased_input": True}
    values |= {"max_relative_positions": -1, "max_position_embeddings": 16, "attention_head_size": 4}
    model = model_of(values)
    folder = write(tmp_path / "hf", values, model)
    assert difference(folder, model) < WITHIN["atol"]
    lines = import_folder(folder, tmp_path / "out")
    dropped = {line.theirs: line.reason for line in lines if line.action == "dropped"}
    assert dropped.keys() == {"encoder.LayerNorm.weight", "encoder.LayerNorm.bias"}
    assert "relative_attention is false" in dropped["encoder.LayerNorm.bias"]
    assert load_weights(tmp_path / "out").config.relative_attention is False


@pytest.mark.parametrize("names", ["c2p|p2p", ["p3c"], "both", 3, [1], {"c2p": True}])
def test_names_of_no_term_are_refused(names: object, tmp_path: Path) -> None:
    values = SIZES | {"model_type": "deberta-v2", "relative_attention": True, "max_position_embeddings": 16}
    folder = write(tmp_path / "hf", values | {"pos_att_type": names}, model_of(values))
    with pytest.raises(CheckpointError, match=r"pos_att_type (names '(p2p|p3c|both)', not c2p or p2c|is )"):
        read_hf_folder(folder)


def test_a_model_without_terms_says_so_to_microsoft(tmp_path: Path, spm: Path) -> None:
    config = small_config(relative_attention=False, position_biased_input=True, enhanced_mask_decoder=False)
    source = write_weights_folder(tmp_path / "source", small_model(config), config, spm)
    export_checkpoint(source, tmp_path / "out", file_format=FileFormat.MICROSOFT)
    values = json.loads((tmp_path / "out" / "model_config.json").read_text())
    assert values["pos_att_type"] == "none"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pos_att_type"] is None


@pytest.mark.parametrize(("changes", "warns"), [({}, False), (NO_MASK_DECODER, True), (INPUT_POSITIONS, False)])
def test_microsofts_own_mask_decoder_is_warned_of_where_the_model_has_none(
    changes: dict[str, Any], warns: bool, tmp_path: Path, spm: Path
) -> None:
    config = small_config(**changes)
    source = write_weights_folder(tmp_path / "source", small_model(config), config, spm)
    for file_format in FileFormat:
        findings = export_checkpoint(source, tmp_path / file_format, file_format=file_format)
        said = [finding.detail for finding in findings if finding.what == "BEWARE"]
        card = (tmp_path / file_format / "README.md").read_text()
        is_here = warns and file_format == FileFormat.MICROSOFT
        assert bool(said) is is_here and ("drawn at random" in card) is is_here
