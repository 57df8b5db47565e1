"""Whether attention, and the norm beside it, are right on a device: against the reference in fp32.

A candidate runs at the full size of a run, so that what is compiled is what the run uses; its results are compared for
a few samples and heads only, so that the reference needs little memory. Nothing flows back from the others: the
gradients of what all samples share are then the same.

Shapes: B micro batch · L length · Q query rows · N heads · H head size · D hidden size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from megadeberta.config.run import RunConfig
from megadeberta.layers.recipe import micro_batch_of
from megadeberta.model.attention_backend import select_residual_norm
from megadeberta.model.dropout import Draws, HiddenDropout
from megadeberta.model.kernel_choice.call import AttentionCall, part_of
from megadeberta.model.residual import ResidualNorm, add_and_norm
from megadeberta.ops.attention.backends import REFERENCE

_SAMPLES, _SCORES = 2, 2**24
"""Most that are compared: the reference holds the scores several times, in fp32."""
_TIMES_WORSE, _ROUNDING = 4.0, 1e-4
"""How much further than the reference in its own precision results may be from those in fp32, and a fraction of their
size beside it: fp32 has no distance to compare with."""

Results = Mapping[str, Tensor]
"""The output and all gradients, by name."""


class AttentionCheck:
    """The results that a call must have."""

    def __init__(self, call: AttentionCall) -> None:
        query = call.tensors["query"]
        batch, heads, rows, _ = query.shape
        samples = min(batch, _SAMPLES)
        self._call = call
        self._part = samples, max(1, min(heads, _SCORES // (samples * rows * call.tensors["key"].size(2))))
        generator = torch.Generator(query.device).manual_seed(1)
        upstream = torch.randn(query.transpose(1, 2).shape, generator=generator, device=query.device, dtype=query.dtype)
        upstream = upstream.transpose(1, 2)  # as the output projection has it
        of_part = part_of(upstream, *self._part)
        self._upstream = torch.zeros_like(upstream)
        part_of(self._upstream, *self._part).copy_(of_part)
        part = call.part(*self._part)
        with _exact_products():
            self._right = part.to(torch.float32).gradients(REFERENCE, of_part.float())
        self._rounded = part.gradients(REFERENCE, of_part)

    def finding(self, backend: str) -> str:
        """What is wrong with a backend; empty if nothing is."""
        found = self._call.gradients(backend, self._upstream)
        return difference(
            {name: part_of(each, *self._part) for name, each in found.items()}, self._right, self._rounded
        )


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


def difference(found: Results, right: Results, rounded: Results) -> str:
    """Which result is further from the one in fp32 than rounding explains; empty if none is.

    Args:
        rounded: of the reference in the precision of ``found``.
    """
    for name, expected in right.items():
        allowed = _TIMES_WORSE * _distance(rounded[name], expected) + _ROUNDING * float(expected.norm())
        away = _distance(found[name], expected)
        if not away <= allowed:
            return f"{name} is {away:.2g} away from the reference; rounding is {allowed:.2g}"
    return ""


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products of fp32 in fp32, where the recipe lets the GPU round them to TF32."""
    flags = torch.backends.cuda.matmul
    before, flags.allow_tf32 = flags.allow_tf32, False
    try:
        yield
    finally:
        flags.allow_tf32 = before


def _distance(found: Tensor, right: Tensor) -> float:
    return float((found.float() - right).norm())
