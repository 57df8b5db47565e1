#!/usr/bin/env python
"""What the kernels are when they are launched, without a GPU: registers, spills, shared memory, instructions a tile.

    python benchmarks/kernel_report.py                                  base on a Hopper GPU (sm_90)
    python benchmarks/kernel_report.py --case rows --arch 80 --json     another call, an A100, one JSON line a kernel

Runs the operators of attention and of the residual norm, forward and backward, with a driver that compiles for a target
and launches nothing: each kernel is specialised as in a real launch (what is divisible by 16, what is 1). Resource
usage and machine code come from the tools in Triton's wheel. Takes one to three minutes.

Columns: spill_bytes is the stack of a thread. blocks_per_sm is what registers, shared memory and warps allow on one
multiprocessor. The rest counts instructions of the longest loop, that over tiles, by warp: all of them, shuffles, loads
and stores of the stack, function calls, matrix instructions.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.pop("TRITON_INTERPRET", None)  # read when kernels are defined

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from megadeberta.ops.attention import triton_plan
from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.attention.relative_position import rows_by_distance
from megadeberta.ops.counter_dropout import CounterDropout
from megadeberta.ops.triton_residual_norm import triton_residual_norm

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
REGISTERS, WARPS, BLOCKS = 65536, 64, 32
"""Of a multiprocessor."""
SHARED_BYTES = {80: 164 << 10, 86: 100 << 10, 89: 100 << 10, 90: 228 << 10, 100: 228 << 10}
"""Of a multiprocessor, by compute capability; each block takes 1 KiB more than it asks for (CUDA programming guide)."""
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.a-z]*)\s*(.*?);")


@dataclass(frozen=True)
class Case:
    """One call of attention in bf16 with both position terms; rows: slots of the mask decoder, or None."""

    batch: int = 64
    length: int = 512
    heads: int = 12
    head_size: int = 64
    rows: int | None = None
    masked: bool = True
    dropout: float = 0.1


CASES = {
    "base": Case(),
    "nomask": Case(masked=False),
    "nodrop": Case(dropout=0.0),
    "rows": Case(rows=80),
    "short": Case(batch=128, length=128),
    "long": Case(batch=8, length=2048),
    "d96": Case(batch=8, heads=8, head_size=96),
    "d128": Case(batch=8, heads=8, head_size=128),
}


@dataclass(frozen=True)
class Report:
    """What one kernel was compiled to."""

    kernel: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    blocks_per_sm: int
    instructions: int
    shuffles: int
    local: int
    calls: int
    tensor: int


class _NoGpu:
    """Stands in for the driver of a GPU."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cuda


@contextmanager
def compiling(arch: int) -> Iterator[list[tuple[str, Any]]]:
    """Let every launch compile for ``arch`` and do nothing else; gives the list of (name, compiled kernel)."""
    launches: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        module = self.fn.__module__.rpartition(".")[2]
        launches.append((f"{module}.{self.fn.__name__}", kernel.result() if hasattr(kernel, "result") else kernel))
        return kernel

    with patch.object(driver, "_active", _NoGpu(arch)), patch.object(JITFunction, "run", compile_only):
        yield launches


def attend(case: Case, backend: str) -> None:
    """Forward and backward of the case; tensors have the real shapes and strides."""

    def hidden(count: int) -> Tensor:
        return _by_head(torch.zeros(case.batch, count, case.heads * case.head_size, dtype=torch.bfloat16), case)

    rows = rows_by_distance(case.length, 256, 512).to(torch.int32)
    rows = rows - rows[0]
    tables = (torch.zeros(int(rows[-1]) + 1, case.heads * case.head_size, dtype=torch.bfloat16) for _ in range(2))
    queries = case.rows or case.length
    mask = dropout = None
    if case.masked:
        end = torch.full((case.batch, queries), case.length, dtype=torch.int32)
        mask = AttentionMask(torch.zeros_like(end), end, torch.ones(case.batch, case.length, dtype=torch.int8))
    if case.dropout:
        dropout = CounterDropout(case.dropout, torch.tensor(0), torch.arange(case.batch))
    context = disentangled_attention(
        hidden(queries), hidden(case.length), hidden(case.length),
        position=PositionTerms(rows, *(_by_head(table, case) for table in tables)),
        query_positions=None if case.rows is None else torch.arange(queries).expand(case.batch, -1),
        mask=mask, dropout=dropout, backend=backend,
    )  # fmt: skip
    context.sum().backward()


def _by_head(joint: Tensor, case: Case) -> Tensor:
    return joint.unflatten(-1, (-1, case.head_size)).transpose(-3, -2).requires_grad_()


def normalize(case: Case) -> None:
    """Forward and backward of the residual norm after the attention of the case."""
    shape = (case.batch, case.length, case.heads * case.head_size)
    branch, residual = (torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    weight, bias = (torch.ones(shape[-1], dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    keys = torch.zeros(shape[:2], dtype=torch.int64)
    dropout = {"keys": keys, "site": 1, "probability": case.dropout}
    triton_residual_norm(branch, residual, weight, bias, eps=1e-7, **dropout).sum().backward()


def describe(name: str, kernel: Any, arch: int) -> Report:
    """Read the machine code of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _output("cuobjdump", "--dump-resource-usage", str(cubin))
        loop = longest_loop(_output("nvdisasm", "-c", str(cubin)))
    registers, stack = (int(re.findall(rf"{what}:(\d+)", usage)[-1]) for what in ("REG", "STACK"))
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * warps)
    return Report(
        kernel=name,
        arch=arch,
        registers=registers,
        spill_bytes=stack,
        shared_bytes=shared,
        warps=warps,
        blocks_per_sm=min(by_registers, SHARED_BYTES[arch] // (shared + 1024), WARPS // warps, BLOCKS),
        instructions=sum(loop.values()),
        shuffles=loop["SHFL"],
        local=loop["LDL"] + loop["STL"],
        calls=loop["CALL"],
        tensor=loop["HGMMA"] + loop["HMMA"],
    )


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / tool), *arguments], capture_output=True, text=True, check=True).stdout


def longest_loop(assembly: str) -> Counter[str]:
    """Instructions by opcode of the longest backward branch: the loop over tiles, with what is nested in it."""
    codes: list[tuple[str, str]] = []
    places: dict[str, int] = {}
    for line in assembly.splitlines():
        if label := _LABEL.match(line):
            places[label[1]] = len(codes)
        elif found := _INSTRUCTION.match(line):
            codes.append((found[1], found[2]))
    longest = range(0)
    for place, (code, arguments) in enumerate(codes):
        target = re.search(r"\((\.L_x_\d+)\)", arguments) if code.startswith("BRA") else None
        start = places.get(target[1], place + 1) if target else place + 1
        longest = max(longest, range(start, place + 1), key=len)
    return Counter(code.split(".")[0] for code, _ in (codes[place] for place in longest))


def report(case: Case, arch: int, *, backend: str = "triton", norm: bool = True) -> list[Report]:
    """Of every kernel that attention and, if wanted, the residual norm launch."""
    with compiling(arch) as launches:
        attend(case, backend)
        if norm:
            normalize(case)
    return [describe(name, kernel, arch) for name, kernel in launches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="base")
    parser.add_argument("--arch", type=int, choices=SHARED_BYTES, default=90)
    parser.add_argument("--backend", default="triton", help="of attention: triton or gluon")
    parser.add_argument("--tile", type=int, choices=(32, 64), help="queries and keys of a tile, with four warps")
    parser.add_argument("--json", action="store_true", help="one JSON line a kernel")
    given = parser.parse_args()
    if given.tile:
        kernel = triton_plan.KernelPlan(given.tile, given.tile, warps=4, stages=1)
        triton_plan.default_plan = lambda shape: triton_plan.AttentionPlan(kernel, kernel, kernel, kernel)
    reports = report(CASES[given.case], given.arch, backend=given.backend)
    if given.json:
        for one in reports:
            print(json.dumps(asdict(one)))
        return
    print(f"case {given.case}, sm_{given.arch}, triton {triton.__version__}")
    names = [field.name for field in fields(Report)]
    print("  ".join([names[0].ljust(39), *names[1:]]))
    for one in reports:
        values = [str(getattr(one, name)).rjust(len(name)) for name in names[1:]]
        print("  ".join([one.kernel.ljust(39), *values]))


if __name__ == "__main__":
    main()
