"""What a preparation found, as ``report.json``. D documents."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from megadeberta.data.shard_manifest import ShardManifest
from megadeberta.data.tokenizer import VocabularyTokenizer
from megadeberta.data_prep.bad_lines import CorpusTally
from megadeberta.data_prep.duplicates import Copies
from megadeberta.data_prep.formats.table import FORMATS
from megadeberta.data_prep.left_out import LeftOutByReason
from megadeberta.data_prep.parts import Counts
from megadeberta.data_prep.sources import Corpus
from megadeberta.data_prep.unfit_text import in_file
from megadeberta.storage import write_file

REPORT = "report.json"
_NAMED, _LISTED, _MOST_FRACTIONS = 4, 1000, 12
_WORTH_SAYING = 0.005
"""Of the text that is no prose: a fraction of the bytes."""


def describe_corpus(tally: CorpusTally) -> dict[str, Any]:
    """Counts of the text that was read, and of what could not be used."""
    return {
        "lines": tally.total("lines"),
        "text_bytes": tally.total("text_bytes"),
        "documents": tally.total("documents"),
        "empty_documents": tally.total("empty_documents"),
        "documents_cut": tally.total("cut_documents"),
        "left_out": tally.left_out().to_json(),
        "rejected_lines": tally.total("rejected"),
        "rejected_bytes": tally.total("rejected_bytes"),
        "scripts": _fractions(tally.scripts()),
        **({"languages": _fractions(languages)} if (languages := tally.languages()) else {}),
        "unfit": tally.unfit(),
        "damaged_files": tally.total("damaged_files"),
        "bad_lines": tally.describe(),
    }


def _fractions(counts: Counter[str]) -> dict[str, float]:
    total = max(1, counts.total())
    return {name: round(number / total, 4) for name, number in counts.most_common(_MOST_FRACTIONS)}


def _named(fractions: dict[str, float]) -> str:
    return ", ".join(f"{name} {fraction:.1%}" for name, fraction in list(fractions.items())[:_NAMED])


def describe_files(corpus: Corpus) -> list[str]:
    """What is read and what is not, a line each for the screen."""
    kinds = ", ".join(f"{number} of {FORMATS[name].summary}" for name, number in _by_format(corpus).most_common())
    lines = [f"reading {len(corpus.sources)} file(s), {_megabytes(source.size for source in corpus.sources)}: {kinds}"]
    if corpus.passed_over:
        first = "; ".join(f"{file.name} ({file.reason})" for file in corpus.passed_over[:_NAMED])
        more = f" and {len(corpus.passed_over) - _NAMED} more" if len(corpus.passed_over) > _NAMED else ""
        size = _megabytes(file.size for file in corpus.passed_over)
        lines.append(f"NOT read: {len(corpus.passed_over)} file(s), {size}: {first}{more}; {REPORT} lists them")
    return lines


def describe_result(report: dict[str, Any], copies: Copies) -> list[str]:
    """What a user should look at before training on it, a line each for the screen."""
    corpus = report["corpus"]
    vocabulary = report["vocabulary"]
    lines = [
        f"scripts: {_named(corpus['scripts']) or 'no letters'}; unknown tokens: {vocabulary['unknown_fraction']:.2%}; "
        f"{vocabulary['tokens_per_word']} tokens per word, {vocabulary['bytes_per_token']} bytes per token"
    ]
    if languages := corpus.get("languages"):
        lines.append("languages, of the bytes: " + _named(languages))
    for what, found in corpus["unfit"].items():
        if found["fraction"] >= _WORTH_SAYING:
            lines.append(
                f"{found['fraction']:.1%} of the text is {what}, {in_file(found['first'], found['examples'][0])}"
            )
    lines += copies.lines()
    lines += LeftOutByReason.from_json(corpus["left_out"]).lines()
    for entry in corpus["bad_lines"].values():
        lines.append(f"{entry['count']:,} x {entry['meaning']}, first at {entry['first']}")
    return lines


def describe_vocabulary(
    tokenizer: VocabularyTokenizer, counts: Counts, text_bytes: int
) -> dict[str, float | int | str]:
    """How well the vocabulary fits the text."""
    tokens = max(1, counts.num_tokens)
    return {
        "entries": tokenizer.num_pieces,
        "tokens_per_word": round(tokens / max(1, counts.num_words), 4),
        "bytes_per_token": round(text_bytes / tokens, 4),
        "unknown_fraction": round(counts.num_unknown / tokens, 6),
    }


def report_files(corpus: Corpus) -> dict[str, Any]:
    """The same for the report; of the files that are not read the first ``_LISTED`` by name."""
    return {
        "read": dict(_by_format(corpus)),
        "not_read": len(corpus.passed_over),
        "not_read_files": [vars(file) for file in corpus.passed_over[:_LISTED]],
    }


def _by_format(corpus: Corpus) -> Counter[str]:
    return Counter(source.format_name for source in corpus.sources)


def _megabytes(sizes: Iterable[int]) -> str:
    return f"{sum(sizes) / 1e6:.1f} MB"


def describe_shard(manifest: ShardManifest) -> dict[str, int]:
    """The counts worth reading; hashes stay in the manifest."""
    return manifest.model_dump(include={"num_documents", "num_tokens", "max_token_id", "bin_bytes"})


def describe_lengths(lengths: np.ndarray) -> dict[str, float]:
    """Tokens a document: smallest, quartiles and tails.

    Args:
        lengths: ``[D]``, at least one.
    """
    points = {"min": 0, "p10": 10, "median": 50, "p90": 90, "p99": 99, "max": 100}
    values = np.percentile(lengths, list(points.values()))
    named = {**dict(zip(points, values, strict=True)), "mean": lengths.mean()}
    return {name: round(float(value), 1) for name, value in named.items()}


def write_report(folder: Path, fields: dict[str, Any]) -> None:
    """Write ``report.json``.

    Raises:
        StorageError: the file system refused.
    """
    write_file(folder / REPORT, (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode())
