"""Runs the Gluon kernels on a CPU: their own functions, with torch in place of ``gl`` and of Hopper's instructions.

Gluon has no interpreter. Here every function of the kernels' modules runs as it is written, one program after another,
and every operation on a tile is one operation of torch. What that proves: the arithmetic, the addresses of global and of
shared memory (an access outside raises), the padding of shared memory, and the order of events in a program, by these
rules, each of which raises ``Hazard``:

* what one thread stores another reads, or overwrites, only after a barrier, and so for what it has read;
* shared memory is read only where it was written, in elements of the size they were written in (bytes of integers aside);
* a copy is read after it was waited for and a barrier; tensor cores also want a fence before that barrier;
* what tensor cores read is overwritten only after their product was waited for and a barrier;
* a product is used only after it was waited for, and nothing is under way at the end.

What it does not prove: that the compiler and the GPU do the same with registers (layouts are ignored) and with memory
(threads are not run apart), nor anything about speed.

With ``exact=True`` two-byte numbers hold fp32, so that the arithmetic is compared closely.

Shapes: any; S is the shape of a tile.
"""

import builtins
import math
import types
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from megadeberta.ops.attention import triton_operators

SHARED_BYTES = 227 * 1024
"""Shared memory of a block on sm_90."""


class Hazard(AssertionError):
    """An order of events that a GPU does not keep."""


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
_OF_TORCH = {
    torch.int8: INT8,
    torch.int32: INT32,
    torch.int64: INT64,
    torch.float32: FLOAT32,
    torch.bfloat16: BFLOAT16,
    torch.float16: FLOAT16,
}
_FLOAT32 = ("LSE", "DELTA", "DKR", "DQR")
"""Arguments of the kernels that are fp32, whatever the queries are."""


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


def _value(operand: Any, like: Kind | None = None) -> Value:
    if isinstance(operand, Value):
        return operand
    if isinstance(operand, bool):
        return Value(torch.tensor(operand), INT1)
    if isinstance(operand, int):
        integer = like is not None and not like.torch.is_floating_point and like is not INT1
        return Value(torch.tensor(operand), like if integer else INT32 if abs(operand) < 2**31 else INT64)
    return Value(torch.tensor(operand, dtype=torch.float32), FLOAT32)


def _common(left: Any, right: Any) -> tuple[Value, Value, Kind]:
    left = _value(left, right.dtype if isinstance(right, Value) else None)
    right = _value(right, left.dtype)
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
        left, right, kind = _common(self, other)
        return Value(function(left.data, right.data), INT1 if compares else kind)

    setattr(Value, f"__{name}__", forward)
    if not compares:
        setattr(Value, f"__r{name}__", lambda self, other: forward(_value(other, self.dtype), self))


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
        return Pointer(self.memory, self.offsets + _value(offset).data, self.dtype)

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


@dataclass
class Program:
    """Shared memory of one program, and what is under way in it."""

    number: int
    count: int
    epoch: int = 1
    """Barriers passed."""
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
        return Memory(self.program, kind, self.start + kind.size * _elements(shape, layout), self.start)

    def store(self, value: Value) -> None:
        if value.dtype is not self.dtype or value.shape != self.shape:
            raise TypeError(f"{value.dtype.name} {value.shape} stored as {self.dtype.name} {self.shape}")
        self.program.overwrite(self.addresses, self.dtype.size, value.data)

    def load(self, layout: Any) -> Value:
        return Value(self.program.fetch(self.addresses, self.dtype.size), self.dtype)


def _elements(shape: Sequence[int], layout: Any) -> Tensor:
    """Number of every element in memory, with the padding; the swizzle of other layouts is their own affair."""
    numbers = torch.arange(math.prod(shape)).view(*shape)
    return numbers + (0 if layout is None else numbers // layout[0] * layout[1])


def _emulated(program: Program) -> types.SimpleNamespace:
    """``gl`` for one program."""

    def elementwise(function: Callable[..., Tensor]) -> Callable[..., Value]:
        def apply(*operands: Any) -> Value:
            if len(operands) == 1:
                return Value(function(operands[0].data), operands[0].dtype)
            left, right, kind = _common(*operands)
            return Value(function(left.data, right.data), kind)

        return apply

    def reduced(function: Callable[..., Tensor]) -> Callable[..., Value]:
        return lambda value, axis: Value(function(value.data, axis), value.dtype)

    def where(condition: Any, left: Any, right: Any) -> Value:
        left, right, kind = _common(left, right)
        return Value(torch.where(_value(condition).data, left.data, right.data), kind)

    def store(pointer: Pointer, value: Value, mask: Value | None = None) -> None:
        offsets, counts = pointer.places(mask)
        data = value.data.expand(offsets.shape)[counts]
        pointer.memory[offsets[counts]] = data.to(pointer.memory.dtype)

    def allocate(kind: Kind, shape: Sequence[int], layout: Any) -> Memory:
        start = -(-program.used // 1024) * 1024
        addresses = start + kind.size * _elements(shape, layout)
        program.used = int(addresses.max()) + kind.size
        program.require(program.used <= SHARED_BYTES, "more shared memory than a block has")
        return Memory(program, kind, addresses, start)

    def barrier() -> None:
        program.epoch += 1

    def inline_asm(asm: str, constraints: str, operands: list[Memory], kind: Kind) -> Value:
        assert asm == "mov.b32 $0, $1;"
        return Value(operands[0].addresses.flatten()[0], kind)

    def inline_asm_elementwise(
        asm: str, constraints: str, operands: list[Value], *, dtype: Kind, is_pure: bool, pack: int
    ) -> Value:
        assert not is_pure and pack == 1
        if asm.startswith("st.shared.b16 [$1], $2;"):
            program.overwrite(operands[0].data, 2, operands[1].data)
            return operands[0]
        size = {"ld.shared.b16 $0, [$1];": 2, "ld.shared.b32 $0, [$1];": 4}[asm]
        found = Value(torch.zeros(()), dtype)
        found.data = program.fetch(operands[0].data, size)
        found.shape = tuple(found.data.shape)
        return found

    def padded(pairs: list[list[int]], shape: Sequence[int], order: Sequence[int]) -> tuple[int, int]:
        return tuple(pairs[0])

    nothing = lambda *_, **__: None  # noqa: E731
    return types.SimpleNamespace(
        constexpr=None,
        int8=INT8, int16=INT16, int32=INT32, int64=INT64, uint8=UINT8, uint32=UINT32, uint64=UINT64,
        float32=FLOAT32, float16=FLOAT16, bfloat16=BFLOAT16,
        NVMMADistributedLayout=nothing, BlockedLayout=nothing, SliceLayout=nothing, DotOperandLayout=nothing,
        NVMMASharedLayout=nothing, SwizzledSharedLayout=nothing,
        PaddedSharedLayout=types.SimpleNamespace(with_identity_for=padded),
        program_id=lambda axis: Value(torch.tensor(program.number), INT32),
        num_programs=lambda axis: Value(torch.tensor(program.count), INT32),
        num_warps=lambda: 4,
        static_range=range,
        cdiv=lambda number, size: -(-number // size),
        arange=lambda start, end, layout: Value(torch.arange(start, end), INT32),
        zeros=lambda shape, kind, layout: Value(torch.zeros(shape), kind),
        full=lambda shape, fill, kind, layout: Value(torch.full(shape, fill), kind),
        minimum=elementwise(torch.minimum), maximum=elementwise(torch.maximum),
        exp2=elementwise(torch.exp2), log=elementwise(torch.log),
        max=reduced(torch.amax), min=reduced(torch.amin), sum=reduced(torch.sum),
        where=where,
        join=lambda a, b: Value(torch.stack(torch.broadcast_tensors(a.data, b.data), -1), a.dtype),
        reshape=lambda value, shape: Value(value.data.reshape(shape), value.dtype),
        convert_layout=lambda value, layout: value,
        load=lambda pointer, mask=None, other=None: pointer.read(mask, other),
        store=store, allocate_shared_memory=allocate, barrier=barrier,
        inline_asm=inline_asm, inline_asm_elementwise=inline_asm_elementwise,
    )  # fmt: skip


def _hopper(program: Program) -> dict[str, Any]:
    """Asynchronous copies and products."""

    def copy(memory: Memory, pointer: Pointer) -> None:
        if memory.shape != pointer.shape or memory.dtype is not pointer.dtype:
            raise TypeError(f"{pointer.dtype.name} {pointer.shape} copied to {memory.dtype.name} {memory.shape}")
        program.overwrite(memory.addresses, memory.dtype.size, pointer.read(None, None).data, copy=True)

    def commit() -> None:
        program.groups.append([])

    def wait_for_copies(outstanding: int) -> None:
        program.require(not program.groups[-1], "a copy belongs to no group")
        while len(program.groups) - 1 > outstanding:
            for bytes_ in program.groups.pop(0):
                program.copying[bytes_] = False
                program.written[bytes_] = program.epoch  # for the thread that copied; for others after a barrier

    def fence() -> None:
        visible = (program.written >= 0) & ~program.copying & (program.fenced < 0)
        program.fenced[visible] = program.epoch

    def operand(memory: Memory) -> tuple[Tensor, Tensor]:
        data = program.fetch(memory.addresses, memory.dtype.size)
        bytes_ = memory.addresses.unsqueeze(-1) + torch.arange(memory.dtype.size)
        fenced = program.fenced[bytes_]
        program.require((fenced >= 0) & (fenced < program.epoch), "tensor cores read without a fence and a barrier")
        program.multiplied[bytes_] += 1
        return data.float(), bytes_

    def multiply(left: Any, right: Memory, total: Any, *, use_acc: bool = True, is_async: bool = False) -> Product:
        assert is_async
        reads = []
        if isinstance(left, Memory):
            first, bytes_ = operand(left)
            reads.append(bytes_)
        else:
            program.require(torch.tensor(left.dtype.size == 2), "operands have two bytes")
            first = left.data.float()
        second, bytes_ = operand(right)
        value = Value(first @ second, FLOAT32)
        total = total.value if isinstance(total, Product) else total
        if value.shape != total.shape:
            raise TypeError(f"product {value.shape} added to {total.shape}")
        product = Product(value + total if use_acc else value)
        program.products.append((product, [*reads, bytes_]))
        return product

    def wait_for_products(outstanding: int, deps: list[Product]) -> Any:
        while len(program.products) > outstanding:
            for bytes_ in program.products.pop(0)[1]:
                program.multiplied[bytes_] -= 1
                program.read[bytes_] = program.epoch
        pending = [product for product, _ in program.products]
        program.require(not any(product in pending for product in deps), "used before it was waited for")
        values = tuple(product.value for product in deps)
        return values[0] if len(values) == 1 else values

    return {
        "async_copy": types.SimpleNamespace(async_load=copy, commit_group=commit, wait_group=wait_for_copies),
        "fence_async_shared": fence,
        "warpgroup_mma": multiply,
        "warpgroup_mma_wait": wait_for_products,
    }


class Kernel:
    """Stands in for a jitted kernel: ``kernel[grid](*args, **constants)``."""

    def __init__(self, kernel: Any, *, exact: bool, reverse: bool = False) -> None:
        self.kernel, self.exact, self.reverse = kernel, exact, reverse

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
            numbers = reversed(range(grid[0])) if self.reverse else range(grid[0])
            for number in numbers:
                program = Program(number, grid[0])
                function = _rebound(self.kernel, _emulated(program), _hopper(program), {})
                function(*map(self._argument, self.kernel.arg_names, args), **constants)
                program.require(not any(program.groups), "a copy was not waited for")
                program.require(not program.products, "a product was not waited for")

        return launch

    def _argument(self, name: str, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        kind = _OF_TORCH[argument.dtype]
        return Pointer.to_tensor(argument, EXACT16 if self.exact and kind is FLOAT32 and name not in _FLOAT32 else kind)


def _rebound(function: Any, gl: Any, hopper: dict[str, Any], made: dict[int, Any]) -> Callable[..., Any]:
    """The Python function under a jitted one, with the emulation in the place of what its module imports."""
    plain = function.fn
    if id(plain) in made:
        return made[id(plain)]
    names: dict[str, Any] = {}
    found = types.FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    made[id(plain)] = found
    for name, value in plain.__globals__.items():
        if name == "gl":
            value = gl
        elif name in hopper:
            value = hopper[name]
        elif hasattr(value, "fn"):
            value = _rebound(value, gl, hopper, made)
        elif type(value).__name__ == "constexpr":
            value = value.value
        names[name] = value
    names["range"] = lambda *bounds: range(*(int(bound) for bound in bounds))
    names["__builtins__"] = builtins
    return found


@contextmanager
def emulated_kernels(*, exact: bool = False, reverse: bool = False) -> Any:
    """The backend "gluon" runs by the emulation, on a CPU. ``reverse`` runs the programs from the last to the first."""
    from megadeberta.ops.attention import gluon_kernels

    names = ("forward_kernel", "query_kernel", "key_kernel", "table_kernel")
    kernels = {name: Kernel(getattr(gluon_kernels, name), exact=exact, reverse=reverse) for name in names}
    module = types.SimpleNamespace(**kernels)
    chosen = triton_operators._kernels
    with patch.object(triton_operators, "_kernels", lambda name: module if name == "gluon" else chosen(name)):
        yield
