"""Compile every kernel for a Hopper GPU, which needs no GPU: what the interpreter accepts, the compiler may not.

Run as a program with the names of the kernels; prints the shared memory of each in bytes.
"""

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megadeberta.ops import triton_residual_norm
from megadeberta.ops.attention import triton_kernels
from megadeberta.ops.attention.triton_plan import plan_tiles
from megadeberta.ops.counter_dropout import ROUNDS

HOPPER = GPUTarget("cuda", 90, 32)
ATTENTION = ("forward_kernel", "query_kernel", "key_kernel", "table_kernel")
RESIDUAL_NORM = ("forward_kernel", "backward_kernel")
TYPES = {
    "*bf16": "Q K V KR QR OUT DO DQ DK DV BRANCH RESIDUAL WEIGHT BIAS NORMED TOTAL GRAD GRAD_BRANCH GRAD_RESIDUAL",
    "*fp32": "LSE DELTA DKR DQR MEAN SCALE GRAD_WEIGHT GRAD_BIAS",
    "*i64": "DRAWS KEYS",
    "*i32": "ROWS BEGIN END POS",
    "*i8": "REAL",
    "fp32": "scale keep_scale eps",
}
STRIDES = dict.fromkeys(("sq", "sk", "sv", "so", "sdo", "sdq", "sdk", "sdv"), 3) | {"s_kr": 2, "s_qr": 2}


def attention_constants(head_size: int, *, separate_rows: bool) -> dict[str, Any]:
    """With masks, dropout and both position terms."""
    flags = dict.fromkeys(("C2P", "P2C", "HAS_MASK", "HAS_REAL", "DROPOUT"), True)
    return flags | {"HAS_POSITIONS": separate_rows, "ROUNDS": ROUNDS, **plan_tiles(head_size).options()}


def shared_bytes(kernel: Any, constants: dict[str, Any]) -> int:
    """Shared memory of the kernel compiled with ``constants``, which may have ``num_warps``."""
    constants = dict(constants)
    options = {"num_warps": constants.pop("num_warps")}
    signature = {argument: _type(argument, constants) for argument in kernel.arg_names}
    indexed = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    return triton.compile(ASTSource(kernel, signature, indexed), target=HOPPER, options=options).metadata.shared


def _type(argument: str, constants: dict[str, Any]) -> str | tuple[str, ...]:
    if argument in constants:
        return "constexpr"
    if argument in STRIDES:
        return ("i32",) * STRIDES[argument]
    return next((kind for kind, names in TYPES.items() if argument in names.split()), "i32")


if __name__ == "__main__":
    constants = attention_constants(int(sys.argv[1]), separate_rows=sys.argv[2] == "rows")
    shared = {f"attention {n}": shared_bytes(getattr(triton_kernels, n), constants) for n in ATTENTION}
    for n in RESIDUAL_NORM:
        tile = {"DROPOUT": True, **triton_residual_norm.tile(768)}
        shared[f"residual norm {n}"] = shared_bytes(getattr(triton_residual_norm, n), tile)
    print(json.dumps(shared))
