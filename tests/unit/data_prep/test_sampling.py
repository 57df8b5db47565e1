"""The documents that are looked at to describe a corpus."""

from pathlib import Path

import pytest

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import Section
from megadeberta.data_prep.documents import read_documents
from megadeberta.data_prep.options import DocumentPer, ReadOptions
from megadeberta.data_prep.sampling import sample_every, sample_weight
from megadeberta.data_prep.sources import Source


def test_of_a_small_corpus_every_document_is_looked_at_and_of_a_large_one_a_sixteenth() -> None:
    mebibytes = [0, 4, 5, 8, 9, 33, 65, 10**6]
    assert [sample_every(size << 20) for size in mebibytes] == [1, 1, 2, 2, 4, 16, 16, 16]


def test_the_sample_depends_on_the_text_alone_after_the_first_documents() -> None:
    texts = [f"Document {number}" for number in range(4000)]
    assert [sample_weight(number, texts[0], 16) for number in range(64)] == [1] * 64
    weights = [sample_weight(64 + number, text, 16) for number, text in enumerate(texts)]
    assert weights == [sample_weight(10_000 - number, text, 16) for number, text in enumerate(texts)]
    assert set(weights) == {0, 16} and sum(weights) == pytest.approx(4000, rel=0.15)
    # Of two kinds of document in turns both are looked at.
    assert sum(weights[::2]) == pytest.approx(2000, rel=0.2)


def test_of_two_scripts_in_turns_both_are_seen(tmp_path: Path) -> None:
    # Each sixteenth by number would see one of them.
    path = tmp_path / "a.txt"
    path.write_text("".join(f"Text {n}\nСлов {n}\n" for n in range(1600)), encoding="utf-8")
    size = path.stat().st_size
    source, section = Source(path, path.name, "train", "text", None, size, 0), Section(0, path, 0, size, 0)
    tally = Tally()
    options = ReadOptions(document_per=DocumentPer.LINE)
    assert len(list(read_documents(section, options, source=source, tally=tally, every=16))) == 3200
    assert tally.scripts["Latin"] / sum(tally.scripts.values()) == pytest.approx(0.5, abs=0.1)
