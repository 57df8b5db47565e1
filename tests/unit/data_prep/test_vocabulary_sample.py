"""How much text a vocabulary is trained on, and from where."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from megadeberta.data_prep import vocabulary_sample
from megadeberta.data_prep.options import PrepOptions, SplitOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.vocabulary_sample import (
    CHUNK_BYTES,
    CorpusSamples,
    content_key,
    divide,
    keyed_chunks,
    sample_bytes,
)
from megadeberta.errors import ConfigError
from tests.data_fixtures import SOTU


@pytest.mark.parametrize(("size", "expected"), [(4000, 32 << 20), (128_000, 256_000_000), (250_000, 500_000_000)])
def test_the_sample_follows_the_size_of_the_vocabulary(
    size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_sample, "machine_memory", lambda: 64 << 30)
    assert sample_bytes(VocabularyOptions(size=size)) == expected


def test_the_sample_is_bounded_by_the_memory_and_a_larger_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_sample, "machine_memory", lambda: 2_100_000_000)
    assert sample_bytes(VocabularyOptions(size=128_000)) == 75_000_000
    with pytest.raises(ConfigError, match=r"200000000 needs about 4 GB of memory, and this machine has 2 GB; choose 7"):
        sample_bytes(VocabularyOptions(size=128_000, sample_bytes=200_000_000))
    assert sample_bytes(VocabularyOptions(size=128_000, sample_bytes=90_000_000)) == 90_000_000


def test_a_short_document_is_one_chunk_and_a_book_many() -> None:
    assert list(keyed_chunks(b"a b")) == [(content_key(b"a b"), b"a b")]
    book = " ".join(f"wörd{number}" for number in range(60_000)).encode()
    chunks = list(keyed_chunks(book))
    assert b" ".join(chunk for _, chunk in chunks) == book
    assert max(len(chunk) for _, chunk in chunks) <= CHUNK_BYTES
    unspaced = "字".encode() * 100_000
    assert b"".join(chunk.decode().encode() for _, chunk in keyed_chunks(unspaced)) == unspaced


def test_chunks_of_documents_that_may_be_held_out_come_last() -> None:
    books = [f"{number} {'word ' * 60_000}".encode() for number in range(80)]
    limit = 1 << 60
    assert {content_key(book) < limit for book in books} == {True, False}
    for book in books:
        assert {key < limit for key, _ in keyed_chunks(book)} == {content_key(book) < limit}


def test_a_few_books_give_a_sample_from_all_of_them() -> None:
    samples = CorpusSamples(3 * CHUNK_BYTES, 1, VocabularyOptions(size=100))
    for number in range(8):
        book = " ".join(f"{number}x{place}" for place in range(150_000)).encode()
        samples.add(0, keyed_chunks(book), text_bytes=len(book))
    sample = samples.joined()
    books = {text.split(b"x")[0].split()[-1] for _, text in sample.chunks()}
    assert len(books) >= 3
    assert 3 * CHUNK_BYTES <= sample.num_bytes < 4 * CHUNK_BYTES


@pytest.mark.parametrize(
    ("total", "wanted", "there", "given"),
    [
        (100, [1, 1], [500, 500], [50, 50]),
        (100, [3, 1], [500, 500], [75, 25]),
        (100, [1, 1], [500, 10], [90, 10]),
        (100, [1, 1, 2], [500, 10, 20], [70, 10, 20]),
        (100, [1, 1], [20, 10], [20, 10]),
        (100, [0, 1], [500, 500], [0, 100]),
    ],
)
def test_bytes_are_divided_by_weight_and_what_one_lacks_goes_to_the_others(
    total: int, wanted: list[float], there: list[int], given: list[int]
) -> None:
    assert divide(total, wanted, there) == given


@pytest.mark.parametrize(
    ("options", "fraction"), [({}, 0.1), ({"temperature": 100.0}, 0.5), ({"weights": (1.0, 9.0)}, 0.5)]
)
def test_weights_and_temperature_decide_what_each_corpus_gives(options: dict, fraction: float) -> None:
    samples = CorpusSamples(20_000, 2, VocabularyOptions(size=100, **options))
    for corpus, documents in ((0, 1800), (1, 200)):
        for number in range(documents):
            text = f"{'ab'[corpus]}{number} ".ljust(100, "x").encode()
            samples.add(corpus, keyed_chunks(text), text_bytes=len(text))
    sample = samples.joined()
    found = sum(text.startswith(b"b") for _, text in sample.chunks()) / len(sample.chunks())
    assert sample.num_bytes == pytest.approx(20_000, rel=0.02)
    assert found == pytest.approx(fraction, abs=0.06)


def test_a_weight_for_each_corpus_or_for_none() -> None:
    with pytest.raises(ConfigError, match=r"--vocab-weight is given 2 times for 1 corpora; give one per corpus"):
        PrepOptions((SOTU,), Path("out"), VocabularyOptions(size=100, weights=(1.0, 2.0)))


def test_how_the_vocabulary_fits_is_on_the_screen_and_in_the_report(tmp_path: Path) -> None:
    console = Console(record=True, width=300, file=open(tmp_path / "screen", "w"))  # noqa: SIM115
    options = PrepOptions((SOTU,), tmp_path / "out", VocabularyOptions(size=500), split=SplitOptions(fraction=0.0))
    prepare(options, console=console, plot=lambda folder, lengths: None)
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    vocabulary, text = found["vocabulary"], SOTU.read_text()
    assert vocabulary["entries"] == 500
    assert vocabulary["tokens_per_word"] == pytest.approx(found["num_tokens"] / len(text.split()), rel=0.001)
    screen = " ".join(console.export_text().split())
    assert "500 entries from at most 34 MB of text, with at most 0.7 GB of memory and 37 s of a core" in screen
    assert f"{vocabulary['tokens_per_word']} tokens per word, {vocabulary['bytes_per_token']} bytes per token" in screen
