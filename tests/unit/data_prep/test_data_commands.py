"""`megadeberta data`: new sets from finished ones, and what is shown of a set."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from megadeberta.data.indexed import TokenShard
from megadeberta.data_prep import derived_sets, finished_sets
from megadeberta.data_prep.data_cli import app
from megadeberta.data_prep.derived_sets import Target, merge_sets, sample_set, split_set
from megadeberta.data_prep.finished_sets import FinishedSet, document_groups, document_keys
from megadeberta.data_prep.options import DocumentPer, PrepOptions, ReadOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.progress import Stages
from megadeberta.data_prep.verify import verify_set
from megadeberta.errors import ConfigError, DataError
from tests.data_fixtures import SOTU, train_vocabulary

QUIET = Stages(Console(quiet=True))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """A set with a document per line, and some copies."""
    folder = tmp_path_factory.mktemp("lines")
    text = folder / "lines.txt"
    found = SOTU.read_text().splitlines()
    text.write_text("\n".join([*found, *found[:40]]))
    options = PrepOptions(
        corpora=(text,),
        output=folder / "set",
        vocabulary=VocabularyOptions(tokenizer=prepared / "tokenizer" / "spm.model"),
        read=ReadOptions(document_per=DocumentPer.LINE),
    )
    prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
    return folder / "set"


def documents(folder: Path, split: str) -> list[tuple[int, ...]]:
    with TokenShard.open(folder / split) as shard:
        return [tuple(shard.document(number).tolist()) for number in range(shard.num_documents)]


def test_groups_give_every_document_once(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = documents(lines, "train")
    for size in (1, 50, 1 << 20):
        monkeypatch.setattr(finished_sets, "_GROUP_TOKENS", size)
        found = []
        with TokenShard.open(lines / "train") as shard:
            for tokens, lengths in document_groups(shard):
                found += [tuple(part.tolist()) for part in np.split(tokens, np.cumsum(lengths)[:-1])]
        assert found == expected


def test_keys_depend_on_the_ids_and_the_purpose_alone() -> None:
    tokens, lengths = np.array([5, 6, 7, 5, 6, 9]), np.array([2, 1, 2, 1])
    keys = document_keys(tokens.astype("<u2"), lengths)
    assert keys[0] == keys[2] and len(set(keys.tolist())) == 3
    assert (keys == document_keys(tokens.astype("<i4"), lengths)).all()
    assert (keys != document_keys(tokens, lengths, purpose="sample")).all()


def test_a_sample_is_part_of_a_larger_one_and_validation_stays_whole(lines: Path, tmp_path: Path) -> None:
    samples = []
    for fraction in (0.2, 0.5):
        output = tmp_path / str(fraction)
        with FinishedSet(lines) as one:
            made = sample_set(one, Target(output), fraction=fraction, stages=QUIET)
        verify_set(output)
        samples.append(documents(output, "train"))
        assert documents(output, "valid") == documents(lines, "valid")
        assert made["train"].num_documents == len(samples[-1])
    train = documents(lines, "train")
    for sample, fraction in zip(samples, (0.2, 0.5), strict=True):
        assert abs(len(sample) / len(train) - fraction) < 0.15
        assert sample == [document for document in train if document in set(sample)]
    assert set(samples[0]) < set(samples[1])


def test_a_new_split_is_stable_when_the_corpus_grows(lines: Path, prepared: Path, tmp_path: Path) -> None:
    with FinishedSet(lines) as one:
        split_set(one, Target(tmp_path / "small"), valid=0.2, test=0.2, stages=QUIET)
    with FinishedSet(lines) as one, FinishedSet(prepared) as other:
        merge_sets([one, other], Target(tmp_path / "grown"), stages=QUIET)
    with FinishedSet(tmp_path / "grown") as grown:
        split_set(grown, Target(tmp_path / "large"), valid=0.2, test=0.2, stages=QUIET)
    assert set(verify_set(tmp_path / "large").shards) == {"train", "valid", "test"}
    everything = set()
    for split in ("train", "valid", "test"):
        small, large = set(documents(tmp_path / "small", split)), set(documents(tmp_path / "large", split))
        assert small and small <= large and not large & everything
        everything |= large
    assert everything == set(documents(lines, "train") + documents(lines, "valid")) | set(
        documents(prepared, "train") + documents(prepared, "valid")
    )


def test_merged_sets_have_the_documents_and_files_of_all(lines: Path, prepared: Path, tmp_path: Path) -> None:
    with FinishedSet(lines) as one, FinishedSet(prepared) as other:
        made = merge_sets([one, other], Target(tmp_path / "both"), stages=QUIET)
        again = merge_sets([one, other], Target(tmp_path / "both"), stages=QUIET)
    assert made == again
    for split in ("train", "valid"):
        assert documents(tmp_path / "both", split) == documents(lines, split) + documents(prepared, split)
    assert [source.name for source in made["train"].sources] == ["lines.txt", "sotu.txt"]
    verify_set(tmp_path / "both")


def test_mistakes_are_refused_before_anything_is_written(lines: Path, prepared: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with FinishedSet(lines) as one:
        for fraction in (0.0, 1.0, 5.0):
            with pytest.raises(ConfigError, match=r"--fraction=.*; choose more than 0 and less than 1"):
                sample_set(one, Target(output), fraction=fraction, stages=QUIET)
        with pytest.raises(ConfigError, match=r"--valid=0.6 --test=0.6; choose two fractions above 0"):
            split_set(one, Target(output), valid=0.6, test=0.6, stages=QUIET)
        with pytest.raises(ConfigError, match=r"is a set that is read; give another folder"):
            sample_set(one, Target(lines), fraction=0.5, stages=QUIET)
        with pytest.raises(DataError, match=r"train would have no document; raise the fraction"):
            sample_set(one, Target(output), fraction=1e-9, stages=QUIET)
    with pytest.raises(DataError, match=r"nothing does not exist; give the --output folder of `megadeberta prep`"):
        FinishedSet(tmp_path / "nothing")
    shutil.copytree(lines, tmp_path / "other")
    train_vocabulary(tmp_path / "other" / "tokenizer" / "spm.model", vocab_size=700)
    with pytest.raises(DataError, match=r"its train was made with tokenizer .*run `megadeberta verify"):
        FinishedSet(tmp_path / "other")
    assert not (output / "train.json").exists()


def test_sets_with_other_tokenizers_are_not_merged(lines: Path, tmp_path: Path) -> None:
    model = train_vocabulary(tmp_path / "spm.model", vocab_size=700)
    options = PrepOptions((SOTU,), tmp_path / "other", VocabularyOptions(tokenizer=model))
    prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
    message = r"have other tokenizers .*; prepare one of them again with --tokenizer"
    with (
        FinishedSet(lines) as one,
        FinishedSet(tmp_path / "other") as other,
        pytest.raises(DataError, match=message),
    ):
        merge_sets([one, other], Target(tmp_path / "out"), stages=QUIET)


def test_a_command_that_is_stopped_leaves_nothing_that_looks_whole(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    with FinishedSet(lines) as one:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(derived_sets, "write_report", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
            sample_set(one, Target(output), fraction=0.5, stages=QUIET)
        with pytest.raises(DataError, match=r"holds no train\.bin.*has finished in it"):
            verify_set(output)
        sample_set(one, Target(output), fraction=0.5, stages=QUIET)
    verify_set(output)
    assert not (output / ".parts").exists()


def test_statistics_and_pictures_come_from_the_command_line(lines: Path) -> None:
    result = CliRunner().invoke(app, ["stats", str(lines), "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    train = documents(lines, "train")
    assert found["vocabulary_entries"] == 1000
    assert found["train"]["documents"] == len(train) and found["train"]["tokens"] == sum(map(len, train))
    assert found["train"]["copied_documents"] == len(train) - len(set(train)) > 0
    assert found["train"]["vocabulary_used"] == len({token for document in train for token in document})
    shown = CliRunner().invoke(app, ["inspect", str(lines), "--documents", "2"], catch_exceptions=False).stdout
    assert "train: " in shown and "█" in shown and "from lines.txt" in shown
    assert "[MASK→" in shown and shown.count("of train:") == 2
