"""Kernels are compiled before they are needed, several at once, within a time; none is launched."""

import time
from collections.abc import Callable

from megadeberta.ops.attention.compile_ahead import compile_ahead, kernels_to_launch


class _Kernel:
    """Counts what is compiled and what is launched."""

    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.seconds, self.error = seconds, error
        self.compiled: list[tuple[object, ...]] = []
        self.launched = 0

    def warmup(self, *arguments: object, grid: object, **options: object) -> None:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.compiled.append((arguments, grid, options))

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*arguments: object, **options: object) -> None:
            self.launched += 1

        return launch


class _Module:
    def __init__(self, kernel: _Kernel) -> None:
        self.forward_kernel = self.query_kernel = self.key_kernel = self.table_kernel = kernel

    def call(self) -> None:
        kernels_to_launch(self).forward_kernel[(7,)]("tensor", num_warps=4)
        kernels_to_launch(self).table_kernel[(8,)]("tensor", num_warps=8)


def test_compiling_ahead_launches_nothing() -> None:
    kernel = _Kernel()
    assert compile_ahead({"call": _Module(kernel).call}, seconds=10) == {}
    assert sorted(kernel.compiled, key=str) == [
        (("tensor",), (7,), {"num_warps": 4}),
        (("tensor",), (8,), {"num_warps": 8}),
    ]
    assert kernel.launched == 0
    _Module(kernel).call()
    assert (kernel.launched, len(kernel.compiled)) == (2, 2)


def test_what_does_not_compile_in_time_is_given_up() -> None:
    calls = {
        "good": _Module(_Kernel()).call,
        "bad": _Module(_Kernel(error=RuntimeError("out of shared memory"))).call,
        "late": _Module(_Kernel(seconds=3.0)).call,
    }
    assert compile_ahead(calls, seconds=1.0) == {
        "bad": "failed with RuntimeError: out of shared memory",
        "late": "was not compiled within 1 s",
    }
    assert kernels_to_launch(calls) is calls
