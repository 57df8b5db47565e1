"""The carry as a tuple of tensors, which is all that DeepSpeed moves between two stages.

What the tuple holds is known on both sides from the names of the layers before the cut, so nothing describes it on the
way. Every floating tensor in it must get a gradient (``runtime/pipe/engine.py`` ``_exec_send_grads``); everything else
travels as int64, sums that have no gradient as the bits of a float64.

Shapes: B micro batch · L length · Q target rows a sample · D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megadeberta.model.carry import Carry, Term
from megadeberta.model.dropout import Draws

SAMPLE_NUMBERS = "sample_numbers"
_BOOLEANS = ("attention_mask", "replaced")
_ACTIVATIONS = {"mask_decoder": "masked_hidden", "sample": None}
"""The field that the layers after this one read; ``hidden`` after any other."""
_OF_TARGETS = ("masked_positions", "masked_labels")


@dataclass(frozen=True)
class Border:
    """What passes over one cut, in this order: activations, loss sums, integer fields, counts and metrics."""

    activations: str | None
    terms: tuple[str, ...]
    fields: tuple[str, ...]

    @property
    def losses(self) -> tuple[str, ...]:
        """Terms whose sum has a gradient."""
        return tuple(name for name in self.terms if name.endswith("_loss"))


def border_after(layers: Sequence[str], batch_fields: Sequence[str]) -> Border:
    """The border behind these layers, given what a batch holds.

    Args:
        layers: names of all layers before the cut, from the first stage on.
        batch_fields: names of a batch's tensors.
    """
    kinds = [name.rpartition(".")[2] for name in layers]
    sampled = "sample" in kinds
    present = [name for name in batch_fields if not (sampled and name in _OF_TARGETS)]
    return Border(
        activations=_ACTIVATIONS.get(kinds[-1], "hidden"),
        terms=term_names(layers, batch_fields),
        fields=(*present, "replaced") if sampled else tuple(present),
    )


def term_names(layers: Sequence[str], batch_fields: Sequence[str]) -> tuple[str, ...]:
    """The terms that these layers make, in order."""
    predicted = ("mlm", "ar") if "prefix_lengths" in batch_fields else ("mlm",)
    made = {
        "mlm_head": tuple(f"{name}_{kind}" for name in predicted for kind in ("loss", "accuracy")),
        "sample": ("masked_rate", "sampled_rate", "replaced_rate"),
        "rtd_head": ("rtd_loss", "rtd_accuracy", "rtd_precision", "rtd_recall"),
    }
    return tuple(term for name in layers for term in made.get(name.rpartition(".")[2], ()))


def pack(carry: Carry, sample_numbers: Tensor, border: Border) -> tuple[Tensor, ...]:
    """What the next stage needs of the carry."""
    tensors = [] if border.activations is None else [getattr(carry, border.activations)]
    if border.losses:
        tensors.append(torch.stack([carry.terms[name][0] for name in border.losses]))
    values = {SAMPLE_NUMBERS: sample_numbers}
    tensors += [values.get(name, getattr(carry, name, None)).long() for name in border.fields]
    if border.terms:
        tensors.append(_pack_numbers(carry.terms, border))
    return tuple(tensor.contiguous() for tensor in tensors)


def unpack(tensors: Sequence[Tensor], border: Border) -> tuple[Carry, Tensor]:
    """The carry, and the sample numbers ``[B]``; the inverse of ``pack``."""
    rest = list(tensors)
    values: dict[str, Tensor] = {}
    if border.activations is not None:
        values[border.activations] = rest.pop(0)
    loss_sums = rest.pop(0).unbind() if border.losses else ()
    values |= {name: rest.pop(0) for name in border.fields}
    numbers = rest.pop(0) if border.terms else None
    terms = {} if numbers is None else _unpack_numbers(numbers, loss_sums, border)
    assert not rest, f"{len(rest)} tensors too many for {border}"
    return carry_of(values, terms)


def carry_of(values: Mapping[str, Tensor], terms: Mapping[str, Term] | None = None) -> tuple[Carry, Tensor]:
    """A carry of these fields, which may be a batch, and its sample numbers ``[B]``."""
    named = {name: tensor.bool() if name in _BOOLEANS else tensor for name, tensor in values.items()}
    sample_numbers = named.pop(SAMPLE_NUMBERS)
    draws = Draws.of(sample_numbers, named["input_ids"].size(1))
    return Carry(draws=draws, terms=terms or {}, **named), sample_numbers


def _pack_numbers(terms: Mapping[str, Term], border: Border) -> Tensor:
    """int64: for each term its count, and for those without a gradient the bits of the sum."""
    numbers = []
    for name in border.terms:
        total, count = terms[name]
        numbers.append(count.long())
        if name not in border.losses:
            numbers.append(total.detach().double().view(torch.int64))
    return torch.stack(numbers)


def _unpack_numbers(numbers: Tensor, loss_sums: Sequence[Tensor], border: Border) -> dict[str, Term]:
    rest, sums = iter(numbers.unbind()), iter(loss_sums)
    terms = {}
    for name in border.terms:
        count = next(rest)
        terms[name] = (next(sums) if name in border.losses else next(rest).view(torch.float64), count)
    return terms
