"""MB of text per CPU second: `megadeberta prep` beside raw SentencePiece, on the same documents in one run.

    python benchmarks/prep_throughput.py corpora/wikitext2/train.raw.gz --document-per wikitext [--megatron FOLDER]

The whole command is charged, reading, cleaning, encoding, merging, hashing, plot and all its workers; "marginal"
leaves out what the same command costs on one line of text. FOLDER is a checkout of github.com/NVIDIA/Megatron-LM, whose
tools/preprocess_data.py gets the same documents as JSON lines, and the same vocabulary.
"""

import argparse
import ctypes
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sentencepiece

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import Section
from megadeberta.data_prep.documents import read_documents
from megadeberta.data_prep.formats.plain_text import TEXT
from megadeberta.data_prep.options import DocumentPer, ReadOptions
from megadeberta.data_prep.sources import Source

_PR_SET_CHILD_SUBREAPER = 36
"""Processes whose parent ends become children of this one, so that their time is counted."""
_SHIM = "import typing\ntyping.override = getattr(typing, 'override', lambda method: method)\n"
"""What Megatron needs of Python 3.12."""
MAIN = "import sys; from megadeberta.cli import main; sys.exit(main())"


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="plain text, or .gz")
    parser.add_argument("--document-per", default="paragraph", choices=[str(choice) for choice in DocumentPer])
    parser.add_argument("--copies", type=int, default=12, help="the text this many times over")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--megatron", type=Path, metavar="FOLDER", help="a checkout of Megatron-LM to compare with")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Time everything on a plain copy of the corpus inside ``folder``."""
    opener = gzip.open if arguments.corpus.suffix == ".gz" else open
    with opener(arguments.corpus, "rb") as file:
        text = file.read()
    one, many, line = folder / "one.txt", folder / "many.txt", folder / "line.txt"
    one.write_bytes(text)
    many.write_bytes((text + b"\n\n") * arguments.copies)
    line.write_bytes(b"one line of text\nand another\n")
    prep(folder / "vocabulary", one, "--vocab-size", str(arguments.vocab_size), per=arguments.document_per)
    model = str(folder / "vocabulary" / "tokenizer" / "spm.model")
    megabytes = many.stat().st_size / 1e6
    print(f"{megabytes:.1f} MB, {arguments.vocab_size} pieces, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':32} {'wall s':>8} {'cpu s':>8} {'MB/cpu-s':>9} {'marginal':>9}")
    documents = read_all(many, arguments.document_per)
    report("sentencepiece EncodeAsIds", megabytes, *encode_raw(documents, model), fixed=0.0)
    _, fixed = prep(folder / "fixed", line, "--tokenizer", model, "--valid-fraction", "0", per="line")
    for workers in arguments.workers:
        options = ("--tokenizer", model, "--workers", str(workers))
        wall, cpu = prep(folder / f"workers-{workers}", many, *options, per=arguments.document_per)
        report(f"prep, {workers} worker(s)", megabytes, wall, cpu, fixed=fixed)
    if arguments.megatron is not None:
        measure_megatron(folder, documents, arguments, model=model, megabytes=megabytes)


def measure_megatron(
    folder: Path, documents: list[str], arguments: argparse.Namespace, *, model: str, megabytes: float
) -> None:
    """The rows of Megatron-LM's own program."""
    (folder / "sitecustomize.py").write_text(_SHIM)
    texts, line = folder / "many.jsonl", folder / "line.jsonl"
    texts.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    line.write_text(json.dumps({"text": "one line of text"}) + "\n")
    tool = [sys.executable, str(arguments.megatron / "tools" / "preprocess_data.py")]
    kind = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", model]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(arguments.megatron)])}

    def run(corpus: Path, workers: int) -> tuple[float, float]:
        command = [*tool, *kind, "--input", str(corpus), "--output-prefix", str(folder / "megatron")]
        return timed([*command, "--workers", str(workers)], environment)

    for workers in arguments.workers:
        _, fixed = run(line, workers)
        report(f"Megatron-LM, {workers} worker(s)", megabytes, *run(texts, workers), fixed=fixed)


def read_all(corpus: Path, per: str) -> list[str]:
    """The clean documents of a text."""
    size = corpus.stat().st_size
    source = Source(corpus, corpus.name, "train", TEXT.name, None, size, 0)
    section = Section(0, corpus, 0, size, 0)
    return list(read_documents(section, ReadOptions(DocumentPer(per)), source=source, tally=Tally()))


def encode_raw(documents: list[str], model: str) -> tuple[float, float]:
    """Wall and CPU seconds of SentencePiece alone, one call a document, on text cleaned beforehand."""
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    wall, cpu = time.perf_counter(), time.process_time()
    for document in documents:
        processor.EncodeAsIds(document)
    return time.perf_counter() - wall, time.process_time() - cpu


def prep(output: Path, corpus: Path, *options: str, per: str) -> tuple[float, float]:
    """Wall and CPU seconds of our command, workers included."""
    command = [sys.executable, "-c", MAIN, "prep", str(corpus), "--output", str(output), "--document-per", per]
    return timed([*command, *options], dict(os.environ))


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command and of all processes that it starts."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    quiet = subprocess.DEVNULL
    subprocess.run(command, check=True, stdout=quiet, stderr=quiet, env=environment)
    while True:  # the server that its workers were forked from ends after it, and is ours by then
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - began, cpu


def report(name: str, megabytes: float, wall: float, cpu: float, *, fixed: float) -> None:
    """One row."""
    print(f"{name:32} {wall:8.2f} {cpu:8.2f} {megabytes / cpu:9.1f} {megabytes / (cpu - fixed):9.1f}")


if __name__ == "__main__":
    main()
