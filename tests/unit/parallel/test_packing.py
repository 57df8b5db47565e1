"""What passes over a cut, and back out of the tuple."""

import pytest
import torch

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.layer import Layer
from megadeberta.layers.objectives import list_layers
from megadeberta.model.carry import Carry
from megadeberta.parallel.pipeline.packing import Border, border_between, pack, unpack

FIELDS = ("input_ids", "attention_mask", "masked_positions", "masked_labels", "sample_numbers")


MLM, RTD = (list_layers(ModelConfig(), ObjectiveConfig(name=name)) for name in ("mlm", "rtd"))


def _border(layers: list[Layer], last: str) -> Border:
    """The border behind the layer of this name."""
    place = [layer.name for layer in layers].index(last) + 1
    return border_between(layers[:place], layers[place:], FIELDS)


@pytest.mark.parametrize(
    ("layers", "last", "border"),
    [
        (MLM, "layer.0", Border(("hidden",), (), FIELDS)),
        (MLM, "mask_decoder", Border(("masked_hidden",), (), FIELDS)),
        (
            RTD,
            "generator.sample",
            Border(
                (),
                ("mlm_loss", "mlm_accuracy", "masked_rate", "sampled_rate", "replaced_rate"),
                ("input_ids", "attention_mask", "sample_numbers", "replaced"),
            ),
        ),
    ],
)
def test_a_border_holds_what_later_layers_read(layers: list[Layer], last: str, border: Border) -> None:
    assert _border(layers, last) == border


def test_a_carry_comes_back_out_of_the_tuple_as_it_went_in() -> None:
    border = _border(RTD, "discriminator.embeddings")
    numbers = (3 << 32) + torch.arange(2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    carry = Carry(
        input_ids=torch.tensor([[5, 6, 7], [8, 0, 0]]),
        attention_mask=mask,
        hidden=torch.randn(2, 3, 4),
        replaced=mask.flip(1) & mask,
        terms={
            "mlm_loss": (torch.tensor(1.5, requires_grad=True), torch.tensor(7)),
            "mlm_accuracy": (torch.tensor(2), torch.tensor(7)),
            "masked_rate": (torch.tensor(1 / 3, dtype=torch.float64), torch.tensor(4)),
            "sampled_rate": (torch.tensor(2**40 + 1), torch.tensor(4)),
            "replaced_rate": (torch.tensor(0), torch.tensor(0)),
        },
    )
    tensors = pack(carry, numbers, border)
    assert [t.dtype for t in tensors if t.requires_grad or t.is_floating_point()] == [torch.float32, torch.float32]
    assert all(t.dtype == torch.int64 for t in tensors[2:])
    found, found_numbers = unpack(tensors, border)
    assert torch.equal(found_numbers, numbers) and torch.equal(found.draws.places, torch.arange(2))
    for name in ("input_ids", "attention_mask", "replaced", "hidden"):
        assert torch.equal(getattr(found, name), getattr(carry, name)) and found.masked_labels is None
    assert list(found.terms) == list(carry.terms)
    for name, (total, count) in carry.terms.items():
        assert found.terms[name][0].item() == total.item() and found.terms[name][1].item() == count.item()
    assert found.terms["mlm_loss"][0].requires_grad


def test_a_batch_makes_a_carry_with_a_boolean_mask() -> None:
    batch = {"input_ids": torch.tensor([[5, 0]]), "attention_mask": torch.tensor([[1, 0]])}
    carry = Carry.of_batch(batch | {"sample_numbers": torch.tensor([4])})
    assert carry.attention_mask.dtype == torch.bool and carry.terms == {}
