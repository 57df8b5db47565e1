"""The export's comparison of tokenizers: on text of the run, with ties told from mistakes; and early refusals."""

from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megadeberta.config.data import DataConfig
from megadeberta.convert.tokenizer.same_ids import ODD_TEXTS, Exceptions, check_same_ids, texts_of_run
from megadeberta.convert.tokenizer.tokenizer_json import write_tokenizer
from megadeberta.data.check import check_data
from megadeberta.data.tokenizer import SentencePieceTokenizer, load_tokenizer
from megadeberta.data_prep.options import PrepOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare
from megadeberta.errors import CheckpointError, DataError
from megadeberta.weights.source import ModelSource
from megadeberta.weights.vocabulary import check_tokenizer_fits
from tests.data_fixtures import SOTU, train_vocabulary
from tests.tokenizer_kinds import wordpiece_file
from tests.unit.convert.small_models import small_config
from tests.unit.data.small_data import write_shard


@pytest.fixture(scope="module")
def auto(spm: Path, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("exported")
    write_tokenizer(spm, folder, max_length=512)
    return AutoTokenizer.from_pretrained(folder)


def test_texts_are_held_out_documents_of_the_run(prepared: Path, spm: Path) -> None:
    data = {"train": str(prepared / "train"), "valid": str(prepared / "valid"), "tokenizer": "gone.model"}
    source = ModelSource(prepared, small_config(), {}, None, run={"config": {"data": data}})
    tokenizer = load_tokenizer(prepared / "tokenizer")
    texts = texts_of_run(source, tokenizer)
    assert len(texts) > 5
    assert texts[0][:40] in SOTU.read_text(encoding="utf-8")
    assert texts_of_run(source, load_tokenizer(spm)) == []  # token files of another vocabulary
    gone = {"train": "gone", "tokenizer": "gone.model"}
    for run in ({}, {"config": {"data": gone}}, {"config": {"data": {"train": "x"}}}):
        assert texts_of_run(ModelSource(prepared, small_config(), {}, None, run=run), tokenizer) == []


class Swapped(SentencePieceTokenizer):
    """Changes the ids of one text."""

    text, ids = "", ()

    def encode(self, text: str) -> list[int]:
        return list(self.ids) if text == self.text else super().encode(text)


def test_two_equally_likely_cuts_are_counted_and_others_are_mistakes(spm: Path, auto: PreTrainedTokenizerFast) -> None:
    reference, text = Swapped.load(spm), "the people of the United States"
    assert str(check_same_ids(reference, auto, [text], "out")) == ""
    ids = reference.encode(text)
    reference.text, reference.ids = text, [*ids[1:], ids[0]]
    found = check_same_ids(reference, auto, [text, "and of the people"], "out")
    assert found == Exceptions(toss_ups=1, known=0)
    assert str(found).startswith(", but for 1 that hold a word with two cuts of the same probability")
    reference.ids = [*ids[:-1], 300]
    with pytest.raises(CheckpointError, match=r"out: AutoTokenizer and spm\.model give different ids for 'the people"):
        check_same_ids(reference, auto, [text], "out")
    reference.text = "a letter \U00016d68 of Kirat Rai"
    assert check_same_ids(reference, auto, [reference.text], "out") == Exceptions(toss_ups=0, known=1)
    reference.text, reference.ids = ODD_TEXTS[0], []
    with pytest.raises(CheckpointError, match="give different ids for 'Two  spaces"):
        check_same_ids(reference, auto, [], "out")


def test_what_could_not_be_exported_is_refused_before_it_is_trained_on(tmp_path: Path) -> None:
    path = train_vocabulary(tmp_path / "spm.model", vocab_size=400, num_sub_iterations=1, add_dummy_prefix=False)
    refusal = r"spm\.model: was trained with add_dummy_prefix=false.*could not be exported"
    options = PrepOptions(corpora=(SOTU,), output=tmp_path / "set", vocabulary=VocabularyOptions(tokenizer=path))
    with pytest.raises(DataError, match=refusal):
        prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
    assert not (tmp_path / "set").exists()
    with pytest.raises(DataError, match=refusal):
        check_tokenizer_fits(path, small_config())
    write_shard(tmp_path / "train", load_tokenizer(path), num_tokens=500)
    data = DataConfig(train=tmp_path / "train", tokenizer=path, sequence_length=32)
    with pytest.raises(DataError, match=refusal):
        check_data(data, 512)


def test_a_tokenizer_file_that_was_not_prepared_is_refused_by_training(tmp_path: Path) -> None:
    path = wordpiece_file(tmp_path / "given")
    write_shard(tmp_path / "train", load_tokenizer(path), num_tokens=500)
    data = DataConfig(train=tmp_path / "train", tokenizer=path, sequence_length=32)
    with pytest.raises(DataError, match=r"set it to the tokenizer\.json in the folder tokenizer/"):
        check_data(data, 1024)
    prepared = path.with_name("tokenizer.json")
    prepared.write_bytes(load_tokenizer(path).content)
    assert check_data(data.model_copy(update={"tokenizer": prepared}), 1024).mask_id == 4
