"""Dropout, residual and LayerNorm at the end of a block, as one operation.

Shapes: B batch · Lq query rows · D hidden size.
"""

import torch
from torch import Tensor, nn

from megadeberta.model.dropout import Draws, HiddenDropout
from megadeberta.ops.residual_norm import residual_layer_norm


class ResidualNorm(nn.Module):
    """LayerNorm of dropout(branch) + residual. As a module, because ZeRO-3 gathers parameters when theirs runs.

    implementation: see ``residual_layer_norm``. follows_attention: whether ``training.residual_norm=auto`` sets it to
    what goes with the attention backend.
    """

    follows_attention = True

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.size, self.eps = size, eps
        self.implementation = "auto"

    def forward(
        self, branch: Tensor, residual: Tensor, keys: Tensor | None = None, *, site: int = 0, probability: float = 0.0
    ) -> Tensor:
        """``[B, Lq, D]``. keys: ``[B, Lq]``, and site: see ``residual_layer_norm``."""
        weight, bias = self.weight_and_bias()
        return residual_layer_norm(
            branch,
            residual,
            weight,
            bias,
            eps=self.eps,
            keys=keys,
            site=site,
            probability=probability,
            implementation=self.implementation,
        )

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """What to scale by and to add, both ``[D]``."""
        return self.weight, self.bias

    def extra_repr(self) -> str:
        return f"({self.size},), eps={self.eps}, elementwise_affine=True"


def add_and_norm(
    norm: ResidualNorm, dropout: HiddenDropout, *, branch: Tensor, residual: Tensor, draws: Draws | None
) -> Tensor:
    """``norm(dropout(branch) + residual)``, ``[B, Lq, D]``."""
    keys, site = dropout.keys(draws)
    return norm(branch, residual, keys, site=site, probability=dropout.probability)
