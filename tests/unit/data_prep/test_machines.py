"""Several machines: the bytes of one machine, and parts that do not belong together are refused."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import megadeberta.data_prep.prepare
from megadeberta.data_prep.division import WorkDivision
from megadeberta.data_prep.machines import RECORD
from megadeberta.data_prep.merge_machines import merge_machines
from megadeberta.data_prep.options import Deduplication, PrepOptions, SplitOptions, VocabularyOptions
from megadeberta.data_prep.outcome import Outcome
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.verify import verify_set
from megadeberta.errors import ConfigError, DataError
from tests.data_fixtures import SOTU, train_vocabulary

FILES = ("train.bin", "train.sum", "train.idx", "train.json", "valid.bin", "valid.idx", "valid.json")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files, a large one and compressed ones, with copies that lie in different blocks."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    paragraphs = SOTU.read_text().split("\n\n")
    for number, text in enumerate(paragraphs):
        (folder / f"{number:02d}.txt").write_text(text)
    (folder / "all.txt").write_text("\n\n".join(paragraphs))
    (folder / "large.txt.gz").write_bytes(gzip.compress("\n\n".join(reversed(paragraphs)).encode()))
    (folder / "small.txt.gz").write_bytes(gzip.compress(f"{paragraphs[0]}\n\nA document of its own.".encode()))
    monkeypatch.setattr(megadeberta.data_prep.prepare, "choose_block_bytes", lambda sources: 20_000)
    monkeypatch.setattr(megadeberta.data_prep.prepare, "choose_whole_bytes", lambda sources: 30_000)
    return folder


def run(corpus: Path, output: Path, model: Path, **options: Any) -> Outcome:
    prepared = PrepOptions((corpus,), output, VocabularyOptions(tokenizer=model), **options)
    return prepare(prepared, console=Console(quiet=True), plot=lambda folder, lengths: None)


def merge(folders: list[Path], output: Path) -> Outcome:
    return merge_machines(folders, output, console=Console(quiet=True), plot=lambda folder, lengths: None)


@pytest.fixture
def model(prepared: Path) -> Path:
    return prepared / "tokenizer" / "spm.model"


def test_merged_parts_are_the_bytes_of_one_machine(corpus: Path, tmp_path: Path, model: Path) -> None:
    for deduplicate in Deduplication:
        options = {"deduplicate": deduplicate, "split": SplitOptions(fraction=0.1)}
        whole, merged = tmp_path / f"whole-{deduplicate}", tmp_path / f"merged-{deduplicate}"
        one = run(corpus, whole, model, **options)
        parts = [tmp_path / f"part-{number}-{deduplicate}" for number in (1, 2, 3)]
        for number, part in enumerate(parts, 1):
            assert run(corpus, part, model, part=(number, 3), **options).train is None
            with pytest.raises(DataError, match=r"holds no train\.bin.*has finished in it"):
                verify_set(part)
        outcome = merge([parts[2], parts[0], parts[1]], merged)
        assert (outcome.train, outcome.valid, outcome.text_bytes) == (one.train, one.valid, one.text_bytes)
        assert {name: (merged / name).read_bytes() for name in FILES} == {
            name: (whole / name).read_bytes() for name in FILES
        }
        assert set(verify_set(merged).shards) == {"train", "valid"}
        assert merge(parts, merged).was_finished


def test_every_machine_has_some_of_the_work(corpus: Path, tmp_path: Path, model: Path) -> None:
    sizes = []
    for number in (1, 2, 3):
        part = tmp_path / f"part-{number}"
        run(corpus, part, model, part=(number, 3))
        sizes.append(sum(path.stat().st_size for path in part.glob(".parts/*/part-*.tokens")))
    assert min(sizes) > 0.2 * sum(sizes)


def test_parts_that_do_not_belong_together_are_refused(corpus: Path, tmp_path: Path, model: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(corpus, one, model, part=(1, 2))
    with pytest.raises(DataError, match=r"1 of 2 parts are missing: 2/2; give their folders"):
        merge([one], tmp_path / "out")
    shutil.copytree(one, tmp_path / "copy")
    with pytest.raises(DataError, match=r"copy and .*one are both part 1/2; give each once"):
        merge([one, tmp_path / "copy"], tmp_path / "out")
    run(corpus, two, model, part=(2, 2), split=SplitOptions(fraction=0.3), deduplicate=Deduplication.EXACT)
    with pytest.raises(DataError, match=r"two and .*one were prepared with other split, deduplicate; all parts need"):
        merge([one, two], tmp_path / "out")
    (corpus / "00.txt").write_text("Another text.")
    run(corpus, two, model, part=(2, 2))
    with pytest.raises(DataError, match=r"were prepared with other files; all parts need the same"):
        merge([one, two], tmp_path / "out")
    with pytest.raises(
        DataError, match=r"part\.json: cannot be read .*; give the --output of `megadeberta prep --part`"
    ):
        merge([one, corpus], tmp_path / "out")
    assert not (tmp_path / "out" / "train.json").exists()


def test_a_damaged_or_unfinished_part_is_named(corpus: Path, tmp_path: Path, model: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(corpus, one, model, part=(1, 2))
    run(corpus, two, model, part=(2, 2))
    tokens = sorted(two.glob(".parts/*/part-*.tokens"))[0]
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"two: block 0 is missing or damaged; copy the folder again, \.parts included"):
        merge([one, two], tmp_path / "out")
    (tokenizer,) = one.glob(".parts/*/spm.model")
    train_vocabulary(tokenizer, vocab_size=700)
    with pytest.raises(DataError, match=r"spm\.model: is not the tokenizer the part was made with; copy the folder"):
        merge([one, two], tmp_path / "out")
    (two / RECORD).write_text("{")
    with pytest.raises(DataError, match=r"part\.json: is damaged; run that part again"):
        merge([one, two], tmp_path / "out")


def test_a_part_needs_a_tokenizer_and_a_number_of_its_own(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match=r"--part needs --tokenizer, the same file on every machine"):
        PrepOptions((tmp_path,), tmp_path / "out", VocabularyOptions(size=600), part=(1, 2))
    with pytest.raises(ConfigError, match=r"--part=3/2; choose 1/N to N/N"):
        PrepOptions((tmp_path,), tmp_path / "out", VocabularyOptions(tokenizer=model), part=(3, 2))


def test_every_block_is_taken_by_exactly_one_machine() -> None:
    sizes = [100, 5, 70, 70, 1, 0, 400, 30, 30, 30]
    divisions = [WorkDivision(part, 3) for part in (1, 2, 3)]
    assert all(sum(division.takes(size) for division in divisions) == 1 for size in sizes)
