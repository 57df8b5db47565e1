"""Measurements for the tests of the GPU day's runner, called by name in its worker process. Torch-free."""

import os
import time
from collections.abc import Iterator
from typing import Any

from gpu.finding import Finding


def answers(parameters: dict[str, Any]) -> Iterator[Finding]:
    yield Finding({"process": os.getpid(), "peak_gib": float("nan"), **parameters})


def fails_after_a_finding(_: dict[str, Any]) -> Iterator[Finding]:
    yield Finding({"process": os.getpid()}, about="first half")
    raise RuntimeError("no device of that name\nand more lines")


def dies(_: dict[str, Any]) -> Iterator[Finding]:
    os._exit(3)
    yield


def hangs(_: dict[str, Any]) -> Iterator[Finding]:
    time.sleep(600)
    yield


def leaves_a_broken_device(_: dict[str, Any]) -> Iterator[Finding]:
    import sys
    from types import SimpleNamespace

    def refuse() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    cuda = SimpleNamespace(is_initialized=lambda: True, synchronize=refuse)
    sys.modules["torch"] = SimpleNamespace(cuda=cuda)  # type: ignore[assignment]
    raise SystemExit("the result is wrong")
    yield
