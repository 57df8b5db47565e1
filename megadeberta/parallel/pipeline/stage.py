"""One pipeline stage: consecutive layers of the model, with copies of the tables that it shares with other stages."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from megadeberta.batch import SAMPLE_NUMBERS, fields_given
from megadeberta.layers.layer import Tie
from megadeberta.layers.shapes import shapes_of
from megadeberta.layers.stages import StagePlan
from megadeberta.model.carry import Carry, Term
from megadeberta.model.whole import attach_module, build_module, run_layers
from megadeberta.parallel.pipeline.packing import Border, border_between, pack, unpack


class Stage(nn.Module):
    """Runs the layers of one stage on what the stage before it sends.

    Parameter names are the global ones, as in ``WholeModel``: a tied table has its owner's name even where the owner
    is in another stage, so that initial values, decay and checkpoints do not depend on the cut.
    """

    def __init__(
        self, plans: Sequence[StagePlan], number: int, *, batch_fields: Sequence[str], recompute: bool = False
    ) -> None:
        """
        Args:
            plans: of all stages; this one is ``plans[number]``.
            batch_fields: names of a batch's tensors, in the order in which the first stage gets them.
            recompute: keep only the inputs of encoder layers and compute the rest again in the backward pass.
        """
        super().__init__()
        self.layers = plans[number].layers
        self.batch_fields = tuple(batch_fields)
        self.recompute = recompute
        self._before = _border(plans, number, batch_fields)
        self._after = _border(plans, number + 1, batch_fields)
        shapes = shapes_of([layer for plan in plans for layer in plan.layers])
        for layer in self.layers:
            module = build_module(layer)
            for tie in layer.ties:
                self._tie(module, tie, shapes[tie.source])
            attach_module(self, layer.name, module)

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...] | dict[str, Term]:
        """From the previous stage's tensors, or a batch's, to the next stage's, or to the terms."""
        if self._before is None:
            batch = dict(zip(fields_given(self.batch_fields, len(tensors)), tensors, strict=True))
            carry, numbers = Carry.of_batch(batch), batch[SAMPLE_NUMBERS]
        else:
            carry, numbers = unpack(tensors, self._before)
        carry = run_layers(self, self.layers, carry, recompute=self.recompute)
        return dict(carry.terms) if self._after is None else pack(carry, numbers, self._after)

    def _tie(self, module: nn.Module, tie: Tie, shape: tuple[int, ...]) -> None:
        """Give the layer the shared table: the owner's if that is in this stage, else a copy under its name."""
        owner, _, attribute = tie.source.rpartition(".")
        if tie.source not in dict(self.named_parameters()):
            # Attached before the layer, so that this is the name the parameter is found by.
            holder = nn.Module()
            holder.register_parameter(attribute, nn.Parameter(torch.empty(shape)))
            attach_module(self, owner, holder)
        place, _, name = tie.attribute.rpartition(".")
        setattr(module.get_submodule(place), name, self.get_parameter(tie.source))


def _border(plans: Sequence[StagePlan], number: int, batch_fields: Sequence[str]) -> Border | None:
    """The border before stage ``number``; None where there is no stage before it, or none behind the border."""
    if number in (0, len(plans)):
        return None
    before, after = ([layer for plan in side for layer in plan.layers] for side in (plans[:number], plans[number:]))
    return border_between(before, after, batch_fields)
