"""Scale-invariant fine-tuning (SiFT; DeBERTa paper, section 4; microsoft/DeBERTa ``DeBERTa/sift/sift.py``).

The task's loss gets a second one: how much predictions move when the normalised word embeddings are pushed a little in
the direction that moves them most. Of a batch: (1) a clean pass, whose embeddings are normalised without weights before
their LayerNorm; (2) a pass with noise added to them, and the gradient of the divergence with respect to the noise;
(3) a pass with the noise moved one step along that gradient, whose divergence from the clean predictions is the loss.

Shapes: B batch · L length · D hidden size · C classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.finetune.sift_settings import SiftSettings

_EPS = 1e-7
"""Of the LayerNorm without weights."""
_SMALL = 1e-6
"""Added to the largest gradient of a token before it divides."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""From two predictions of shape ``[B, ..., C]`` to how far they are apart, ``[B, ...]``."""


class Sift:
    """Perturbs the input of one model's embedding LayerNorm while the model is in training mode.

    In evaluation mode the model computes what it computed before, so that scores are those of the saved folder; the
    normalisation before a LayerNorm changes its result by no more than its epsilon does.
    """

    def __init__(self, model: Any, settings: SiftSettings = SiftSettings(), *, distance: Distance) -> None:
        """
        Args:
            model: of transformers, with a DeBERTa encoder.
            distance: :func:`symmetric_divergence`, or :func:`squared_difference` for numbers.
        """
        self.settings, self.distance = settings, distance
        self.delta: Tensor | None = None
        self.normalised = torch.empty(0)
        layer_norm = getattr(model, model.base_model_prefix).embeddings.LayerNorm
        self._hook = layer_norm.register_forward_pre_hook(self._normalise_and_perturb)

    def remove(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()

    def _normalise_and_perturb(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        if not module.training:
            return None
        if self.delta is None:
            hidden = inputs[0]
            self.normalised = functional.layer_norm(hidden, hidden.shape[-1:], eps=_EPS)
            return self.normalised
        # Detached: the perturbed pass trains everything above the word table, and not the table.
        clean = self.normalised.detach()
        return (clean.to(self.delta.dtype) + self.delta).to(clean.dtype)

    def loss(self, predict: Callable[[], Tensor], clean: Tensor, real: Tensor | None = None) -> Tensor:
        """Mean distance between the worst small perturbation's predictions and the clean ones; without its weight.

        Args:
            predict: runs the model on the batch of the last clean pass, ``[B, ..., C]``.
            clean: what that pass gave.
            real: which predictions count, ``[B, ...]``; all if None.
        """
        try:
            self.delta = self._worst(predict, clean.detach(), real)
            distances = self._distances(predict(), clean, real)
        finally:
            self.delta = None
        return distances.sum() / max(1, distances.numel())

    def _worst(self, predict: Callable[[], Tensor], clean: Tensor, real: Tensor | None) -> Tensor:
        dtype = torch.promote_types(self.normalised.dtype, torch.float32)
        noise = torch.randn(self.normalised.shape, device=clean.device, dtype=dtype) * self.settings.start
        first = noise.clamp_(-2 * self.settings.start, 2 * self.settings.start).requires_grad_()
        self.delta = first
        (gradient,) = torch.autograd.grad(self._distances(predict(), clean, real).sum(), first)
        if not gradient.isfinite().all():
            return first.detach()
        largest = gradient.abs().amax(-1, keepdim=True)
        return first.detach() + self.settings.step * gradient / (_SMALL + largest)

    def _distances(self, one: Tensor, other: Tensor, real: Tensor | None) -> Tensor:
        found = self.distance(one, other)
        return found if real is None else found[real]


def symmetric_divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Symmetric KL divergence, the target of each half detached: ``[B, ..., C]`` twice -> ``[B, ...]``.

    Microsoft's code leaves out the entropies of the targets, which changes the value and no gradient.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_p, log_q = logits.to(dtype).log_softmax(-1), others.to(dtype).log_softmax(-1)
    p, q = log_p.detach(), log_q.detach()
    return (q.exp() * (q - log_p)).sum(-1) + (p.exp() * (p - log_q)).sum(-1)


def squared_difference(values: Tensor, others: Tensor) -> Tensor:
    """Of numbers: mean squared difference over the last axis, ``[B, ..., C]`` twice -> ``[B, ...]``.

    Microsoft's code has it for the direction and takes the divergence for the loss, which is zero for one output.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    return (values.to(dtype) - others.to(dtype)).square().mean(-1)
