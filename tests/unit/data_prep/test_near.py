"""Near-duplicates: what is found, what is not, the same bytes however it was run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import megadeberta.data_prep.near.find
import megadeberta.data_prep.near.links
import megadeberta.data_prep.prepare
from megadeberta.data.tokenizer import PieceKind
from megadeberta.data_prep.near.exact import common_in_order
from megadeberta.data_prep.near.groups import DocumentGroups
from megadeberta.data_prep.near.sketches import BANDS, COMPARED, WORDS_COMPARED, document_runs, document_words, sketches
from megadeberta.data_prep.options import Deduplication, PrepOptions, SplitOptions, VocabularyOptions
from megadeberta.data_prep.outcome import Outcome
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.verify import verify_set
from megadeberta.errors import ConfigError
from tests.data_fixtures import SOTU

FILES = ("train.bin", "train.idx", "train.json", "valid.bin", "valid.idx", "valid.json")
PARAGRAPHS = [text for text in SOTU.read_text(encoding="utf-8").split("\n\n") if len(text.split()) >= 40]
WORDS = SOTU.read_text(encoding="utf-8").split()


@pytest.fixture
def model(prepared: Path) -> Path:
    return prepared / "tokenizer" / "spm.model"


def edited(text: str, fraction: float, generator: random.Random) -> str:
    """So many words replaced, removed or added, at random places."""
    words = text.split()
    for place in generator.sample(range(len(words)), max(1, round(fraction * len(words)))):
        other = generator.choice(WORDS)
        words[place] = generator.choice([other, other, "", f"{words[place]} {other}"])
    return " ".join(" ".join(words).split())


def run(corpus: Path, output: Path, model: Path, **options: Any) -> Outcome:
    options = {"deduplicate": Deduplication.NEAR, "split": SplitOptions(fraction=0.1), **options}
    prepared = PrepOptions((corpus,), output, VocabularyOptions(tokenizer=model), **options)
    return prepare(prepared, console=Console(quiet=True), plot=lambda folder, lengths: None)


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def planted_corpus(path: Path) -> int:
    """Every paragraph, and one edited copy of each at a random place; returns how many there are of each."""
    generator = random.Random(5)
    copies = [edited(text, generator.uniform(0.01, 0.2), generator) for text in PARAGRAPHS]
    texts = [*PARAGRAPHS, *copies]
    generator.shuffle(texts)
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return len(PARAGRAPHS)


def test_edited_copies_are_left_out_and_nothing_else(tmp_path: Path, model: Path) -> None:
    number = planted_corpus(tmp_path / "corpus.txt")
    outcome = run(tmp_path / "corpus.txt", tmp_path / "out", model)
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert outcome.train is not None and outcome.valid is not None
    kept = outcome.train.num_documents + outcome.valid.num_documents
    assert report["near_duplicates"]["documents"] == 2 * number - kept
    # Each copy has its original and no other near it: one of every two is kept, but for the few that are missed.
    assert number <= kept < 1.02 * number
    for example in report["near_duplicates"]["examples"]:
        words = [set(example[name].split()[:20]) for name in ("kept", "left_out")]
        assert len(words[0] & words[1]) > 8
    assert outcome.train.options["similarity"] == 0.75
    assert set(verify_set(tmp_path / "out").shards) == {"train", "valid"}


def test_similarity_is_the_fraction_of_words_that_are_shared(tmp_path: Path, model: Path) -> None:
    generator = random.Random(6)
    copies = [edited(text, 0.1, generator) for text in PARAGRAPHS]
    (tmp_path / "corpus.txt").write_text("\n\n".join([*PARAGRAPHS, *copies]), encoding="utf-8")
    found = {}
    for similarity in (0.8, 0.97):
        run(tmp_path / "corpus.txt", tmp_path / f"{similarity}", model, similarity=similarity)
        report = json.loads((tmp_path / f"{similarity}" / "report.json").read_bytes())
        found[similarity] = report["near_duplicates"]["documents"]
    assert found[0.8] > 0.98 * len(PARAGRAPHS) and found[0.97] < 0.05 * len(PARAGRAPHS)


def test_a_long_passage_in_common_does_not_make_documents_similar(tmp_path: Path, model: Path) -> None:
    # In one piece 44 % of the words have more equal runs than three quarters in small ones: runs alone leave out 39.
    words = " ".join(PARAGRAPHS).split()
    footer = words[:120]
    pages = [" ".join(words[start : start + 150] + footer) for start in range(150, 6150, 150)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(pages), encoding="utf-8")
    run(tmp_path / "corpus.txt", tmp_path / "out", model)
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert report["near_duplicates"]["documents"] <= 3 and len(pages) == 40


def test_near_the_border_the_words_in_their_order_decide(tmp_path: Path, model: Path) -> None:
    generator, copies = random.Random(8), []
    for number, text in enumerate(PARAGRAPHS):
        words = text.split()
        for place in generator.sample(range(len(words)), round((0.2 if number % 2 else 0.28) * len(words))):
            words[place] = generator.choice(WORDS)
        copies.append(" ".join(words))
    (tmp_path / "corpus.txt").write_text("\n\n".join([*PARAGRAPHS, *copies]), encoding="utf-8")
    run(tmp_path / "corpus.txt", tmp_path / "out", model)
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    found, alike = report["near_duplicates"]["documents"], len(PARAGRAPHS) // 2
    assert found == alike


def test_words_in_common_are_counted_in_their_order() -> None:
    generator = random.Random(2)
    for _ in range(50):
        first, second = ([generator.randrange(6) for _ in range(generator.randrange(1, 90))] for _ in range(2))
        table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for i, one in enumerate(first):
            for j, other in enumerate(second):
                table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
        assert common_in_order(first, second) == table[-1][-1]


def test_short_documents_must_be_equal_and_validation_keeps_its_own(tmp_path: Path, model: Path) -> None:
    (tmp_path / "valid.txt").write_text(f"{PARAGRAPHS[3]}\n\nOf the union.", encoding="utf-8")
    short = ["Part one of the report.", "Part two of the report.", "Part ten of the report."]
    texts = [*PARAGRAPHS[:6], *short, edited(PARAGRAPHS[3], 0.05, random.Random(1))]
    (tmp_path / "train.txt").write_text("\n\n".join(texts), encoding="utf-8")
    outcome = run(tmp_path / "train.txt", tmp_path / "out", model, valid_corpora=(tmp_path / "valid.txt",))
    assert outcome.train is not None and outcome.valid is not None
    assert (outcome.train.num_documents, outcome.valid.num_documents) == (8, 2)


def test_the_same_bytes_for_any_number_of_workers_and_after_a_stop(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_corpus(tmp_path / "corpus.txt")
    monkeypatch.setattr(megadeberta.data_prep.prepare, "choose_block_bytes", lambda sources: 50_000)
    monkeypatch.setattr(megadeberta.data_prep.near.find, "_DOCUMENTS_PER_WORKER", 1)
    monkeypatch.setattr(megadeberta.data_prep.near.links, "_WORTH_A_FILE", 20 * 2 * len(PARAGRAPHS))
    run(tmp_path / "corpus.txt", tmp_path / "one", model)
    run(tmp_path / "corpus.txt", tmp_path / "two", model, workers=2)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    real, calls = megadeberta.data_prep.near.find.find_links, []

    def stopped(context: Any, bands: range) -> range:
        calls.append(bands)
        if len(calls) in (3, 7):
            raise KeyboardInterrupt
        return real(context, bands)

    monkeypatch.setattr(megadeberta.data_prep.near.find, "find_links", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "corpus.txt", tmp_path / "stopped", model)
        assert not (tmp_path / "stopped" / "train.json").exists()
    run(tmp_path / "corpus.txt", tmp_path / "stopped", model)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "one")
    assert not (tmp_path / "stopped" / ".parts").exists()


def test_groups_are_what_pairs_connect_in_any_order(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    pairs = generator.integers(0, 500, (350, 2))
    expected = np.arange(500)
    for _ in range(500):
        lowest = np.minimum(expected[pairs[:, 0]], expected[pairs[:, 1]])
        np.minimum.at(expected, pairs[:, 0], lowest)
        np.minimum.at(expected, pairs[:, 1], lowest)
    for order in (np.arange(350), generator.permutation(350)):
        groups = DocumentGroups(tmp_path / "parents", 500)
        for some in np.array_split(pairs[order], 5):
            groups.join(some)
        assert [groups.first_of(document) for document in range(500)] == expected.tolist()
        assert groups.firsts().tolist() == (expected == np.arange(500)).tolist()


def test_a_sketch_depends_on_its_document_alone() -> None:
    kinds = np.array([PieceKind.SPECIAL] * 4 + [PieceKind.WORD_START, PieceKind.CONTINUATION] * 500, np.uint8)
    generator = np.random.default_rng(4)
    lengths = generator.integers(1, 80, 50)
    tokens = generator.integers(4, 1004, lengths.sum()).astype(np.uint16)
    together = sketches(tokens, lengths, kinds)
    assert together.shape == (50, BANDS * 3 + WORDS_COMPARED) and BANDS * 3 >= COMPARED
    ends = np.cumsum(lengths)
    for document in range(50):
        alone = tokens[ends[document] - lengths[document] : ends[document]]
        np.testing.assert_array_equal(sketches(alone, lengths[document : document + 1], kinds)[0], together[document])


def test_runs_are_of_three_words_whatever_their_tokens() -> None:
    kinds = np.array([PieceKind.SPECIAL] * 4 + [PieceKind.WORD_START, PieceKind.CONTINUATION] * 50, np.uint8)
    words = [np.array([4 + 2 * (place % 40)] + [5] * (place % 3)) for place in range(12)]
    tokens = np.concatenate([*words, words[0], *words])
    lengths = np.array([sum(map(len, words)), len(words[0]) + sum(map(len, words))])
    runs, counts = document_runs(*document_words(tokens, lengths, kinds))
    assert counts.tolist() == [10, 11]
    np.testing.assert_array_equal(runs[:10], runs[11:])


def test_without_the_package_it_is_refused_before_any_work(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megadeberta.data_prep.near.find, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--deduplicate=near needs rensa: pip install 'megadeberta\[dedup\]'"):
        run(SOTU, tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


@pytest.mark.campaign
def test_twenty_kills_at_random_instants_give_the_same_bytes(tmp_path: Path, model: Path) -> None:
    planted_corpus(tmp_path / "corpus.txt")
    run(tmp_path / "corpus.txt", tmp_path / "whole", model)
    code = "import sys; from megadeberta.cli import main; sys.exit(main())"
    options = ["--tokenizer", str(model), "--deduplicate=near", "--valid-fraction=0.1", "--workers=1"]
    command = [sys.executable, "-c", code, "prep", str(tmp_path / "corpus.txt"), *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    generator = random.Random(7)
    began = time.monotonic()
    subprocess.run([*command, "--output", str(tmp_path / "timed")], env=environment, check=True, capture_output=True)
    whole_run = time.monotonic() - began
    for number in range(20):
        output = tmp_path / f"killed-{number}"
        for _ in range(2):
            process = subprocess.Popen([*command, "--output", str(output)], env=environment, stdout=subprocess.DEVNULL)
            time.sleep(generator.uniform(0.2, 1.0) * whole_run)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run([*command, "--output", str(output)], env=environment, check=True, capture_output=True)
        assert files_of(output) == files_of(tmp_path / "whole")
        assert not (output / ".parts").exists()
