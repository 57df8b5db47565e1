"""An objective that this one file adds: importing it lets ``objective.name`` be "mlm_length".

What someone outside the project would write: masked tokens as ever, and beside them a head of its own that tells from
[CLS] how much of the sequence is real. A kind of layer, its torch module, two terms, the objective; nothing else knows
of it. A recipe names the module in ``plugins``. That it trains under every layout, is planned, plotted, reported and
exported is tested in tests/distributed/test_toy_objective.py.

Shapes: B batch · L length · D hidden size.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.layers.collectives import Collective, whole_sequences
from megadeberta.layers.layer import Layer
from megadeberta.layers.micro_batch import PRECISE_BYTES, MicroBatch
from megadeberta.layers.objectives import Objective, register_objective
from megadeberta.layers.parameters import Shapes, linear
from megadeberta.layers.terms import Term, register_term
from megadeberta.model.carry import Carry
from megadeberta.model.whole import register_module

register_term(
    Term(
        "length_loss",
        label="len",
        title="length loss",
        unit="nats per sequence",
        count_targets=lambda batch: (batch["attention_mask"].sum(1) > 0).sum(),
    )
)
register_term(Term("length_accuracy", label="len acc"))


class LengthHead(Layer, kind="length_head"):
    """One number per sequence."""

    is_head = True
    writes = ()

    def own_parameters(self) -> Shapes:
        return linear("classifier", 1, self.model.hidden_size)

    def multiply_adds(self, batch: MicroBatch, *, rows: float) -> float:
        return batch.sequences * self.model.hidden_size

    def kept_bytes(self, batch: MicroBatch) -> int:
        return batch.sequences * (self.model.hidden_size * batch.element_bytes + 2 * PRECISE_BYTES)

    def collectives(self, batch: MicroBatch) -> list[Collective]:
        return whole_sequences(batch, self.model.hidden_size, "length_head input")


class LengthHeadModule(nn.Module):
    """Is more than three quarters of the sequence real? From the hidden state of [CLS]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.all_tokens = nn.Identity()  # an insertion point: with sequence parallelism, this rank has not all tokens

    def forward(self, carry: Carry) -> Carry:
        hidden: Tensor = self.all_tokens(carry.hidden)  # [B, L, D]
        logits = self.classifier(hidden[:, 0]).squeeze(-1).float()  # [B]
        lengths, length = carry.attention_mask.sum(1), carry.attention_mask.size(1)
        is_real, is_long = lengths > 0, (4 * lengths > 3 * length)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, is_long.float(), reduction="none")
        count = is_real.sum()
        correct = (((logits.detach() > 0) == is_long) & is_real).sum()
        terms = {"length_loss": (torch.where(is_real, losses, 0.0).sum(), count), "length_accuracy": (correct, count)}
        return replace(carry, terms={**carry.terms, **terms})


register_module(LengthHead.kind, lambda layer: LengthHeadModule(layer.model))


class MaskedTokensAndLength(Objective):
    """Masked tokens, and the length of the sequence."""

    name = "mlm_length"
    title = "masked language modelling and sequence length"

    def layers(self, model: ModelConfig, settings: ObjectiveConfig) -> list[Layer]:
        head = LengthHead("length_head", model, terms=("length_loss", "length_accuracy"))
        return [*token_model_layers(model), head]

    def loss_weights(self, settings: ObjectiveConfig) -> dict[str, float]:
        return {"mlm_loss": 1.0, "length_loss": settings.options.get("length_weight", 0.5)}

    def check(self, config: RunConfig) -> None:
        unknown = config.objective.options.keys() - {"length_weight"}
        if unknown:
            raise ConfigError(f"objective.options: {sorted(unknown)} are not settings of {self.name}; remove them")


register_objective(MaskedTokensAndLength())
