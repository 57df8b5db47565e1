"""The vocabulary sample and training: independent of order, and the same bytes each time."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megadeberta.data_prep.options import ReadOptions, VocabularyOptions
from megadeberta.data_prep.sources import find_sources
from megadeberta.data_prep.vocabulary import train_vocabulary
from megadeberta.data_prep.vocabulary_sample import Sample, content_key
from megadeberta.errors import DataError
from tests.data_fixtures import SOTU

KEYED = st.lists(st.integers(0, 400).map(lambda i: (content_key(b"%d" % i), b"x" * (i % 30 + 1))), max_size=80)


@settings(max_examples=80, deadline=None)
@given(documents=KEYED, budget=st.integers(1, 600), data=st.data())
def test_the_sample_is_the_largest_keys_in_whatever_order_they_come(
    documents: list[tuple[int, bytes]], budget: int, data: st.DataObject
) -> None:
    expected, size = [], 0
    for key, text in sorted(set(documents), reverse=True):
        if size >= budget:
            break
        expected.append((key, text))
        size += len(text)
    sample = Sample(budget)
    remaining = data.draw(st.permutations(documents))
    while remaining:
        # A worker filters by the threshold it was given, which may be an older and lower one.
        batch, remaining = remaining[:7], remaining[7:]
        sample.add(batch)
    assert sample.num_bytes == size
    assert "".join(sample.sentences()) == "".join(text.decode() for _, text in sorted(expected))


def test_sentences_are_short_enough_and_lose_nothing() -> None:
    text = " ".join(f"wörd{i}" for i in range(3000)) + " " + "字" * 5000
    sample = Sample(1 << 20)
    sample.add([(1, text.encode())])
    pieces = list(sample.sentences())
    # SentencePiece drops what is longer than 4192 bytes.
    assert max(len(piece.encode()) for piece in pieces) <= 4000
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


def sotu_sample() -> Sample:
    sample = Sample(1 << 20)
    texts = (text.encode() for text in SOTU.read_text()[:60_000].split("\n"))
    sample.add((content_key(text), text) for text in texts if text)
    return sample


def test_training_twice_gives_the_same_bytes() -> None:
    options = VocabularyOptions(size=300)
    models = {hashlib.sha256(train_vocabulary(sotu_sample(), options)).hexdigest() for _ in range(2)}
    assert len(models) == 1


def test_too_little_text_is_refused_with_the_reason() -> None:
    sample = Sample(1 << 20)
    sample.add([(1, "\u200b".encode())])
    with pytest.raises(DataError, match=r"no vocabulary could be trained on 3 bytes of text: .*; add text"):
        train_vocabulary(sample, VocabularyOptions(size=300))


def test_a_folder_is_walked_in_order_without_hidden_foreign_or_output_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl.gz", "c/z.raw", "c/.hidden.txt", "c/image.png", ".git/x.txt", "out/report.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x1f\x8b" if name.endswith("gz") else b"text")
    options = ReadOptions()
    corpus = find_sources([tmp_path], split="train", options=options, outside=tmp_path / "out")
    assert [(source.name, source.format_name, source.compression) for source in corpus.sources] == [
        (f"{tmp_path.name}/a.jsonl.gz", "jsonl", "gzip"),
        (f"{tmp_path.name}/b.txt", "text", None),
        (f"{tmp_path.name}/c/z.raw", "text", None),
    ]
    assert [(file.name, file.reason) for file in corpus.passed_over] == [
        (f"{tmp_path.name}/c/image.png", "a .png file")
    ]
    options = ReadOptions(input_format="jsonl")
    forced = find_sources([tmp_path / "b.txt"], split="train", options=options, outside=tmp_path / "out")
    assert [source.format_name for source in forced.sources] == ["jsonl"]
