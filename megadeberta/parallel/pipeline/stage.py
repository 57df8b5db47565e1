"""One pipeline stage: a slice of the layer specs, with copies of the tables that it shares with other stages."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from megadeberta.layers.stages import StagePlan
from megadeberta.model.carry import Term
from megadeberta.model.whole import attach_layer, run_layers
from megadeberta.parallel.pipeline.packing import Border, border_after, carry_of, pack, unpack
from megadeberta.spec import LayerSpec, Tie


class Stage(nn.Module):
    """Runs the layers of one stage on what the stage before it sends.

    Parameter names are the global ones, as in ``WholeModel``: a tied table has its owner's name even where the owner
    is in another stage, so that initial values, decay and checkpoints do not depend on the cut.
    """

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        plans: Sequence[StagePlan],
        number: int,
        *,
        batch_fields: Sequence[str],
        recompute: bool = False,
    ) -> None:
        """
        Args:
            specs: of the whole model.
            plans: of all stages; this one is ``plans[number]``.
            batch_fields: names of a batch's tensors, in the order in which the first stage gets them.
            recompute: keep only the inputs of encoder layers and compute the rest again in the backward pass.
        """
        super().__init__()
        self.layer_names = list(plans[number].names)
        self.batch_fields = tuple(batch_fields)
        self.recompute = recompute
        self._before = _border(plans[:number], batch_fields)
        self._after = None if number == len(plans) - 1 else _border(plans[: number + 1], batch_fields)
        by_name = {spec.name: spec for spec in specs}
        for name in self.layer_names:
            layer = by_name[name].build()
            for tie in by_name[name].ties:
                self._tie(layer, tie, specs)
            attach_layer(self, name, layer)

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...] | dict[str, Term]:
        """From the previous stage's tensors, or a batch's, to the next stage's, or to the terms."""
        if self._before is None:
            carry, numbers = carry_of(dict(zip(self.batch_fields, tensors, strict=True)))
        else:
            carry, numbers = unpack(tensors, self._before)
        carry = run_layers(self, self.layer_names, carry, recompute=self.recompute)
        return dict(carry.terms) if self._after is None else pack(carry, numbers, self._after)

    def _tie(self, layer: nn.Module, tie: Tie, specs: Sequence[LayerSpec]) -> None:
        """Give the layer the shared table: the owner's if that is in this stage, else a copy under its name."""
        owner, _, attribute = tie.source.rpartition(".")
        if tie.source not in dict(self.named_parameters()):
            # Attached before the layer, so that this is the name the parameter is found by.
            holder = nn.Module()
            holder.register_parameter(attribute, _parameter_like(tie.source, specs))
            attach_layer(self, owner, holder)
        place, _, name = tie.attribute.rpartition(".")
        setattr(layer.get_submodule(place), name, self.get_parameter(tie.source))


def _parameter_like(source: str, specs: Sequence[LayerSpec]) -> nn.Parameter:
    """A parameter of the shape of another stage's, by its global name; not initialised."""
    owner = next(spec for spec in specs if source.startswith(f"{spec.name}."))
    with torch.device("meta"):
        original = owner.build().get_parameter(source.removeprefix(f"{owner.name}."))
    return nn.Parameter(torch.empty(original.shape, dtype=original.dtype))


def _border(plans: Sequence[StagePlan], batch_fields: Sequence[str]) -> Border | None:
    if not plans:
        return None
    return border_after([name for plan in plans for name in plan.names], batch_fields)
