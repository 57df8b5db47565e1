"""Vocabularies of every kind the whole way: prep, 20 steps, export, AutoTokenizer; equal ids at the end."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megadeberta.config.set_files import tokenizer_in
from megadeberta.data.indexed import TokenShard
from megadeberta.data.tokenizer import load_tokenizer
from tests.data_fixtures import SOTU, train_vocabulary
from tests.e2e.tiny_run import finish, start, write_recipe
from tests.tokenizer_kinds import KINDS, distinct_lines
from tests.unit.convert.odd_texts import ALL_TEXTS, ODD_TEXTS
from tests.unit.data.test_fast_unigram import KINDS as UNIGRAM_KINDS
from tests.unit.data.test_fast_unigram import SPECIAL, random_texts


def _unigram(options: dict[str, object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        path = folder / "spm.model"
        return train_vocabulary(path, extra=ALL_TEXTS, vocab_size=900, num_sub_iterations=1, **options)

    return make


ALL_KINDS = KINDS | {f"unigram, {name}": _unigram(options) for name, options in UNIGRAM_KINDS.items()}


def _run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "megadeberta", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_from_text_to_transformers(kind: str, tmp_path: Path) -> None:
    given = ALL_KINDS[kind](tmp_path / "given")
    prepared, export = tmp_path / "prepared", tmp_path / "export"
    _run("prep", SOTU, "--tokenizer", given, "--output", prepared, "--max-unknown-fraction", 1)
    path = tokenizer_in(prepared / "tokenizer")
    tokenizer = load_tokenizer(path)
    recipe = write_recipe(tmp_path, prepared, training__steps=20, data__tokenizer=str(path))
    finish_output = finish(start(recipe, "--set", "model.vocab_size=auto", ranks=1))
    assert "20" in finish_output
    assert "documents of the run" in _run("convert", "export", tmp_path / "run", export)

    auto = AutoTokenizer.from_pretrained(export)
    special = [auto.pad_token_id, auto.cls_token_id, auto.sep_token_id, auto.unk_token_id, auto.mask_token_id]
    assert special == [0, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id]
    texts = [*(text for texts in ODD_TEXTS.values() for text in texts), *random_texts(1000, seed=11)]
    texts = [text for text in distinct_lines(2200) + texts if not any(name in text for name in SPECIAL)]
    assert len(texts) > 3000
    differing = [t for t in texts if auto(t, add_special_tokens=False)["input_ids"] != tokenizer.encode(t)]
    assert [ascii(text) for text in differing] == []

    imported = tmp_path / "imported"
    _run("convert", "import", export, imported)
    assert tokenizer_in(imported).read_bytes() == path.read_bytes()
    with TokenShard.open(prepared / "train") as shard:
        assert shard.manifest.tokenizer_sha256 == tokenizer.sha256
