"""Compile the kernels over logits of the base model as a launch does, for the compute capability given; needs no GPU.

Prints a JSON object by kernel: spilled bytes, programs a multiprocessor, fused multiply-adds and narrow loads
of the loop over a row.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from kernel_report import TOOLS, compiling, describe, longest_loop  # first: it turns off the interpreter

import torch  # isort: skip

from megadeberta.ops.triton_gumbel_max import triton_best_ids
from megadeberta.ops.triton_softmax_rows import TritonRows

ROWS, VOCABULARY = 32, 128_100


def _launch() -> None:
    """Draw; statistics and error in one launch, and in two."""
    logits = torch.zeros(ROWS, VOCABULARY, dtype=torch.bfloat16)
    columns = torch.zeros(ROWS, dtype=torch.int64)
    triton_best_ids(logits, columns, 1.0, 0)
    TritonRows(logits, columns, overwrite=True).statistics(with_error=True)
    rows = TritonRows(logits, columns, overwrite=True)
    rows.error(rows.statistics(with_error=False))


def _machine_code(kernel) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(kernel.asm["cubin"])
        return os.popen(f"{TOOLS / 'nvdisasm'} -c {path}").read()


if __name__ == "__main__":
    arch = int(sys.argv[1])
    with compiling(arch) as launches:
        _launch()
    found = {}
    for number, (name, kernel) in enumerate(launches):
        report, code = describe(name, kernel, arch), _machine_code(kernel)
        found[f"{number} {name}"] = {
            "spilled": report.spill_bytes,
            "programs": report.blocks_per_sm,
            "fused": longest_loop(code)["FFMA"],
            "narrow loads": code.count("LDG.E.U16"),
        }
    print(json.dumps(found))
