"""Dropout, residual and LayerNorm at the end of a block, as one operation.

Shapes: B batch · Lq query rows · D hidden size.
"""

from torch import Tensor, nn

from megadeberta.model.dropout import Draws, HiddenDropout, needed
from megadeberta.ops.residual_norm import residual_layer_norm


class ResidualNorm(nn.LayerNorm):
    """LayerNorm of dropout(branch) + residual. As a module, because ZeRO-3 gathers parameters when theirs runs."""

    backend = "auto"

    def forward(self, branch: Tensor, residual: Tensor, keys: Tensor | None, probability: float) -> Tensor:
        """``[B, Lq, D]``. keys: ``[B, Lq]``, see ``residual_layer_norm``."""
        return residual_layer_norm(
            branch,
            residual,
            self.weight,
            self.bias,
            eps=self.eps,
            keys=keys,
            probability=probability,
            backend=self.backend,
        )


def add_and_norm(
    norm: nn.Module, dropout: HiddenDropout, *, branch: Tensor, residual: Tensor, draws: Draws | None
) -> Tensor:
    """``norm(dropout(branch) + residual)``, ``[B, Lq, D]``."""
    if not isinstance(norm, ResidualNorm):  # what sequence parallelism has in these places
        return norm(dropout(branch, draws) + residual)
    keys = needed(draws).rows ^ dropout.site if dropout.is_active else None
    return norm(branch, residual, keys, dropout.probability)
