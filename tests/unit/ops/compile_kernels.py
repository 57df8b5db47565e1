"""Compile every kernel for a Hopper GPU, which needs no GPU: what the interpreter accepts, the compiler may not.

Run as a program with the names of the kernels; prints the shared memory of each in bytes.
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megadeberta.ops import triton_kernels
from megadeberta.ops.counter_dropout import ROUNDS
from megadeberta.ops.triton_plan import plan_tiles

HOPPER = GPUTarget("cuda", 90, 32)
BF16, FP32, INT32 = ("Q", "K", "V", "KR", "QR", "OUT", "DO", "DQ", "DK", "DV"), ("LSE", "DELTA", "DKR", "DQR"), "i32"
STRIDES = ("sq", "sk", "sv", "so", "sdo", "sdq", "sdk", "sdv")


def shared_bytes(name: str, *, head_size: int, separate_rows: bool) -> int:
    """Shared memory of the compiled kernel, with masks, dropout and both position terms."""
    kernel, plan = getattr(triton_kernels, name), plan_tiles(head_size)
    options = plan.options()
    warps = options.pop("num_warps")
    constants = dict.fromkeys(("C2P", "P2C", "HAS_MASK", "HAS_REAL", "DROPOUT"), True)
    constants |= {"HAS_POSITIONS": separate_rows, "ROUNDS": ROUNDS, **options}
    signature = {argument: _type(argument, constants) for argument in kernel.arg_names}
    indexed = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    compiled = triton.compile(ASTSource(kernel, signature, indexed), target=HOPPER, options={"num_warps": warps})
    return compiled.metadata.shared


def _type(argument: str, constants: dict[str, object]) -> str | tuple[str, ...]:
    kinds = {"constexpr": constants, "*bf16": BF16, "*fp32": FP32, "fp32": ("scale", "keep_scale")}
    kinds |= {"*i8": ("REAL",), "*i64": ("SEED",), "*i32": ("ROWS", "BEGIN", "END", "POS")}
    if argument in STRIDES:
        return (INT32,) * 3
    if argument in ("s_kr", "s_qr"):
        return (INT32,) * 2
    return next((kind for kind, names in kinds.items() if argument in names), INT32)


if __name__ == "__main__":
    names = ("forward_kernel", "query_kernel", "key_kernel", "table_kernel")
    head_size, separate_rows = int(sys.argv[1]), sys.argv[2] == "rows"
    print(json.dumps({n: shared_bytes(n, head_size=head_size, separate_rows=separate_rows) for n in names}))
