"""Imported weights as initial values: whole parameters, and shards that read their part only."""

from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from megadeberta.layers.cuts import shard_slice
from megadeberta.weights.initial import initial_values
from megadeberta.weights.safetensors_file import SAFETENSORS

ROW_CUT, COLUMN_CUT, WHOLE = "feed_forward.down.weight", "feed_forward.up.bias", "layer_norm.weight"


def test_a_shard_gets_its_slice_and_a_whole_parameter_everything(tmp_path: Path) -> None:
    values = {ROW_CUT: torch.randn(6, 8), COLUMN_CUT: torch.randn(8), WHOLE: torch.randn(6)}
    safetensors.torch.save_file(values, tmp_path / SAFETENSORS)
    model = nn.Module()
    model.feed_forward = nn.ModuleDict({"down": nn.Module(), "up": nn.Module()})
    model.layer_norm = nn.Module()
    for name, tensor in values.items():
        part = shard_slice(name, tensor.shape, tensor=4, rank=2)
        parameter = nn.Parameter(torch.zeros(tensor.shape if part is None else part.local_shape))
        parameter.shard = part
        owner, _, attribute = name.rpartition(".")
        model.get_submodule(owner).register_parameter(attribute, parameter)
    fill = initial_values({name: tensor.shape for name, tensor in values.items()}, tmp_path)
    for name, parameter in model.named_parameters():
        fill(name, parameter)
    assert torch.equal(model.get_parameter(ROW_CUT), values[ROW_CUT][:, 4:6])
    assert torch.equal(model.get_parameter(COLUMN_CUT), values[COLUMN_CUT][4:6])
    assert torch.equal(model.get_parameter(WHOLE), values[WHOLE])
