"""Memory per document: what a corpus of many short documents adds to the process that joins them."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from megadeberta.data.files_writer import open_writer
from megadeberta.data_prep.duplicates import FirstOccurrences
from megadeberta.data_prep.parts import DOCUMENT_RECORD, PartStore

PARTS, DOCUMENTS = 64, 6000


class Peak:
    """Bytes."""

    num_bytes = 0


@contextmanager
def traced() -> Iterator[Peak]:
    """The most memory that was held at once inside, beside what was held before."""
    found = Peak()
    tracemalloc.start()
    try:
        yield found
        found.num_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def store(tmp_path: Path) -> PartStore:
    """Parts of documents of which every tenth has the key of another."""
    made = PartStore(tmp_path, "parts", dtype=np.dtype("<u2"))
    made.create()
    keys = np.random.default_rng(1).integers(0, 1 << 64, PARTS * DOCUMENTS, dtype=np.uint64)
    keys[5::10] = keys[::10]
    for number, some in enumerate(np.split(keys, PARTS)):
        records = np.zeros(DOCUMENTS, dtype=DOCUMENT_RECORD)
        records["length"], records["key"] = 3, some
        made.path(number, "documents").write_bytes(records.tobytes())
    return made


def test_finding_copies_holds_little_per_document(store: PartStore) -> None:
    with traced() as peak:
        firsts = FirstOccurrences(store, list(range(PARTS)))
    assert firsts.num_copies == PARTS * DOCUMENTS // 10
    keys = np.concatenate([store.documents(number)["key"] for number in range(PARTS)])
    is_first = np.concatenate([firsts.of_part(number) for number in range(PARTS)])
    expected = np.zeros(len(keys), dtype=bool)
    expected[np.unique(keys, return_index=True)[1]] = True
    np.testing.assert_array_equal(is_first, expected)
    # All keys and their order at once are 56 bytes per document; here they are in thirds.
    assert peak.num_bytes < 24 * len(keys)


@pytest.mark.parametrize("max_file_bytes", [None, 1 << 20])
def test_a_writer_holds_the_lengths_and_no_index(tmp_path: Path, max_file_bytes: int | None) -> None:
    with (
        traced() as peak,
        open_writer(tmp_path / "train", dtype=np.dtype("<u2"), max_file_bytes=max_file_bytes) as file,
    ):
        for _ in range(PARTS):
            file.add_documents(np.ones(3 * DOCUMENTS, np.uint16), np.full(DOCUMENTS, 3))
        made = file.commit(tokenizer_sha256="0" * 64, tokenizer_pieces=10)
    assert made.num_documents == PARTS * DOCUMENTS
    # Lengths are 4 bytes, of the whole set and of its files; the index has 20, and was held twice.
    assert peak.num_bytes < 24 * made.num_documents
