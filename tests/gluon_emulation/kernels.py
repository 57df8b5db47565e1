"""``gl`` and Hopper's instructions in torch, and the kernels that run with them.

Shapes: any.
"""

import builtins
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from megadeberta.ops.attention import triton_call, triton_operators
from tests.gluon_emulation.memory import SHARED_BYTES, Memory, Product, Program, element_numbers
from tests.gluon_emulation.values import (
    BFLOAT16,
    EXACT16,
    FLOAT16,
    FLOAT32,
    INT8,
    INT16,
    INT32,
    INT64,
    OF_TORCH,
    UINT8,
    UINT32,
    UINT64,
    Kind,
    Pointer,
    Value,
    as_value,
    common,
)

_FLOAT32 = ("LSE", "DELTA", "DKR", "DQR")
"""Arguments of the kernels that are fp32, whatever the queries are."""


def _emulated(program: Program) -> types.SimpleNamespace:
    """``gl`` for one program."""

    def elementwise(function: Callable[..., Tensor]) -> Callable[..., Value]:
        def apply(*operands: Any) -> Value:
            if len(operands) == 1:
                return Value(function(operands[0].data), operands[0].dtype)
            left, right, kind = common(*operands)
            return Value(function(left.data, right.data), kind)

        return apply

    def reduced(function: Callable[..., Tensor]) -> Callable[..., Value]:
        return lambda value, axis: Value(function(value.data, axis), value.dtype)

    def where(condition: Any, left: Any, right: Any) -> Value:
        left, right, kind = common(left, right)
        return Value(torch.where(as_value(condition).data, left.data, right.data), kind)

    def store(pointer: Pointer, value: Value, mask: Value | None = None) -> None:
        offsets, counts = pointer.places(mask)
        data = value.data.expand(offsets.shape)[counts]
        pointer.memory[offsets[counts]] = data.to(pointer.memory.dtype)

    def allocate(kind: Kind, shape: Sequence[int], layout: Any) -> Memory:
        start = -(-program.used // 1024) * 1024
        addresses = start + kind.size * element_numbers(shape, layout)
        program.used = int(addresses.max()) + kind.size
        program.require(program.used <= SHARED_BYTES, "more shared memory than a block has")
        return Memory(program, kind, addresses, start)

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
        store=store, allocate_shared_memory=allocate, barrier=program.barrier,
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

    def wait_for_products(outstanding: int, deps: list[Product | Value]) -> Any:
        while len(program.products) > outstanding:
            for bytes_ in program.products.pop(0)[1]:
                program.multiplied[bytes_] -= 1
                program.read[bytes_] = program.epoch
        pending = {id(product) for product, _ in program.products}
        program.require(not any(id(one) in pending for one in deps), "used before it was waited for")
        values = tuple(one.value if isinstance(one, Product) else one for one in deps)
        return values[0] if len(values) == 1 else values

    return {
        "async_copy": types.SimpleNamespace(async_load=copy, commit_group=commit, wait_group=wait_for_copies),
        "fence_async_shared": fence,
        "warpgroup_mma": multiply,
        "warpgroup_mma_wait": wait_for_products,
    }


class Kernel:
    """Stands in for a jitted kernel: ``kernel[grid](*args, **constants)``."""

    def __init__(self, kernel: Any, *, exact: bool, without_barrier: int | None) -> None:
        self.kernel, self.exact, self.without_barrier = kernel, exact, without_barrier

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
            for number in range(grid[0]):
                program = Program(number, grid[0], self.without_barrier)
                function = _rebound(self.kernel, _emulated(program), _hopper(program), {})
                function(*map(self._argument, self.kernel.arg_names, args), **constants)
                program.require(not any(program.groups), "a copy was not waited for")
                program.require(not program.products, "a product was not waited for")

        return launch

    def _argument(self, name: str, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        kind = OF_TORCH[argument.dtype]
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
def emulated_kernels(*, exact: bool = False, without_barrier: tuple[str, int] | None = None) -> Iterator[None]:
    """Let the backend "gluon" run by the emulation, on any tensors.

    Args:
        exact: two-byte numbers hold fp32; for calls in fp32.
        without_barrier: kernel and number of a barrier that is left out; a program's barriers are numbered from 0.
    """
    from megadeberta.ops.attention import gluon_kernels

    names = ("forward_kernel", "query_kernel", "key_kernel", "table_kernel")
    left_out = dict((without_barrier,) if without_barrier else ())
    kernels = {
        name: Kernel(getattr(gluon_kernels, name), exact=exact, without_barrier=left_out.get(name)) for name in names
    }
    module = types.SimpleNamespace(**kernels)
    chosen = triton_operators._kernels
    with (
        patch.object(triton_operators, "_kernels", lambda name: module if name == "gluon" else chosen(name)),
        patch.object(triton_call, "gluon_takes", lambda *_: True),
    ):
        yield
