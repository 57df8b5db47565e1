"""Whether what ends a block, and the dropout that goes with it, is right on a device.

Shapes: B micro batch · L length · D hidden size.
"""

from typing import cast

import torch
from torch import nn

from megadeberta.config.run import RunConfig
from megadeberta.layers.recipe import micro_batch_of
from megadeberta.model.attention_backend import select_residual_norm
from megadeberta.model.dropout import Draws, HiddenDropout
from megadeberta.model.residual import ResidualNorm, add_and_norm
from megadeberta.ops.attention.backends import REFERENCE
from megadeberta.ops.attention.comparison import Results, difference


def check_residual_norm(name: str, config: RunConfig, *, dtype: torch.dtype, device: torch.device) -> str:
    """What is wrong with an implementation of ``ops/residual_norm.py``, or with the dropout of hidden states and of the
    relative table that goes with it; empty if nothing is."""
    micro_batch, model = micro_batch_of(config), config.model
    shape = (micro_batch.sequences, micro_batch.length, model.hidden_size)
    generator = torch.Generator(device).manual_seed(2)
    upstream, branch, residual, table = (
        torch.randn(size, generator=generator, device=device, dtype=dtype) for size in (*[shape] * 3, shape[1:])
    )
    upstream[1:] = 0.0

    def run(implementation: str, samples: int, precision: torch.dtype) -> Results:
        modules = nn.ModuleDict(
            {
                "norm": ResidualNorm(model.hidden_size, model.layer_norm_eps),
                "dropout": HiddenDropout(model.hidden_dropout_prob),
            }
        ).to(device, precision)
        select_residual_norm(modules, implementation, device, attention=REFERENCE)
        norm, dropout = cast(ResidualNorm, modules["norm"]), cast(HiddenDropout, modules["dropout"])
        draws = Draws.of(torch.arange(samples, device=device), shape[1])
        given = [each.detach().to(precision).requires_grad_() for each in (branch[:samples], residual[:samples], table)]
        below = dropout(given[1], draws) + dropout.of_table(given[2], draws)
        output = add_and_norm(norm, dropout, branch=given[0], residual=below, draws=draws)
        leaves = dict(zip(("branch", "residual", "table"), given, strict=True)) | dict(norm.named_parameters())
        found = torch.autograd.grad(output, list(leaves.values()), upstream[:samples].to(precision))
        results = {"the output": output.detach()}
        results |= {f"the gradient of the {of}": each for of, each in zip(leaves, found, strict=True)}
        return {of: each[:1] if each.dim() == 3 else each for of, each in results.items()}

    found = difference(run(name, shape[0], dtype), run("torch", 1, torch.float32), run("torch", 1, dtype))
    return f"residual norm {name}: {found}" if found else ""
