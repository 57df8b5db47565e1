"""The carry as a tuple of tensors, which is all that DeepSpeed moves between two stages.

What the tuple holds is known on both sides from the layers before the cut, so nothing describes it on the way; where it
is one short, the batch has no padding and its mask stayed behind. Every
floating tensor in it must get a gradient (``runtime/pipe/engine.py`` ``_exec_send_grads``); everything else travels as
int64, sums that have no gradient as the bits of a float64.

Shapes: B micro batch · L length · Q target rows per sequence · D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megadeberta.batch import ATTENTION_MASK, SAMPLE_NUMBERS, fields_given
from megadeberta.layers.layer import Layer
from megadeberta.layers.terms import term
from megadeberta.model.carry import Carry, Term


@dataclass(frozen=True)
class Border:
    """What passes over one cut, in this order: activations, loss sums, integer fields, counts and metrics."""

    activations: tuple[str, ...]
    terms: tuple[str, ...]
    fields: tuple[str, ...]

    @property
    def losses(self) -> tuple[str, ...]:
        """Terms whose sum has a gradient."""
        return tuple(name for name in self.terms if term(name).is_loss)


def border_between(before: Sequence[Layer], after: Sequence[Layer], batch_fields: Sequence[str]) -> Border:
    """The border between two slices of the list of layers.

    Args:
        before: all layers before the cut, from the first stage on.
        after: all layers behind it.
        batch_fields: names of a batch's tensors.
    """
    fields = list(batch_fields)
    for layer in before:
        fields = [name for name in fields if name not in layer.drops] + list(layer.adds)
    return Border(activations=_read_first(after), terms=term_names(before), fields=tuple(fields))


def _read_first(layers: Sequence[Layer]) -> tuple[str, ...]:
    """The activations that these layers read before one of them makes them."""
    read: dict[str, None] = {}
    written: set[str] = set()
    for layer in layers:
        read |= dict.fromkeys(name for name in layer.reads if name not in written)
        written.update(layer.writes)
    return tuple(read)


def term_names(layers: Sequence[Layer]) -> tuple[str, ...]:
    """The terms that these layers compute, in order."""
    return tuple(name for layer in layers for name in layer.terms)


def pack(carry: Carry, sample_numbers: Tensor, border: Border) -> tuple[Tensor, ...]:
    """What the next stage needs of the carry."""
    tensors = [carry.field(name) for name in border.activations]
    if border.losses:
        tensors.append(torch.stack([carry.terms[name][0] for name in border.losses]))
    fields = [name for name in border.fields if carry.has_padding or name != ATTENTION_MASK]
    tensors += [(sample_numbers if name == SAMPLE_NUMBERS else carry.field(name)).long() for name in fields]
    if border.terms:
        tensors.append(_pack_numbers(carry.terms, border))
    return tuple(tensor.contiguous() for tensor in tensors)


def unpack(tensors: Sequence[Tensor], border: Border) -> tuple[Carry, Tensor]:
    """The carry, and the sample numbers ``[B]``; the inverse of ``pack``."""
    rest = list(tensors)
    activations = {name: rest.pop(0) for name in border.activations}
    loss_sums = rest.pop(0).unbind() if border.losses else ()
    given = fields_given(border.fields, len(rest) - bool(border.terms))
    fields = {name: rest.pop(0) for name in given}
    numbers = rest.pop(0) if border.terms else None
    terms = {} if numbers is None else _unpack_numbers(numbers, loss_sums, border)
    assert not rest, f"{len(rest)} tensors too many for {border}"
    return Carry.of_batch(fields, terms=terms, **activations), fields[SAMPLE_NUMBERS]


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
