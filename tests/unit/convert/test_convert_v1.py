"""v1: one packed projection per layer in the file, three projections without key bias in the model."""

import pytest
import torch

from megadeberta.convert.formats.deberta_v1 import DebertaV1, pack_projections, unpack_projections
from megadeberta.convert.formats.export_tensors import export_tensors
from megadeberta.convert.formats.families import choose_target
from megadeberta.convert.formats.family import ModelKind
from megadeberta.convert.formats.names import backbone_names
from megadeberta.convert.formats.split_tensors import split_tensors, take_backbone
from megadeberta.layers.catalogue import backbone_layers
from megadeberta.model.whole import WholeModel
from tests.unit.convert.small_models import V1, small_config, small_model, weights_of
from tests.unit.model.golden import IDS, MASK, fill, golden_config

# The golden values are printed with six decimals; the class they come from computes its scale in fp32.
TOLERANCE = {"abs": 5e-6, "rel": 0}


def test_packed_rows_are_query_key_value_of_head_after_head() -> None:
    heads, size, width = 3, 2, 6
    query, key, value = (torch.arange(width * width).view(width, width) + 100 * k for k in range(3))
    packed = pack_projections(query, key, value, num_heads=heads)
    rows = []
    for head in range(heads):
        for projection in (query, key, value):
            rows += [projection[head * size + row] for row in range(size)]
    assert torch.equal(packed, torch.stack(rows))
    for back, original in zip(unpack_projections(packed, num_heads=heads), (query, key, value), strict=True):
        assert torch.equal(back, original)


def test_v1_files_have_no_key_bias_and_their_own_position_projections() -> None:
    config = small_config(**V1)
    target = choose_target(config, ModelKind.BACKBONE)
    assert isinstance(target.family, DebertaV1)
    names = export_tensors(config, weights_of(small_model(config)), target)
    own = {name.partition(".self.")[2] for name in names if ".layer.1.attention.self." in name}
    packed = {"in_proj.weight", "q_bias", "v_bias"}
    assert own == packed | {"pos_proj.weight", "pos_q_proj.weight", "pos_q_proj.bias"}


def _filled_v1_model() -> tuple[WholeModel, int]:
    """A float64 v1 encoder whose weights are filled by rule under their names and in the packing of v1 files."""
    config = golden_config(**V1)
    model = WholeModel(backbone_layers(config)).double().eval()
    ours = {backbone_names(config)[name]: parameter for name, parameter in model.named_parameters()}
    family = DebertaV1()
    packed = family.pack({name: parameter.detach() for name, parameter in ours.items()}, config)
    for number, name in enumerate(sorted(packed)):
        packed[name] = packed[name].clone()
        fill(packed[name], name, number)
    taken, dropped = take_backbone(config, split_tensors(packed, family, config), family)
    assert not dropped
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(taken[name])
    return model, len(packed)


def test_v1_backbone_gives_the_golden_values_from_its_packed_file() -> None:
    model, num_keys = _filled_v1_model()
    assert num_keys == 36
    values = model.encode(IDS, MASK)[MASK.bool()].flatten()
    assert values.sum().item() == pytest.approx(4.295547, **TOLERANCE)
    assert values.abs().sum().item() == pytest.approx(69.151550, **TOLERANCE)
    assert values[:4].tolist() == pytest.approx([1.193046, -0.598026, -0.137099, 1.440601], **TOLERANCE)
    assert values[-4:].tolist() == pytest.approx([1.384681, -0.312139, -1.654285, -0.604629], **TOLERANCE)


def test_v1_weights_in_the_v2_layout_with_zero_key_biases_compute_the_same() -> None:
    model, _ = _filled_v1_model()
    config = golden_config(**V1 | {"key_bias": True})
    v2 = WholeModel(backbone_layers(config)).double().eval()
    missing, unexpected = v2.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all(name.endswith("key_proj.bias") for name in missing) and len(missing) == 4
    with torch.no_grad():
        for name in missing:
            v2.get_parameter(name).zero_()
    torch.testing.assert_close(v2.encode(IDS, MASK), model.encode(IDS, MASK), rtol=0, atol=1e-12)
