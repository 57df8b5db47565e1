"""A batch without padding leaves its mask on the host: attention gets none, and every loss and gradient is the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megadeberta.batch import Batch, without_full_masks
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.model import attention
from megadeberta.model.attention_backend import select_attention, select_residual_norm
from megadeberta.model.carry import Carry
from megadeberta.model.dropout import set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from tests.models import full_batch, masked_batch, pack_two, read_left_to_right, tiny_rtd, tiny_v2, tiny_v3

CPU, LENGTH = torch.device("cpu"), 12
MODELS: dict[str, tuple[ModelConfig, ObjectiveConfig]] = {
    "mask decoder": (tiny_v3(dropout=0.1), ObjectiveConfig()),
    "convolution": (tiny_v2(dropout=0.1), ObjectiveConfig()),
    "replaced tokens": (tiny_v3(dropout=0.1), tiny_rtd("gdes")),
}


def _masks_given(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of attention from now on has a mask."""
    found: list[bool] = []
    attend = attention.disentangled_attention

    def spy(*content: Tensor, mask: Any, **options: Any) -> Tensor:
        found.append(mask is not None)
        return attend(*content, mask=mask, **options)

    monkeypatch.setattr(attention, "disentangled_attention", spy)
    return found


def _losses_and_gradients(model: WholeModel, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    terms, _ = model(**batch)
    torch.stack([terms[name][0] for name in terms if name.endswith("_loss")]).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {name: torch.stack([total.double(), count.double()]) for name, (total, count) in terms.items()}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", MODELS)
def test_without_its_mask_a_full_batch_gives_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, name: str, backend: str
) -> None:
    config, objective = MODELS[name]
    model = WholeModel(list_layers(config, objective)).train()
    initialize(model, seed=1, std=0.1)
    set_sites(model.named_modules(), seed=3)
    select_attention(model, backend, CPU)
    select_residual_norm(model, "auto", CPU, attention=backend)
    masks = _masks_given(monkeypatch)
    batch = full_batch(config, length=LENGTH)
    expected = _losses_and_gradients(model, batch)
    assert masks and all(masks)
    masks.clear()
    (bare,) = without_full_masks([batch])
    found = _losses_and_gradients(model, bare)
    assert masks and not any(masks)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_mask_is_left_out_only_where_nothing_is_hidden_in_any_batch_of_the_step() -> None:
    config = tiny_v3()
    full, padded = full_batch(config, length=LENGTH), masked_batch(config, length=LENGTH)
    assert [set(full) - set(batch) for batch in without_full_masks([full, full])] == [{"attention_mask"}] * 2
    small = {name: tensor[:2] for name, tensor in full.items()}
    for kept in ([full, padded], [full, small], [pack_two(full, 5)], [read_left_to_right(full, 0, LENGTH)], []):
        assert without_full_masks(kept) == kept
    assert "attention_mask" in full, "the batch is still counted on the host"


def test_a_rule_limits_attention_without_a_mask_too() -> None:
    batch = full_batch(tiny_v3(), length=LENGTH)
    (bare,) = without_full_masks([batch])
    found, expected = (Carry.of_batch(read_left_to_right(each, 0, LENGTH)).visibility for each in (bare, batch))
    assert found is not None and expected is not None
    assert torch.equal(found.dense(LENGTH), expected.dense(LENGTH))
