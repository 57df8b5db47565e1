"""Replaced token detection out of transformers' classes, as one would write it: the peer of our step of it.

A DebertaV2ForMaskedLM draws the tokens, a DebertaV2Model with our head's formula says which were drawn, and the
discriminator's word vectors are those of the generator, without gradient, plus a difference (GDES).

Shapes: B batch · L length · D hidden size · V vocabulary.
"""

import torch
from step_models import REPLACED, Batch, build_theirs, changed, our_loss
from torch import Tensor, nn
from torch.nn import functional
from transformers import DebertaV2Model

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR
from megadeberta.convert.formats.names import backbone_names, mlm_names
from megadeberta.layers.objectives import objective_of
from megadeberta.model.whole import WholeModel

WEIGHT = objective_of(REPLACED).loss_weights(REPLACED)["rtd_loss"]


class TransformersPair(nn.Module):
    """Generator of half the depth and discriminator, both transformers' eager models."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        plain = changed(config, enhanced_mask_decoder=False)
        self.generator = build_theirs(REPLACED.rtd.generator(plain))
        self.discriminator: DebertaV2Model = build_theirs(plain).deberta
        self.discriminator.embeddings.word_embeddings = None  # the vectors are given
        size = config.hidden_size
        self.delta = nn.Embedding(config.vocab_size, size)
        nn.init.zeros_(self.delta.weight)
        self.layer_norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dense = nn.Linear(size, size)
        self.classifier = nn.Linear(size, 1)

    def forward(self, batch: Batch, sampled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means of the masked tokens' and the replaced tokens' losses; with ``sampled`` ``[B, L]`` in the place of the
        draw."""
        predicted = self.generator(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels)
        is_target = batch.labels != -100
        if sampled is None:
            sampled = self._draw(predicted.logits.detach(), batch, is_target)
        original = torch.where(is_target, batch.labels, batch.ids)
        words = self.generator.deberta.embeddings.word_embeddings.weight.detach()
        vectors = functional.embedding(sampled, words) + self.delta(sampled)  # [B, L, D]
        hidden = self.discriminator(inputs_embeds=vectors, attention_mask=batch.mask).last_hidden_state
        state = self.dense(self.layer_norm(hidden + hidden[:, :1]))
        logits = self.classifier(functional.gelu(state)).squeeze(-1)
        return predicted.loss, functional.binary_cross_entropy_with_logits(logits, (sampled != original).float())

    @torch.no_grad()
    def _draw(self, logits: Tensor, batch: Batch, is_target: Tensor) -> Tensor:
        """The ids with a sample from ``logits`` ``[B, L, V]`` at every target."""
        drawn = torch.multinomial(logits[is_target].softmax(-1), 1).squeeze(-1)
        return batch.ids.masked_scatter(is_target, drawn)


def pair_loss(model: TransformersPair, batch: Batch) -> Tensor:
    """With the weights of a recipe."""
    masked, replaced = model(batch)
    return masked + WEIGHT * replaced


def pair_names(config: ModelConfig) -> dict[str, str]:
    """Our parameters -> the pair's."""
    plain = changed(config, enhanced_mask_decoder=False)
    theirs = {f"{GENERATOR}.{a}": f"generator.{b}" for a, b in mlm_names(REPLACED.rtd.generator(plain)).items()}
    theirs |= {f"{DISCRIMINATOR}.{a}": f"discriminator.{b}" for a, b in backbone_names(plain).items()}
    theirs[f"{DISCRIMINATOR}.embeddings.word_embeddings.delta"] = "delta.weight"
    for name in ("layer_norm", "dense", "classifier"):
        theirs |= {f"{DISCRIMINATOR}.rtd_head.{name}.{kind}": f"{name}.{kind}" for kind in ("weight", "bias")}
    return theirs


def check_pair(
    theirs: TransformersPair, ours: WholeModel, batch: Batch, config: ModelConfig, *, tolerance: float
) -> None:
    """Give our model the pair's weights, and stop unless loss and gradients agree on the tokens that ours draws."""
    names, state = pair_names(config), theirs.state_dict()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(state[names[name]])
        _, handed_on = ours(
            batch.ids, batch.mask, batch.positions, batch.targets, sample_numbers=batch.numbers, part=GENERATOR
        )
    masked, replaced = theirs(batch, handed_on["input_ids"])
    losses = masked + WEIGHT * replaced, our_loss(ours, batch)
    for loss in losses:
        loss.backward()
    expected, found = (float(loss.detach()) for loss in losses)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    worst = max(
        float((parameter.grad - gradients[names[name]]).norm() / gradients[names[name]].norm())
        for name, parameter in ours.named_parameters()
    )
    print(f"  loss {found:.6f}, the pair {expected:.6f}; largest relative gradient difference {worst:.1e}")
    if not abs(expected - found) <= 0.1 * tolerance * abs(expected) or not worst <= tolerance:
        raise SystemExit("the two models do not agree; no time is worth printing")
