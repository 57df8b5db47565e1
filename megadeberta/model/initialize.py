"""Initial values as a function of (seed, parameter name, row): the same under every layout."""

import hashlib

import torch
from torch import nn

ROW_BLOCK = 64
"""Rows that share one generator; every block can be drawn without drawing the rows before it."""


def initialize(model: nn.Module, *, seed: int, std: float) -> None:
    """Fill all parameters in place: matrices normal(0, std), LayerNorm weights 1, biases 0.

    As microsoft/DeBERTa: the padding row of the word table is drawn like the others (it is trained through the tied
    decoder). Unlike it, the convolution is drawn like every other matrix, as transformers does.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                for start in range(0, parameter.size(0), ROW_BLOCK):
                    rows = parameter[start : start + ROW_BLOCK]
                    rows.copy_(draw_rows(name, start // ROW_BLOCK, tuple(rows.shape), seed=seed, std=std))
            else:
                parameter.fill_(1.0 if name.endswith("layer_norm.weight") else 0.0)


def draw_rows(name: str, block: int, shape: tuple[int, ...], *, seed: int, std: float) -> torch.Tensor:
    """The rows of one block of one parameter, fp32 on the CPU."""
    digest = hashlib.sha256(f"{seed}/{name}/{block}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    # Always a whole block: torch draws the last numbers of a tensor in another way than those inside it.
    return torch.empty((ROW_BLOCK, *shape[1:])).normal_(0.0, std, generator=generator)[: shape[0]]
