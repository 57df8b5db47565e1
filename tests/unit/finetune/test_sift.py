"""Scale-invariant fine-tuning against a naive implementation, and what it leaves alone."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from megadeberta.finetune.sift import Sift, squared_difference, symmetric_divergence
from megadeberta.finetune.sift_settings import SiftSettings
from megadeberta.hf.switch import use_fast_attention
from tests.unit.hf.small_models import V3

SETTINGS = SiftSettings(start=1e-2, step=1e-4)
WORD_TABLE = "deberta.embeddings.word_embeddings.weight"


@pytest.fixture
def model() -> DebertaV2ForSequenceClassification:
    """In training mode without dropout, in fp64, with a head that has opinions: a flat one has no gradients."""
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
        type_vocab_size=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
        **V3,
    )
    made = DebertaV2ForSequenceClassification(config).double().train()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for head in (made.pooler.dense, made.classifier):
            head.weight *= 5
    return made


def _batch() -> dict[str, Tensor]:
    ids = torch.randint(1, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _naive_logits(model: DebertaV2ForSequenceClassification, batch: dict[str, Tensor], delta: Tensor | None) -> Tensor:
    """The model written out, with the normalised word embeddings and a perturbation of them."""
    table = model.deberta.embeddings.word_embeddings.weight
    hidden = table[batch["input_ids"]]
    mean = hidden.mean(-1, keepdim=True)
    normalised = (hidden - mean) / ((hidden - mean).square().mean(-1, keepdim=True) + 1e-7).sqrt()
    if delta is not None:
        normalised = normalised.detach() + delta
    layer_norm = model.deberta.embeddings.LayerNorm
    embedded = functional.layer_norm(normalised, (24,), layer_norm.weight, layer_norm.bias, layer_norm.eps)
    embedded = embedded * batch["attention_mask"][..., None]
    states = model.deberta.encoder(embedded, batch["attention_mask"], return_dict=True).last_hidden_state
    return model.classifier(model.pooler(states))


def _naive_divergence(one: Tensor, other: Tensor) -> Iterator[Tensor]:
    """Of each row both Kullback-Leibler divergences, element by element, the first distribution of each detached."""
    for a, b in zip(one, other, strict=True):
        p, q = a.exp() / a.exp().sum(), b.exp() / b.exp().sum()
        forth = sum(x.detach() * (x.detach().log() - y.log()) for x, y in zip(q, p, strict=True))
        back = sum(x.detach() * (x.detach().log() - y.log()) for x, y in zip(p, q, strict=True))
        yield forth + back


def _naive_loss(model: DebertaV2ForSequenceClassification, batch: dict[str, Tensor], clean: Tensor) -> Tensor:
    noise = torch.randn(3, 9, 24, dtype=torch.float64) * SETTINGS.start
    first = noise.clamp(-2 * SETTINGS.start, 2 * SETTINGS.start).requires_grad_()
    (gradient,) = torch.autograd.grad(sum(_naive_divergence(_naive_logits(model, batch, first), clean.detach())), first)
    delta = torch.zeros_like(first)
    for sample in range(3):
        for token in range(9):
            largest = max(abs(float(value)) for value in gradient[sample, token])
            step = SETTINGS.step / (1e-6 + largest)
            delta[sample, token] = first[sample, token].detach() + step * gradient[sample, token]
    return sum(_naive_divergence(_naive_logits(model, batch, delta), clean)) / 3


def test_loss_and_every_gradient_equal_a_naive_implementation(model: DebertaV2ForSequenceClassification) -> None:
    batch, names = _batch(), [name for name, _ in model.named_parameters()]
    found: dict[str, tuple[Tensor, list[Tensor | None]]] = {}
    for kind in ("naive", "sift"):
        torch.manual_seed(7)
        if kind == "naive":
            clean = _naive_logits(model, batch, None)
            loss = _naive_loss(model, batch, clean)
        else:
            sift = Sift(model, SETTINGS, distance=symmetric_divergence)
            clean = model(**batch).logits
            loss = sift.loss(lambda: model(**batch).logits, clean)
        found[kind] = loss, torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    (expected, gradients), (loss, ours) = found["naive"], found["sift"]
    assert expected.item() > 1e-8
    assert abs(loss.item() - expected.item()) < 1e-9
    for name, one, other in zip(names, ours, gradients, strict=True):
        assert (one is None) == (other is None), name
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9, msg=name)


def test_it_is_the_same_under_our_attention(model: DebertaV2ForSequenceClassification) -> None:
    batch, losses = _batch(), []
    sift = Sift(model, SETTINGS, distance=symmetric_divergence)
    for switch in (lambda model: model, use_fast_attention):
        switch(model)
        torch.manual_seed(7)
        losses.append(sift.loss(lambda: model(**batch).logits, model(**batch).logits).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_perturbed_pass_gives_the_word_table_no_gradient(model: DebertaV2ForSequenceClassification) -> None:
    batch, sift = _batch(), Sift(model, SETTINGS, distance=symmetric_divergence)
    loss = sift.loss(lambda: model(**batch).logits, model(**batch).logits.detach())
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))
    assert found[WORD_TABLE] is None
    assert found["deberta.encoder.layer.0.output.dense.weight"].abs().max() > 0


def test_perturbation_starts_small_and_moves_each_token_by_one_step(
    model: DebertaV2ForSequenceClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    original = Sift._normalise_and_perturb

    def record(self: Sift, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        if self.delta is not None:
            seen.append(self.delta.detach().clone())
        return original(self, module, inputs)

    monkeypatch.setattr(Sift, "_normalise_and_perturb", record)
    batch, sift = _batch(), Sift(model, SETTINGS, distance=symmetric_divergence)
    sift.loss(lambda: model(**batch).logits, model(**batch).logits)
    first, moved = seen
    assert first.abs().max() <= 2 * SETTINGS.start and first.std() > SETTINGS.start / 2
    step = (moved - first).abs().amax(-1)
    assert (step <= SETTINGS.step * (1 + 1e-9)).all()
    real = batch["attention_mask"].bool()
    assert (step[real] > SETTINGS.step / 2).all() and (step[~real] < 1e-9).all()


def test_the_step_goes_where_predictions_move_most(model: DebertaV2ForSequenceClassification) -> None:
    batch, losses = _batch(), []
    for step in (0.0, 1e-2):
        torch.manual_seed(3)
        sift = Sift(model, SiftSettings(step=step), distance=symmetric_divergence)
        losses.append(sift.loss(lambda: model(**batch).logits, model(**batch).logits).item())
        sift.remove()
    assert losses[1] > losses[0]


def test_scores_are_those_of_the_model_without_it(model: DebertaV2ForSequenceClassification) -> None:
    batch, plain = _batch(), model.eval()(**_batch()).logits
    Sift(model, SETTINGS, distance=symmetric_divergence)
    assert torch.equal(model(**batch).logits, plain)
    normalised = model.train()(**batch).logits
    torch.testing.assert_close(normalised, plain, rtol=0, atol=1e-4)  # LayerNorm twice moves eps only


def test_distance_of_numbers_is_their_squared_difference() -> None:
    one, other = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.5], [1.0]])
    assert squared_difference(one, other).tolist() == [0.25, 4.0]


def test_divergence_of_equal_predictions_is_zero_and_padding_has_no_part() -> None:
    logits = torch.tensor([[0.3, -1.0, torch.finfo(torch.float32).min]])
    others = torch.tensor([[-0.3, 1.0, torch.finfo(torch.float32).min]])
    assert symmetric_divergence(logits, logits).item() == 0
    p = math.exp(0.3) / (math.exp(0.3) + math.exp(-1.0))
    q = math.exp(-0.3) / (math.exp(-0.3) + math.exp(1.0))
    expected = (p - q) * math.log(p / q) + (q - p) * math.log((1 - p) / (1 - q))
    assert symmetric_divergence(logits, others).item() == pytest.approx(expected, rel=1e-5)
