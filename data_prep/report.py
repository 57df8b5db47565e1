"""What a preparation found, as ``report.json``. D documents."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from megadeberta.data.shard_manifest import ShardManifest
from megadeberta.data_prep.bad_lines import CorpusTally
from megadeberta.storage import write_file

REPORT = "report.json"


def describe_corpus(tally: CorpusTally) -> dict[str, Any]:
    """Counts of the text that was read, and of what could not be used."""
    return {
        "lines": tally.total("lines"),
        "text_bytes": tally.total("text_bytes"),
        "documents": tally.total("documents"),
        "empty_documents": tally.total("empty_documents"),
        "documents_cut": tally.total("cut_documents"),
        "rejected_lines": tally.total("rejected"),
        "damaged_files": tally.total("damaged_files"),
        "bad_lines": tally.describe(),
    }


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
