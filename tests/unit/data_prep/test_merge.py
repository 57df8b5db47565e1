"""Joining parts into token files: which tokens go where, and how often each byte is written and hashed."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from megadeberta import storage
from megadeberta.data import shard_writer
from megadeberta.data.beside import Beside
from megadeberta.data_prep.merge import _tokens_of
from megadeberta.data_prep.options import DocumentPer, PrepOptions, ReadOptions, SplitOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare
from tests.data_fixtures import SOTU


@given(documents=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_tokens_of_chosen_documents_are_those_of_each_in_order(documents: list[tuple[int, bool]]) -> None:
    lengths = np.array([length for length, _ in documents], np.int32)
    chosen = np.array([is_chosen for _, is_chosen in documents])
    tokens = np.arange(lengths.sum(), dtype=np.uint16)
    if chosen.any():
        found = _tokens_of(chosen, tokens, lengths)
        assert found.dtype == tokens.dtype
        np.testing.assert_array_equal(found, tokens[np.repeat(chosen, lengths)])


def test_all_tokens_are_not_copied_and_others_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, lengths = np.arange(4000, dtype=np.uint16), np.full(1000, 4)
    chosen = np.ones(1000, dtype=bool)
    assert _tokens_of(chosen, tokens, lengths) is tokens
    chosen[[10, 500]] = False
    pieces: list[int] = []
    concatenate = np.concatenate
    monkeypatch.setattr(np, "concatenate", lambda parts, *more: pieces.append(len(parts)) or concatenate(parts, *more))
    assert len(_tokens_of(chosen, tokens, lengths)) == 3992
    assert max(pieces) == 3  # not one for each document, nor one for each token


def test_every_byte_of_a_token_file_is_written_hashed_and_summed_once(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three beside the reading of the next part."""
    written, passed = Counter[str](), Counter[str]()
    write = storage.PendingFile.write
    monkeypatch.setattr(
        storage.PendingFile,
        "write",
        lambda file, payload: written.update({file.path.suffix: len(payload)}) or write(file, payload),
    )

    class Counted(Beside):
        def __init__(self, function: object) -> None:
            super().__init__(function)  # type: ignore[arg-type]
            self._name = getattr(function, "__name__", "")

        def add(self, piece: memoryview) -> None:
            passed[self._name] += len(piece)
            super().add(piece)

    monkeypatch.setattr(shard_writer, "Beside", Counted)
    corpus = tmp_path / "a.txt"
    corpus.write_text((SOTU.read_text(encoding="utf-8") + "\n\n") * 20, encoding="utf-8")
    options = PrepOptions(
        (corpus,),
        tmp_path / "out",
        VocabularyOptions(tokenizer=prepared / "tokenizer" / "spm.model"),
        read=ReadOptions(document_per=DocumentPer.PARAGRAPH),
        split=SplitOptions(fraction=0.05),
    )
    prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
    size = sum((tmp_path / "out" / f"{split}.bin").stat().st_size for split in ("train", "valid"))
    assert written[".bin"] == size
    assert sorted(passed.values()) == [size] * 3
