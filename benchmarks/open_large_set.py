"""CPU seconds and memory of opening a large token file for packed training: the first time, and every other time.

    python benchmarks/open_large_set.py --documents 75000000

The index is made up and the tokens are a hole in a file, so that 160 GB of text need 1.5 GB of disk and as much again
for the plan (half of that more while it is made). Documents have 20 to 1039 tokens, or all of them `--tokens`: 510 fill
a sequence of 512, which is the slowest case. Each measurement is a process of its own.
"""

import argparse
import hashlib
import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from megadeberta.data.index_layout import ShardIndex, encode_index
from megadeberta.data.packing import PackedReader
from megadeberta.data.shard_manifest import ShardManifest, content_fingerprint


def main() -> None:
    """Print one row per opening."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=75_000_000)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        open_once(arguments.open, arguments.sequence_length)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "large", arguments.documents, arguments.tokens)
        print(f"{arguments.documents:,} documents, sequences of {arguments.sequence_length}")
        for name in ("first", "second", "third"):
            command = [sys.executable, __file__, "--open", f"{folder}/large"]
            command += ["--sequence-length", str(arguments.sequence_length)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            counts = f"{found['mebibytes']:8.0f} MiB {found['sequences']:,} sequences"
            print(f"{name:7} {found['seconds']:8.2f} CPU s {counts}")


def make(prefix: Path, num_documents: int, num_tokens_each: int | None) -> None:
    """Index, manifest and a hole of tokens."""
    low, high = (num_tokens_each, num_tokens_each + 1) if num_tokens_each else (20, 1040)
    lengths = np.random.default_rng(0).integers(low, high, num_documents, dtype=np.int32)
    payload = encode_index(ShardIndex(np.dtype("<u2"), lengths, np.arange(num_documents + 1)))
    prefix.with_name("large.idx").write_bytes(payload)
    num_tokens = int(lengths.sum(dtype=np.int64))
    with prefix.with_name("large.bin").open("wb") as file:
        file.truncate(2 * num_tokens)
    hashes = {
        "bin_sha256": "0" * 64,
        "idx_sha256": hashlib.sha256(payload).hexdigest(),
        "tokenizer_sha256": "0" * 64,
    }
    manifest = ShardManifest(
        dtype="uint16",
        num_tokens=num_tokens,
        num_documents=num_documents,
        num_sequences=num_documents,
        max_token_id=0,
        tokenizer_pieces=65_000,
        bin_bytes=2 * num_tokens,
        idx_bytes=len(payload),
        content=content_fingerprint(dtype="uint16", **hashes),
        **hashes,
    )
    prefix.with_name("large.json").write_bytes(manifest.to_bytes())


def open_once(prefix: Path, sequence_length: int) -> None:
    """Open, read a batch from everywhere, and say what it took beyond the imports."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    reader = PackedReader(prefix, sequence_length)
    reader.read(np.linspace(0, reader.num_chunks - 1, 32).astype(np.int64))
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Not ru_maxrss: that counts the process this one was forked from too.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    found = {"seconds": seconds, "mebibytes": int(peak) / 1024, "sequences": reader.num_chunks}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
