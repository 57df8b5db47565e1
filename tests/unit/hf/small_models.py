"""Models of transformers small enough to run in every test, with weights that make every term count."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DebertaConfig,
    DebertaForMaskedLM,
    DebertaForQuestionAnswering,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2ForMultipleChoice,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
    PreTrainedModel,
)

V1 = {"relative_attention": True, "pos_att_type": "c2p|p2c", "position_biased_input": False}
V3 = V1 | {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
PLAIN = {"relative_attention": False, "pos_att_type": "c2p|p2c", "position_biased_input": True}
# transformers takes the root of head size times terms in fp32 whatever the model's precision is: exact for squares.
C2P, P2C = ({"pos_att_type": term, "hidden_size": 4 * 8} for term in ("c2p", "p2c"))
NO_TERMS = {"pos_att_type": None, "hidden_size": 4 * 16}
LONGEST = 32
CASES: dict[str, tuple[type[PreTrainedModel], dict[str, Any]]] = {
    "v3": (DebertaV2ForMaskedLM, V3),
    "v3 with positions at the input": (DebertaV2ForSequenceClassification, V3 | {"position_biased_input": True}),
    "v2, separate projections": (DebertaV2ForTokenClassification, V3 | {"share_att_key": False}),
    "v2 with convolution": (DebertaV2ForQuestionAnswering, V3 | {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "v2, c2p alone": (DebertaV2ForMaskedLM, V3 | C2P),
    "v2, p2c alone, separate": (DebertaV2ForMaskedLM, V3 | P2C | {"share_att_key": False}),
    "v2 without position terms": (DebertaV2ForMaskedLM, V3 | NO_TERMS),
    "v2, linear distances": (DebertaV2ForMaskedLM, V3 | {"position_buckets": -1, "max_relative_positions": 9}),
    "v2, more buckets than distances": (
        DebertaV2ForMaskedLM,
        V3 | {"position_buckets": 16, "max_relative_positions": 12},
    ),
    "v2 without relative attention": (DebertaV2ForMaskedLM, PLAIN | {"type_vocab_size": 2}),
    "v1": (DebertaForMaskedLM, V1),
    "v1, short span": (DebertaForTokenClassification, V1 | {"max_relative_positions": 7}),
    "v1, c2p alone": (DebertaForSequenceClassification, V1 | C2P),
    "v1, p2c alone": (DebertaForQuestionAnswering, V1 | P2C),
    "v1 without relative attention": (DebertaForMaskedLM, PLAIN),
}


def build(case: str, dtype: torch.dtype = torch.float64, *, dropout: float = 0.0, **changes: object) -> PreTrainedModel:
    """The model of a case, in training mode.

    Args:
        dropout: of attention weights; none of hidden states.
    """
    model_class, fields = CASES[case]
    sizes = {
        "vocab_size": 60,
        "hidden_size": 4 * 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": LONGEST,
        "type_vocab_size": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": dropout,
    }
    config_class = DebertaV2Config if issubclass(model_class, V2) else DebertaConfig
    torch.manual_seed(0)
    model = model_class(config_class(**sizes | fields | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model.to(dtype).train()


V2 = (
    DebertaV2ForMaskedLM,
    DebertaV2ForMultipleChoice,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
)


def padded(length: int) -> dict[str, Tensor]:
    """A batch of three: padding at the right, at the left, none."""
    ids = torch.randint(1, 60, (3, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, length - length // 3 :] = 0
    mask[1, : length // 4] = 0
    return {"input_ids": ids, "attention_mask": mask}


def results(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """All outputs, and the gradients of all parameters from a loss that depends on every element of them."""
    model.zero_grad()
    outputs = [value for value in model(**inputs).values() if isinstance(value, Tensor)]
    flat = torch.cat([output.flatten().double() for output in outputs])
    (flat * torch.cos(torch.arange(flat.numel()))).sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [output.detach() for output in outputs], grads


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The norm of all differences over the norm of what is expected: some gradients are zero but for rounding."""
    assert [t.shape for t in found] == [t.shape for t in expected]
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, expected, strict=True))
    return (apart / sum(float(b.double().square().sum()) for b in expected)) ** 0.5


def both(
    model: nn.Module, inputs: dict[str, Tensor], first: Callable[..., object], second: Callable[..., object]
) -> tuple[float, float]:
    """How far outputs and gradients are apart under two settings of the attention, the first one being expected."""
    first(model)
    outputs, grads = results(model, inputs)
    second(model)
    other_outputs, other_grads = results(model, inputs)
    return distance(other_outputs, outputs), distance(other_grads, grads)
