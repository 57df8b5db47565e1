"""How many ready batches the loader gives from a server with a delay: while copies arrive, with them, without any.

    python benchmarks/remote_loader.py --delay 0.02 --cache-bytes 1000000000

Beside the same batches from local files. The server is a process of its own on loopback and takes a part of the
machine; its CPU seconds are not counted.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from loader_throughput import measure, prepare
from range_server import serving

from megadeberta.config.data import DataConfig


def main() -> None:
    """Print one row per state of the cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--delay", type=float, default=0.02, help="seconds before each answer (default: 0.02)")
    parser.add_argument("--cache-bytes", type=int, default=10**9, help="room for local copies (default: 1 GB)")
    parser.add_argument("--repeats", type=int, default=1500, help="of the text of the tests (default: 1500)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each row (default: 8)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, tokenizer = prepare(folder, arguments.repeats)
        size = train.with_suffix(".bin").stat().st_size
        print(f"{size / 1e6:.0f} MB of tokens, delay {arguments.delay * 1e3:.0f} ms, load {os.getloadavg()[0]:.1f}")
        print(f"{'':30} Mtok/s  samples/cpu-s  first batch s")
        with serving(folder, delay=arguments.delay) as address:
            local = DataConfig(train=train, tokenizer=tokenizer, loader_workers=arguments.workers)
            there = local.model_copy(update={"train": DataConfig(train=f"{address}/train", tokenizer=tokenizer).train})
            show("local files", local, arguments)
            none = there.model_copy(update={"remote_cache": folder / "none", "remote_cache_bytes": 0})
            show("no room for copies", none, arguments)
            cache = {"remote_cache": folder / "cache", "remote_cache_bytes": arguments.cache_bytes}
            copied = there.model_copy(update=cache)
            show("while copies arrive", copied, arguments)
            wait_for_copies(folder / "cache", copied, arguments)
            show("after the warm-up", copied, arguments)


def show(name: str, data: DataConfig, arguments: argparse.Namespace) -> None:
    """One row."""
    found = measure(data, micro_batch=arguments.micro_batch, seconds=arguments.seconds)
    print(
        f"{name:30} {found.tokens_per_second / 1e6:6.2f}  {found.samples_per_cpu_second:13.0f}  "
        f"{found.first_batch_seconds:13.2f}",
        flush=True,
    )


def wait_for_copies(cache: Path, data: DataConfig, arguments: argparse.Namespace) -> None:
    """Train on until everything that there is room for is there."""
    began = time.monotonic()
    while any(0 in path.read_bytes() for path in cache.glob("*.have")):
        measure(data, micro_batch=arguments.micro_batch, seconds=1.0)
    print(f"{'':30} ({time.monotonic() - began:.0f} s more until all copies were there)")


if __name__ == "__main__":
    main()
