"""How many ready batches the loader gives: real text, masked, as tensors in the training process.

    python benchmarks/loader_throughput.py [--train PREFIX --tokenizer spm.model]

Without a prepared corpus it tokenizes the text of the tests with 2000 pieces of its own. CPU seconds are those of the
training process and all its workers together. The yardstick is Megatron-core 0.19.2's BERT dataset (sample building
and masking): 75 samples of 512 tokens per CPU second.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import sentencepiece

from megadeberta.config.data import DataConfig
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.loader import training_batches
from megadeberta.data.shard_writer import ShardWriter
from megadeberta.data.tokenizer import load_tokenizer

TEXT = Path(__file__).parents[1] / "tests" / "data" / "sotu.txt"
MEGATRON_SAMPLES_PER_CPU_SECOND = 75
TOKENS_PER_STEP = 2**16
REPEATS = 64


@dataclass(frozen=True)
class Measured:
    """One configuration of the loader."""

    tokens_per_second: float
    samples_per_cpu_second: float
    wait_milliseconds: float
    first_batch_seconds: float


def main() -> None:
    arguments = _parse_arguments()
    print("length  workers  Mtok/s (goal 2)  samples/cpu-s  x Megatron-core  median wait ms  first batch s")
    with tempfile.TemporaryDirectory() as folder:
        train, tokenizer = arguments.train, arguments.tokenizer
        if train is None:
            train, tokenizer = prepare(Path(folder))
        for length in (512, 128):
            for workers in (0, 1, 2):
                data = DataConfig(train=train, tokenizer=tokenizer, sequence_length=length, loader_workers=workers)
                found = measure(data, micro_batch=arguments.micro_batch, seconds=arguments.seconds)
                ratio = (
                    f"{found.samples_per_cpu_second / MEGATRON_SAMPLES_PER_CPU_SECOND:.0f}" if length == 512 else "-"
                )
                print(
                    f"{length:6d}  {workers:7d}  {found.tokens_per_second / 1e6:15.2f}  "
                    f"{found.samples_per_cpu_second:13.0f}  {ratio:>15}  {found.wait_milliseconds:14.2f}  "
                    f"{found.first_batch_seconds:13.2f}"
                )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="prefix of a token file; needs --tokenizer")
    parser.add_argument("--tokenizer", type=Path, help="the spm.model the shard was made with")
    parser.add_argument("--micro-batch", type=int, default=16, help="sequences (default: 16)")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each line (default: 4)")
    arguments = parser.parse_args()
    if (arguments.train is None) != (arguments.tokenizer is None):
        parser.error("give both --train and --tokenizer, or neither")
    return arguments


def prepare(folder: Path, repeats: int = REPEATS) -> tuple[Path, Path]:
    """Token file and tokenizer of the text of the tests, that often over."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(TEXT),
        model_prefix=str(folder / "spm"),
        vocab_size=2000,
        minloglevel=2,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
    )
    tokenizer = load_tokenizer(folder / "spm.model")
    tokens = tokenizer.encode(TEXT.read_text(encoding="utf-8"))
    with ShardWriter(folder / "train", dtype=np.dtype(np.uint16)) as writer:
        for _ in range(repeats):
            writer.add_document(tokens)
        writer.commit(tokenizer_sha256=tokenizer.sha256, tokenizer_pieces=tokenizer.num_pieces)
    return folder / "train", folder / "spm.model"


def measure(data: DataConfig, *, micro_batch: int, seconds: float) -> Measured:
    """Take batches for that long, after those that were made ahead."""
    accumulation = max(1, TOKENS_PER_STEP // (micro_batch * data.sequence_length))
    algebra = BatchAlgebra(micro_batch * accumulation, micro_batch, accumulation, 1)
    begin = time.perf_counter()
    with training_batches(
        data, ObjectiveConfig(), seed=1, algebra=algebra, data_rank=0, start_step=0, total_steps=10**9
    ) as steps:
        next(steps)
        first_batch_seconds = time.perf_counter() - begin
        for _ in range(10 * data.loader_workers):  # use up what was prepared ahead
            next(steps)
        waits = []
        cpu_before, start = _cpu_seconds(), time.perf_counter()
        while (now := time.perf_counter()) - start < seconds:
            next(steps)
            waits.append(time.perf_counter() - now)
        wall, cpu = time.perf_counter() - start, _cpu_seconds() - cpu_before
    samples = len(waits) * algebra.global_batch
    return Measured(
        tokens_per_second=samples * data.sequence_length / wall,
        samples_per_cpu_second=samples / cpu,
        wait_milliseconds=statistics.median(waits) * 1e3,
        first_batch_seconds=first_batch_seconds,
    )


def _cpu_seconds() -> float:
    rank = psutil.Process()
    times = [process.cpu_times() for process in (rank, *rank.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


if __name__ == "__main__":
    main()
