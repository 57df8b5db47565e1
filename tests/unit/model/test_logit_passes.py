"""How much memory traffic the logits over the vocabulary cost in a step of the base model on a GPU: 64 x 512 tokens in
bf16, 80 slots a sequence, 128 100 ids, counted on the meta device.

Shapes: B batch · L length · Q slots · V vocabulary.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.model.carry import Carry
from megadeberta.model.dropout import Draws
from megadeberta.model.mlm_head import MlmHead
from megadeberta.model.sampling import Sample
from megadeberta.ops.logits import TORCH, TRITON
from tests.logit_passes import LogitPasses

B, L, Q = 64, 512, 80
FEW = 8
"""Sequences of the case in plain torch, which draws in many small chunks."""
CONFIG = ModelConfig()
V = CONFIG.vocab_size
WHOLE = 2 * B * Q * V
"""Bytes of all logits in bf16."""


def _count(implementation: str, *, for_sampling: bool, batch: int = B) -> tuple[LogitPasses, LogitPasses | None]:
    """Of the head, forward and backward; and of the draw."""
    with torch.device("meta"):
        head = MlmHead(CONFIG, for_sampling=for_sampling)
        head.decoder.weight = torch.nn.Parameter(torch.empty(V, CONFIG.embedding_width))
        head = head.bfloat16()
        labels = torch.ones(batch, Q, dtype=torch.int64)
        carry = Carry(
            torch.ones(batch, L, dtype=torch.int64),
            torch.ones(batch, L, dtype=torch.bool),
            masked_positions=labels,
            masked_labels=labels,
            draws=Draws.of(torch.arange(batch), L),
            masked_hidden=torch.empty(batch, Q, CONFIG.hidden_size, dtype=torch.bfloat16, requires_grad=True),
        )
    head.implementation = implementation
    with LogitPasses(vocabulary=V, width=CONFIG.embedding_width) as passes:
        carry = head(carry)
        loss: Tensor = carry.terms["mlm_loss"][0]
        if torch.is_grad_enabled():
            loss.backward()
    if not for_sampling:
        return passes, None
    sample = Sample(1.0)
    sample.implementation = implementation
    with LogitPasses(vocabulary=V, width=CONFIG.embedding_width) as draw:
        sample(replace(carry, hidden=None))
    return passes, draw


def test_loss_and_gradient_over_the_vocabulary_pass_less_than_6_gb() -> None:
    passes, _ = _count(TRITON, for_sampling=False)
    assert passes.elementwise <= 6e9
    # Softmax and error read twice and write once; the gradient of the bias reads the error.
    assert passes.elementwise == pytest.approx(4 * WHOLE, rel=0.01)
    assert passes.products == pytest.approx(3 * WHOLE, rel=0.01)  # written by the decoder, read for two gradients


def test_validation_passes_once() -> None:
    with torch.no_grad():
        passes, _ = _count(TRITON, for_sampling=False)
    assert passes.elementwise == pytest.approx(WHOLE, rel=0.01)


def test_a_draw_from_the_generator_passes_less_than_8_gb_and_makes_no_logits_again() -> None:
    passes, draw = _count(TRITON, for_sampling=True)
    assert draw is not None and draw.elementwise <= 8e9
    assert draw.elementwise == pytest.approx(WHOLE, rel=0.01)
    assert draw.products == 0
    assert passes.elementwise <= 6e9 and passes.products == pytest.approx(3 * WHOLE, rel=0.01)


def test_the_counter_sees_the_passes_of_plain_torch() -> None:
    """So that a pass which comes back is seen."""
    passes, draw = _count(TORCH, for_sampling=True, batch=FEW)
    logits = WHOLE * FEW // B
    # To fp32 and back; largest, difference, exponentials, sum and scale in fp32.
    assert passes.elementwise > 20 * logits
    assert draw is not None and draw.elementwise > 150 * logits
