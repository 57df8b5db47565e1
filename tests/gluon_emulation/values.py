"""Numbers of the emulation: scalars and tiles in registers, and global memory.

Shapes: any.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """An element type; ``torch`` is what holds it here."""

    name: str
    size: int
    torch: torch.dtype
    signed: bool = True

    @property
    def primitive_bitwidth(self) -> int:
        return 8 * self.size

    @property
    def element_ty(self) -> "Kind":
        return self

    def hold(self, data: Tensor) -> Tensor:
        """``data`` as a number of this kind, integers modulo their range."""
        if self.torch.is_floating_point or self.torch == torch.bool:
            return data.to(self.torch)
        data = data.to(torch.int64)
        if self.size == 8:
            return data
        bits = 8 * self.size
        data = data & ((1 << bits) - 1)
        return torch.where(data >> (bits - 1) == 1, data - (1 << bits), data) if self.signed else data


INT1 = Kind("int1", 1, torch.bool)
UINT8, INT8, INT16 = Kind("uint8", 1, torch.int64, False), Kind("int8", 1, torch.int64), Kind("int16", 2, torch.int64)
INT32, UINT32 = Kind("int32", 4, torch.int64), Kind("uint32", 4, torch.int64, False)
INT64, UINT64 = Kind("int64", 8, torch.int64), Kind("uint64", 8, torch.int64, False)
FLOAT32 = Kind("float32", 4, torch.float32)
BFLOAT16, FLOAT16 = Kind("bfloat16", 2, torch.bfloat16), Kind("float16", 2, torch.float16)
EXACT16 = Kind("exact16", 2, torch.float32)
"""Two bytes, but held in fp32: with it the arithmetic is compared closely."""

OF_TORCH = {
    torch.int8: INT8,
    torch.int32: INT32,
    torch.int64: INT64,
    torch.float32: FLOAT32,
    torch.bfloat16: BFLOAT16,
    torch.float16: FLOAT16,
}


class Value:
    """A scalar or tile in registers."""

    def __init__(self, data: Tensor, kind: Kind) -> None:
        self.data, self.dtype = kind.hold(data), kind
        self.type = types.SimpleNamespace(layout=None)
        self.shape = tuple(self.data.shape)

    def to(self, kind: Kind, bitcast: bool = False) -> "Value":
        if bitcast and kind.size != self.dtype.size:
            raise TypeError(f"{self.dtype.name} has other bits than {kind.name}")
        if bitcast and INT16 in (kind, self.dtype):  # two bytes of a float are passed on as they are
            value = Value.__new__(Value)
            value.__dict__ = self.__dict__ | {"dtype": kind}
            return value
        return Value(self.data, kind)

    def __getitem__(self, index: Any) -> "Value":
        return Value(self.data[index], self.dtype)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __int__(self) -> int:
        return int(self.data)

    __index__ = __int__

    def __neg__(self) -> "Value":
        return Value(-self.data, self.dtype)


def as_value(operand: Any, like: Kind | None = None) -> Value:
    if isinstance(operand, Value):
        return operand
    if isinstance(operand, bool):
        return Value(torch.tensor(operand), INT1)
    if isinstance(operand, int):
        integer = like is not None and not like.torch.is_floating_point and like is not INT1
        return Value(torch.tensor(operand), like if integer else INT32 if abs(operand) < 2**31 else INT64)
    return Value(torch.tensor(operand, dtype=torch.float32), FLOAT32)


def common(left: Any, right: Any) -> tuple[Value, Value, Kind]:
    left = as_value(left, right.dtype if isinstance(right, Value) else None)
    right = as_value(right, left.dtype)
    kinds = {left.dtype, right.dtype} - {INT1} or {INT1}
    if INT16 in kinds:
        raise TypeError("bits are no numbers")
    if len(kinds) == 1:
        return left, right, kinds.pop()
    if any(kind.torch.is_floating_point for kind in kinds):
        if FLOAT32 not in kinds:
            raise TypeError(f"which is the wider of {[kind.name for kind in kinds]}?")
        return left, right, FLOAT32
    return left, right, max(kinds, key=lambda kind: (kind.size, not kind.signed))


def _operator(name: str, function: Callable[[Tensor, Tensor], Tensor], *, compares: bool = False) -> None:
    def forward(self: Value, other: Any) -> Any:
        if isinstance(other, Pointer):
            return NotImplemented
        left, right, kind = common(self, other)
        return Value(function(left.data, right.data), INT1 if compares else kind)

    setattr(Value, f"__{name}__", forward)
    if not compares:
        setattr(Value, f"__r{name}__", lambda self, other: forward(as_value(other, self.dtype), self))


def _truncated(left: Tensor, right: Tensor) -> Tensor:
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


for _name, _function in {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "truediv": torch.true_divide, "floordiv": _truncated,
    "mod": torch.fmod, "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor,
}.items():  # fmt: skip
    _operator(_name, _function)
for _name, _function in {
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
}.items():
    _operator(_name, _function, compares=True)
Value.__hash__ = object.__hash__  # type: ignore[method-assign]


def _shifted(self: Value, places: int) -> Value:
    if self.dtype is UINT64:  # held as a signed number
        return Value((self.data >> places) & ((1 << (64 - places)) - 1), UINT64)
    return Value(self.data >> places, self.dtype)


Value.__rshift__ = _shifted  # type: ignore[attr-defined]


class Pointer:
    """Global memory from an element of a tensor on, and a tile of offsets."""

    def __init__(self, memory: Tensor, offsets: Tensor, kind: Kind) -> None:
        self.memory, self.offsets, self.dtype = memory, offsets, kind

    @classmethod
    def to_tensor(cls, tensor: Tensor, kind: Kind) -> "Pointer":
        size = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
        return cls(tensor.detach().as_strided((size,), (1,)), torch.tensor(0), kind)

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.memory, self.offsets + as_value(offset).data, self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.offsets.shape)

    def places(self, mask: Value | None) -> tuple[Tensor, Tensor]:
        """Offsets and which of them count; those must be inside."""
        counts = torch.ones_like(self.offsets, dtype=torch.bool) if mask is None else mask.data
        counts, offsets = torch.broadcast_tensors(counts, self.offsets)
        outside = counts & ((offsets < 0) | (offsets >= self.memory.numel()))
        if outside.any():
            raise IndexError(f"{int(outside.sum())} elements outside of global memory")
        return torch.where(counts, offsets, 0), counts

    def read(self, mask: Value | None, other: Any) -> Value:
        offsets, counts = self.places(mask)
        found = self.memory[offsets]
        return Value(found if mask is None else torch.where(counts, found, other), self.dtype)
