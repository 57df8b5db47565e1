"""`megadeberta tokenizer compare`: the numbers, by hand, and the table."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megadeberta.cli import command_line
from megadeberta.data.tokenizer import PieceKind, load_tokenizer
from megadeberta.data_prep.compare_tokenizers import compare_tokenizers
from megadeberta.errors import DataError
from tests.data_fixtures import SOTU
from tests.tokenizer_kinds import byte_bpe_files, wordpiece_file


@pytest.fixture(scope="module")
def paths(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A prepared folder, byte-level BPE and WordPiece."""
    folder = tmp_path_factory.mktemp("vocabularies")
    return [prepared, byte_bpe_files(folder / "bpe"), wordpiece_file(folder / "wordpiece")]


def test_the_numbers_are_those_of_the_ids(paths: list[Path]) -> None:
    tokenizers = [load_tokenizer(path) for path in (paths[0] / "tokenizer", *paths[1:])]
    texts = ["the people \u13a0 the", "of people\n\u13a0\u13a0"]
    facts, fits = compare_tokenizers(tokenizers, iter(texts))
    assert (facts.documents, facts.words.total(), facts.characters["\u13a0"]) == (2, 7, 3)
    assert facts.bytes == sum(len(text.encode()) for text in texts)
    for tokenizer, fit in zip(tokenizers, fits, strict=True):
        ids = [token_id for text in texts for token_id in tokenizer.encode(text)]
        assert fit.tokens == len(ids)
        assert fit.tokens_per_word == pytest.approx(len(ids) / 7)
        assert fit.unknown_tokens == pytest.approx(ids.count(tokenizer.unk_id) / len(ids))
        has_bytes = fit.kind == "bpe"
        assert fit.uncovered_characters == pytest.approx(0 if has_bytes else 3 / facts.characters.total())
        behind = [len(tokenizer.encode(f". {word}")) - len(tokenizer.encode(".")) for word in ("the", "people", "of")]
        known = [number == 1 for number in behind]
        assert known[0]
        assert fit.whole_words == pytest.approx(sum(n * k for n, k in zip((2, 2, 1), known, strict=True)) / 7)
        ordinary = (tokenizer.piece_kinds() != PieceKind.SPECIAL).sum()
        assert fit.entries_used == pytest.approx(len(set(ids) - {tokenizer.unk_id}) / ordinary)


def test_text_without_words_is_refused(paths: list[Path]) -> None:
    with pytest.raises(DataError, match="--text: there is no word in it"):
        compare_tokenizers([load_tokenizer(paths[1])], [" ", "\n"])


def test_the_command_prints_a_table_of_80_columns_or_json(paths: list[Path], tmp_path: Path) -> None:
    records = tmp_path / "held-out.jsonl"
    lines = SOTU.read_text(encoding="utf-8").splitlines()[-40:]
    records.write_text("".join(json.dumps({"body": line}) + "\n" for line in lines if line))
    words = ["tokenizer", "compare", *map(str, paths), "--text", str(records), "--text-key", "body"]
    table = CliRunner(env={"COLUMNS": "80"}).invoke(command_line(["tokenizer"]), words)
    assert table.exit_code == 0, table.output
    for name in ("tokens per word", "unknown tokens", "characters covered", "entries that occur"):
        assert name in table.output
    assert f"A = {paths[0]}" in table.output
    assert all(len(line) <= 80 for line in table.output.splitlines() if "\u2502" in line)

    found = json.loads(CliRunner().invoke(command_line(["tokenizer"]), [*words, "--json"]).stdout)
    assert list(found["tokenizers"]) == list(map(str, paths))
    assert found["text"]["words"] == sum(len(line.split()) for line in lines)
    assert [fit["kind"] for fit in found["tokenizers"].values()] == ["unigram", "bpe", "wordpiece"]
