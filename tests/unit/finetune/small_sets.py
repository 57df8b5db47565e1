"""Rows in the published formats, written for the tests, and a tiny model to fine-tune."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.family import ModelKind
from tests.unit.convert.small_models import small_config, small_model, write_weights_folder

WORDS = ("war", "peace", "trade", "law", "navy", "bank", "land", "gold")
NO_MASK_DECODER = {"enhanced_mask_decoder": False, "max_position_embeddings": 64}


def exported_model(root: Path, spm: Path, **changes: Any) -> Path:
    """An encoder of three layers as ``convert export`` writes it."""
    config = small_config(**NO_MASK_DECODER | changes)
    write_weights_folder(root / "source", small_model(config), config, spm)
    export_checkpoint(root / "source", root / "out", kind=ModelKind.BACKBONE)
    return root / "out"


def sentence(number: int) -> str:
    """The even ones speak of the first four words, the odd ones of the others."""
    word = WORDS[number % 4 + 4 * (number % 2)]
    return f"The {word} of the year {number} is the {word} of the states"


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_tsv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    return write_lines(path, ["\t".join(map(str, row)) for row in ([header] if header else []) + list(rows)])


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    return write_lines(path, [json.dumps(row) for row in rows])


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def sst2(folder: Path, *, rows: int = 24) -> Path:
    """SST-2 as GLUE publishes it."""
    for name, count in {"train": rows, "dev": 8}.items():
        write_tsv(folder / f"{name}.tsv", ["sentence", "label"], [(sentence(n), n % 2) for n in range(count)])
    write_tsv(folder / "test.tsv", ["index", "sentence"], [(n, sentence(n)) for n in range(4)])
    return folder
