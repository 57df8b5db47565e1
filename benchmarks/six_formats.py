"""One corpus of several sources in six formats, through `prep`, `data` and a blend in training, in one command.

    python benchmarks/six_formats.py TEXT --vocab-size 128000

TEXT has a folder of plain text per source, as benchmarks/package_text.py makes them of packages. Printed are what every
command took and found, and whether it is as it should be; exit code 1 if not:

- the vocabulary is trained, exact and near duplicates are found and 5 % held out by one `prep` of all sources;
- the largest process of `prep` at 300 MB is at most 1.3 times that at 10 MB (the vocabulary given: the memory of its
  training follows from its sample);
- two parts that are merged have the bytes of one machine;
- a blend of the sources trains, and every source has a validation loss of its own.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from formats_corpus import of_size, read_sources, size_of, write_corpus

SMALL, LARGE = 10_000_000, 302_000_000
_MOST_GROWTH = 1.3
_MAIN = "import sys; from megadeberta.cli import main; sys.exit(main())"
_LOOK_SECONDS = 0.1
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Used:
    """What a command took: of memory the largest process, and all at once."""

    seconds: float
    largest: float
    total: float


@dataclass(frozen=True)
class Bench:
    """Where the files are, and what every `prep` is told."""

    work: Path
    jobs: tuple[str, ...]
    split: tuple[str, ...] = ("--valid-fraction", "0.05", "--deduplicate", "near")

    def prep(self, name: str, *arguments: object) -> Used:
        """One `prep` to the folder ``name``."""
        return run(name, "prep", *arguments, "--output", self.work / name, *self.split, *self.jobs)


def main() -> None:
    """Print a row per command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--megabytes", type=float, default=150.0, help="of text; documents are evenly chosen")
    parser.add_argument("--vocab-size", type=int, default=128_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="of training")
    parser.add_argument("--work", type=Path, help="a folder for everything made, which stays")
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(arguments.work or Path(name), ("--workers", str(arguments.workers)))
        corpora = write_corpora(bench.work, arguments.text, int(arguments.megabytes * 1e6))
        bench.prep("vocabulary", *corpora["whole"], "--vocab-size", arguments.vocab_size)
        print_report(bench.work / "vocabulary")
        given = ("--tokenizer", bench.work / "vocabulary" / "tokenizer")
        right = [
            check_memory(bench, corpora, given),
            check_parts(bench, corpora["whole"], given),
            check_blend(bench, corpora["whole"], given, arguments.steps),
        ]
    sys.exit(0 if all(right) else 1)


def write_corpora(work: Path, text: Path, size: int) -> dict[str, list[Path]]:
    """The corpus, and at the two sizes at which memory is compared; the folders of their sources."""
    found = {}
    everything = read_sources(text)
    whole = of_size(everything, min(size, size_of(everything)))
    for name, sources in (("whole", whole), ("small", of_size(whole, SMALL)), ("large", of_size(everything, LARGE))):
        found[name] = write_corpus(work / "text" / name, sources)
        number = sum(map(len, sources.values()))
        print(f"{name}: {size_of(sources) / 1e6:.1f} MB of text, {number:,} documents", flush=True)
    return found


def check_memory(bench: Bench, corpora: dict[str, list[Path]], given: tuple[object, ...]) -> bool:
    """Whether the largest process stays as large as it is."""
    small = bench.prep("small", *corpora["small"], *given)
    large = bench.prep("large", *corpora["large"], *given)
    growth = large.largest / small.largest
    return verdict(growth <= _MOST_GROWTH, f"largest process {growth:.2f} times that of the small corpus")


def check_parts(bench: Bench, corpus: list[Path], given: tuple[object, ...]) -> bool:
    """Whether two machines and one make the same files."""
    bench.prep("whole", *corpus, *given)
    parts = ["part-1", "part-2"]
    for number, part in enumerate(parts, 1):
        bench.prep(part, *corpus, *given, "--part", f"{number}/2")
    run("merge", "data", "merge", *[bench.work / part for part in parts], "--output", bench.work / "merged")
    names = [f"{split}.{suffix}" for split in ("train", "valid") for suffix in ("bin", "sum", "idx", "json")]
    names.append("tokenizer/spm.model")
    differ = [name for name in names if digest(bench.work / "merged" / name) != digest(bench.work / "whole" / name)]
    same = verdict(not differ, f"{len(names)} files of the merged parts are those of one machine; others: {differ}")
    made_alike = digest(bench.work / "whole" / "train.bin") == digest(bench.work / "vocabulary" / "train.bin")
    return verdict(made_alike, "a vocabulary trained or given: the same tokens") and same


def check_blend(bench: Bench, corpus: list[Path], given: tuple[object, ...], steps: int) -> bool:
    """Whether all sources are trained on, and validated each by itself."""
    for source in corpus:
        bench.prep(f"sets/{source.name}", source, *given)
    sets = {source.name: bench.work / "sets" / source.name for source in corpus}
    run(
        "sample of 5 %",
        "data",
        "sample",
        bench.work / "vocabulary",
        "--fraction",
        "0.05",
        "--output",
        bench.work / "five",
    )
    recipe = {
        "extends": "quickstart",
        "data": {
            "train": {name: {"prefix": str(folder / "train")} for name, folder in sets.items()},
            "temperature": 2,
            "valid": {name: str(folder / "valid") for name, folder in sets.items()},
            "tokenizer": str(bench.work / "vocabulary" / "tokenizer" / "spm.model"),
        },
        "model": {"vocab_size": "auto", "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 256},
        "training": {"steps": steps, "eval_interval": steps, "output_dir": str(bench.work / "run")},
        "schedule": {"warmup_steps": 2},
    }
    (bench.work / "blend.json").write_text(json.dumps(recipe))
    run("train a blend", "train", bench.work / "blend.json")
    lines = (bench.work / "run" / "metrics.jsonl").read_text().splitlines()
    last = [record for record in map(json.loads, lines) if "valid_loss" in record][-1]
    losses = {name: last.get(f"valid_loss/{name}") for name in sets}
    return verdict(None not in losses.values(), f"validation losses after {steps} steps: {losses}")


def print_report(folder: Path) -> None:
    """What `prep` says of the whole corpus."""
    report = json.loads((folder / "report.json").read_bytes())
    counts = {split: json.loads((folder / f"{split}.json").read_bytes()) for split in ("train", "valid")}
    for split, manifest in counts.items():
        print(f"  {split}: {manifest['num_documents']:,} documents, {manifest['num_tokens']:,} tokens")
    print(f"  {json.dumps(report['vocabulary'])}")
    copies, near = report["copied_documents"], report["near_duplicates"]["documents"]
    print(f"  {copies:,} copies and {near:,} near duplicates left out", flush=True)


def run(name: str, *arguments: object) -> Used:
    """A command of megadeberta, its memory looked at while it runs, and a row of what it took."""
    began, largest, most = time.monotonic(), 0, 0
    command = [sys.executable, "-c", _MAIN, *map(str, arguments)]
    with tempfile.TemporaryFile() as errors, subprocess.Popen(command, stdout=errors, stderr=errors) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            sizes = [resident(one) for one in (root, *children(root))]
            largest, most = max(largest, *sizes), max(most, sum(sizes))
            time.sleep(_LOOK_SECONDS)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(map(str, arguments))}: {errors.read().decode()[-2000:]}")
    used = Used(time.monotonic() - began, largest / _MEBIBYTE, most / _MEBIBYTE)
    sizes_shown = f"largest process {used.largest:6.0f} MiB, all {used.total:6.0f} MiB"
    print(f"{name:16} {used.seconds:7.1f} s, {sizes_shown}", flush=True)
    return used


def children(root: psutil.Process) -> list[psutil.Process]:
    """Of a process that may be gone."""
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def resident(process: psutil.Process) -> int:
    """Bytes in memory; 0 of one that is gone."""
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verdict(is_right: bool, what: str) -> bool:
    """Print it, and say it on."""
    print(f"{'yes' if is_right else 'NO'}: {what}", flush=True)
    return is_right


if __name__ == "__main__":
    main()
