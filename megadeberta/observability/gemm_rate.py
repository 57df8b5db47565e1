"""The matrix-product rate of this process: what MFU means on a CPU, whose data sheet has no such figure."""

import time
from functools import lru_cache

import torch

_SIZE = 1024
_WARM_UP_PRODUCTS = 3
_TIMED_PRODUCTS = 9


@lru_cache(maxsize=1)
def measure_gemm_rate() -> float:
    """Operations a second of fp32 products of 1024 x 1024 matrices with this process's threads; measured once.

    The median of nine products: a busy moment of a shared machine does not count.
    """
    generator = torch.Generator().manual_seed(0)  # leaves the run's own random state alone
    left, right = (torch.rand(_SIZE, _SIZE, generator=generator) for _ in range(2))
    seconds = []
    with torch.no_grad():
        for _ in range(_WARM_UP_PRODUCTS + _TIMED_PRODUCTS):
            started = time.perf_counter()
            torch.mm(left, right)
            seconds.append(time.perf_counter() - started)
    median = sorted(seconds[_WARM_UP_PRODUCTS:])[_TIMED_PRODUCTS // 2]
    return 2 * _SIZE**3 / median
