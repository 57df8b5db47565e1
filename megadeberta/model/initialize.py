"""Initial values as a function of (seed, parameter name, row): the same under every layout."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from megadeberta.layers.cuts import ShardSlice

ROW_BLOCK = 64
"""Rows that share one generator; every block can be drawn without drawing the rows before it."""


def initialize(model: nn.Module, *, seed: int, std: float) -> None:
    """Fill all parameters in place, see ``fill_parameter``."""
    for name, parameter in model.named_parameters():
        fill_parameter(name, parameter, seed=seed, std=std)


@torch.no_grad()
def fill_parameter(name: str, parameter: nn.Parameter, *, seed: int, std: float) -> None:
    """Matrices normal(0, std), LayerNorm weights 1, biases and shared tables' differences 0; in place.

    Of a parameter with a ``shard`` only what it holds is written, and only the blocks of rows that it has are drawn.
    The host holds one block at a time, in fp32; the parameter may be on another device and of a type that rounds.

    As microsoft/DeBERTa: the padding row of the word table is drawn like the others (it is trained through the tied
    decoder). Unlike it, the convolution is drawn like every other matrix, as transformers does.
    """
    if parameter.dim() < 2 or name.endswith(".delta"):
        parameter.fill_(1.0 if name.endswith("layer_norm.weight") else 0.0)
        return
    part: ShardSlice | None = getattr(parameter, "shard", None)
    start, stop = 0, parameter.size(0)
    width: tuple[int, ...] = parameter.shape[1:]
    if part is not None:
        start, stop = (part.start, part.stop) if part.dim == 0 else (0, part.shape[0])
        width = part.shape[1:]
    for block in range(start // ROW_BLOCK, -(-stop // ROW_BLOCK)):
        first = block * ROW_BLOCK
        begin, end = max(start, first), min(stop, first + ROW_BLOCK)
        rows = draw_rows(name, block, (end - first, *width), seed=seed, std=std)[begin - first :]
        if part is not None and part.dim == 1:
            rows = rows[:, part.start : part.stop]
        parameter[begin - start : end - start].copy_(rows)


@torch.no_grad()
def mark_unset(name: str, parameter: nn.Parameter) -> None:
    """NaN everywhere, in place: of a parameter whose values a checkpoint gives. One that it leaves out is noticed."""
    parameter.fill_(torch.nan)


def give_storage(
    model: nn.Module,
    fill: Callable[[str, nn.Parameter], None],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Turn a model on the meta device into a real one, a parameter at a time; one that two modules share stays one.

    Args:
        fill: gets each parameter under its name, to give it its values. It may also part with some of the memory (ZeRO
            stage 3) before the next parameter is made.
        dtype: of the parameters; None: as the model has them.
    """
    made: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in made:
                storage = torch.empty_like(parameter, device=device, dtype=dtype)
                real = nn.Parameter(storage, requires_grad=parameter.requires_grad)
                real.__dict__.update(parameter.__dict__)
                fill(f"{path}.{name}", real)
                made[id(parameter)] = real
            module.register_parameter(name, made[id(parameter)])


def draw_rows(name: str, block: int, shape: tuple[int, ...], *, seed: int, std: float) -> Tensor:
    """The rows of one block of one parameter, fp32 on the CPU."""
    digest = hashlib.sha256(f"{seed}/{name}/{block}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    # Always a whole block: torch draws the last numbers of a tensor in another way than those inside it.
    return torch.empty((ROW_BLOCK, *shape[1:])).normal_(0.0, std, generator=generator)[: shape[0]]
