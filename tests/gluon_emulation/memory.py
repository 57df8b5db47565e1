"""Shared memory of the emulation: what is in it, who may read it when.

Shapes: as the kernels allocate it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.gluon_emulation.values import Kind, Value

SHARED_BYTES = 227 * 1024
"""Of a block on sm_90."""


class Hazard(AssertionError):
    """An order of events that a GPU does not keep."""


@dataclass
class Program:
    """Shared memory of one program, and what is under way in it."""

    number: int
    count: int
    """Programs of the launch."""
    without_barrier: int | None = None
    """Number of the barrier that is left out."""
    epoch: int = 1
    barriers: int = 0
    used: int = 0
    groups: list[list[Tensor]] = field(default_factory=lambda: [[]])
    """Addresses of copies not waited for; the last group is open."""
    products: list[tuple["Product", list[Tensor]]] = field(default_factory=list)
    """Products not waited for, and the addresses they read."""

    def __post_init__(self) -> None:
        self.cells = torch.full((SHARED_BYTES,), float("nan"), dtype=torch.float64)
        self.sizes = torch.zeros(SHARED_BYTES, dtype=torch.int8)  # of the element that begins at a byte
        self.written, self.read, self.fenced = (torch.full((SHARED_BYTES,), -1) for _ in range(3))
        self.copying = torch.zeros(SHARED_BYTES, dtype=torch.bool)
        self.multiplied = torch.zeros(SHARED_BYTES, dtype=torch.int64)

    def barrier(self) -> None:
        if self.barriers != self.without_barrier:
            self.epoch += 1
        self.barriers += 1

    def require(self, condition: Tensor | bool, message: str) -> None:
        if not bool(torch.as_tensor(condition).all()):
            raise Hazard(message)

    def overwrite(self, addresses: Tensor, size: int, data: Tensor, *, copy: bool = False) -> None:
        bytes_ = addresses.unsqueeze(-1) + torch.arange(size)
        self.require(addresses % size == 0, "an address is no multiple of its element's size")
        self.require((addresses >= 0) & (addresses + size <= self.used), "write outside of what was allocated")
        self.require(self.read[bytes_] < self.epoch, "overwritten without a barrier after it was read")
        self.require(self.written[bytes_] < self.epoch, "overwritten without a barrier after it was written")
        self.require(self.multiplied[bytes_] == 0, "overwritten while tensor cores read it")
        self.require(~self.copying[bytes_], "overwritten while it is copied to")
        self.sizes[bytes_] = 0
        self.sizes[addresses] = size
        self.cells[addresses] = data.to(torch.float64)
        self.written[bytes_] = self.epoch
        self.fenced[bytes_] = -1
        if copy:
            self.copying[bytes_] = True
            self.groups[-1].append(bytes_)

    def fetch(self, addresses: Tensor, size: int) -> Tensor:
        bytes_ = addresses.unsqueeze(-1) + torch.arange(size)
        self.require((addresses >= 0) & (addresses + size <= self.used), "read outside of what was allocated")
        self.require(~self.copying[bytes_], "read before its copy was waited for")
        self.require(self.written[bytes_] < self.epoch, "read without a barrier after it was written")
        self.read[bytes_] = self.epoch
        words = addresses - addresses % 4
        if size == 1 and bool((self.sizes[words] == 4).all()):  # a byte of an integer
            return (self.cells[words].long() >> (8 * (addresses % 4))) & 255
        self.require(self.sizes[addresses] == size, "read where no element of that size was written")
        return self.cells[addresses]


@dataclass(eq=False)
class Product:
    """A product under way; ``warpgroup_mma_wait`` gives its value."""

    value: Value


class Memory:
    """A view of shared memory: the address of every element."""

    def __init__(self, program: Program, kind: Kind, addresses: Tensor, start: int) -> None:
        self.program, self.dtype, self.addresses, self.start = program, kind, addresses, start
        self.shape = tuple(addresses.shape)

    def _view(self, addresses: Tensor) -> "Memory":
        return Memory(self.program, self.dtype, addresses, self.start)

    def index(self, number: Any) -> "Memory":
        return self._view(self.addresses[int(number)])

    def slice(self, start: int, length: int, dim: int = 0) -> "Memory":
        return self._view(self.addresses.narrow(dim, start, length))

    def permute(self, order: Sequence[int]) -> "Memory":
        return self._view(self.addresses.permute(*order))

    def reinterpret(self, kind: Kind, shape: Sequence[int], layout: Any) -> "Memory":
        return Memory(self.program, kind, self.start + kind.size * element_numbers(shape, layout), self.start)

    def store(self, value: Value) -> None:
        if value.dtype is not self.dtype or value.shape != self.shape:
            raise TypeError(f"{value.dtype.name} {value.shape} stored as {self.dtype.name} {self.shape}")
        self.program.overwrite(self.addresses, self.dtype.size, value.data)

    def load(self, layout: Any) -> Value:
        return Value(self.program.fetch(self.addresses, self.dtype.size), self.dtype)


def element_numbers(shape: Sequence[int], layout: Any) -> Tensor:
    """Number of every element in memory, with the padding; the swizzle of other layouts is their own affair."""
    numbers = torch.arange(math.prod(shape)).view(*shape)
    return numbers + (0 if layout is None else numbers // layout[0] * layout[1])
