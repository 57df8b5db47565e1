"""Imports compute what Microsoft's own package computes; skipped where it is missing.

``pip install --no-deps deberta==0.1.12``: its other dependencies are not needed for the model.
"""

import collections
import collections.abc
import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from megadeberta.convert.formats.read_folder import read_hf_folder
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.whole import WholeModel

pytestmark = pytest.mark.skipif(find_spec("DeBERTa") is None, reason="deberta==0.1.12 is not installed")

NUM_CONFIGURATIONS = 200
# fp32 through one layer with values of order one, two orders of the same sums.
WITHIN = 2e-5
SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
FIXED = {"max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FIXED |= {"hidden_act": "gelu", "layer_norm_eps": 1e-7, "initializer_range": 0.02, "padding_idx": 0}
CHOICES: dict[str, tuple[Any, ...]] = {
    "pos_att_type": ("c2p|p2c", "p2c|c2p", "c2p", "p2c", "none", "None", "", " C2P | p2c ", "none|c2p", "c2p|c2p"),
    "relative_attention": (True, False, False),
    "position_biased_input": (True, False),
    "type_vocab_size": (0, 2),
    "max_relative_positions": (-1, 12),
    "share_att_key": (True, False),
    "norm_rel_ebd": ("none", "layer_norm", " Layer_Norm"),
    "position_buckets": (-1, 5, 6),
}


def _microsofts(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Its encoder with random weights. The package asks for names that later Python and NumPy took away."""
    monkeypatch.setattr(collections, "Sequence", collections.abc.Sequence, raising=False)
    monkeypatch.setattr(np, "int", int, raising=False)
    from DeBERTa.deberta.config import ModelConfig
    from DeBERTa.deberta.deberta import DeBERTa

    model = DeBERTa(config=ModelConfig.from_dict(values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


def test_random_configurations_import_with_the_outputs_of_microsofts_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(12)
    torch.manual_seed(12)
    seen, worst = set(), 0.0
    for _ in range(NUM_CONFIGURATIONS):
        values = SIZES | FIXED
        values |= {name: draw.choice(options) for name, options in CHOICES.items() if draw.random() < 0.8}
        model = _microsofts(values, monkeypatch)
        found = _difference(tmp_path, values, model)
        assert found < WITHIN, values
        worst = max(worst, found)
        seen.add((values.get("relative_attention"), values.get("pos_att_type"), values.get("share_att_key")))
    assert len(seen) > 40 and worst > 0


def _difference(folder: Path, values: dict[str, Any], model: nn.Module) -> float:
    """Largest difference of the last hidden states over real tokens."""
    (folder / "model_config.json").write_text(json.dumps(values))
    tensors = {f"deberta.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    imported = read_hf_folder(folder, mask_decoder=False)
    assert all(name.startswith("mlm_head.") for name in imported.missing)
    ours = WholeModel(token_model_layers(imported.config)).eval()
    ours.load_state_dict(imported.weights, strict=False)
    ids = torch.randint(1, 20, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad():
        found, expected = ours.encode(ids, mask), model(ids, attention_mask=mask)[-1]
    return float((found - expected)[mask.bool()].abs().max())
