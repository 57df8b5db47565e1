"""A large corpus that will not do is refused before it is encoded, and one that may do is not."""

import gzip
from pathlib import Path

import pytest
from rich.console import Console

from megadeberta.data_prep import first_look, work
from megadeberta.data_prep.options import PrepOptions, SplitOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare
from megadeberta.errors import DataError
from tests.data_fixtures import SOTU

SPEECH = SOTU.read_text(encoding="utf-8")
CYRILLIC = "Все люди рождаются свободными и равными в своем достоинстве и правах.\n\n"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every corpus is large enough for a look; the blocks that are encoded."""
    blocks: list[int] = []
    encode = work.encode_block
    monkeypatch.setattr(first_look, "WORTH_A_LOOK", 1 << 10)
    monkeypatch.setattr(
        work, "encode_block", lambda context, block: blocks.append(block.number) or encode(context, block)
    )
    return blocks


def run(output: Path, prepared: Path, *corpora: Path, unknown: float = 1, **limits: float) -> str:
    """What a preparation prints; Latin letters at least ``limits["latin"]``."""
    console = Console(record=True, quiet=False, file=(output.parent / "screen").open("w"), width=500)
    scripts = tuple((name.capitalize(), least) for name, least in limits.items())
    vocabulary = VocabularyOptions(tokenizer=prepared / "tokenizer" / "spm.model")
    options = PrepOptions(
        corpora,
        output,
        vocabulary,
        split=SplitOptions(fraction=0),
        max_unknown_fraction=unknown,
        expected_scripts=scripts,
    )
    prepare(options, console=console, plot=lambda folder, lengths: None)
    return console.export_text()


def test_a_corpus_of_another_script_stops_before_encoding(tmp_path: Path, prepared: Path, encoded: list[int]) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_text(CYRILLIC * 1000, encoding="utf-8")
    with pytest.raises(DataError, match=r"^at 64 places .* encoded: 0.0% of the letters are Latin.*Cyrillic 100.0%"):
        run(tmp_path / "out", prepared, corpus, latin=0.9)
    with pytest.raises(DataError, match=r"^at 64 places .* of the tokens are \[UNK\].*; most in a.txt"):
        run(tmp_path / "out", prepared, corpus, unknown=0.05)
    assert not encoded
    run(tmp_path / "out", prepared, corpus)
    assert encoded


@pytest.mark.parametrize("latin", [0.25, 0.6])
def test_a_corpus_near_the_limit_is_judged_as_a_whole(
    tmp_path: Path, prepared: Path, encoded: list[int], latin: float
) -> None:
    corpus = tmp_path / "a.txt"
    texts = [SPEECH[start : start + 60] for start in range(0, 60_000, 60)]
    corpus.write_text("\n\n".join([*texts, CYRILLIC * 800]), encoding="utf-8")  # about half of the letters
    if latin == 0.25:
        run(tmp_path / "out", prepared, corpus, latin=latin)
    else:
        with pytest.raises(DataError, match=r"^\d\d.\d% of the letters are Latin"):
            run(tmp_path / "out", prepared, corpus, latin=latin)
    assert encoded


def test_the_beginning_of_one_compressed_file_decides_nothing(
    tmp_path: Path, prepared: Path, encoded: list[int]
) -> None:
    corpus = tmp_path / "a.txt.gz"
    corpus.write_bytes(gzip.compress(f"{CYRILLIC * 400}{SPEECH}".encode()))
    screen = run(tmp_path / "out", prepared, corpus, latin=0.5)
    assert "at 1 places of the corpus, before it is encoded: 0.0% of the letters are Latin" in screen
    assert "the whole corpus decides" in screen and encoded


def test_many_compressed_files_do(tmp_path: Path, prepared: Path, encoded: list[int]) -> None:
    corpora = [tmp_path / f"{number}.txt.gz" for number in range(20)]
    for number, corpus in enumerate(corpora):
        corpus.write_bytes(gzip.compress(f"{number} {CYRILLIC * 20}".encode(), mtime=0))
    with pytest.raises(DataError, match=r"^at 20 places .*: 0.0% of the letters are Latin"):
        run(tmp_path / "out", prepared, *corpora, latin=0.9)
    assert not encoded
