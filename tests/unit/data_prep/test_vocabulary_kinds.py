"""New vocabularies of every kind: the same bytes every time, ids of special tokens, and what cannot be trained."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from megadeberta.config.set_files import tokenizer_in
from megadeberta.data.indexed import TokenShard
from megadeberta.data.tokenizer import VocabularyTokenizer, load_tokenizer
from megadeberta.data_prep.library_vocabulary import covering_characters
from megadeberta.data_prep.options import PrepOptions, VocabularyKind, VocabularyOptions
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.verify import verify_set
from megadeberta.data_prep.vocabulary import train_vocabulary
from megadeberta.data_prep.vocabulary_sample import Sample, keyed_chunks
from megadeberta.errors import ConfigError, DataError
from tests.data_fixtures import SOTU

KINDS = [(VocabularyKind.UNIGRAM, True), (VocabularyKind.BPE, False), (VocabularyKind.WORDPIECE, False)]


def sample_of(text: str) -> Sample:
    sample = Sample(1 << 22)
    sample.add(chunk for line in text.splitlines() for chunk in keyed_chunks(line.encode()))
    return sample


@pytest.fixture(scope="module")
def sample() -> Sample:
    return sample_of(SOTU.read_text(encoding="utf-8")[:60_000] + "\n" + "\u4e2d\u6587\u65e5\u672c\u8a9e\u3002\n" * 9)


@pytest.fixture(scope="module", params=KINDS, ids=[kind for kind, _ in KINDS])
def trained(
    request: pytest.FixtureRequest, sample: Sample, tmp_path_factory: pytest.TempPathFactory
) -> VocabularyTokenizer:
    kind, byte_fallback = request.param
    options = VocabularyOptions(900, kind=kind, byte_fallback=byte_fallback)
    content = train_vocabulary(sample, options)
    assert train_vocabulary(sample, options) == content
    path = tmp_path_factory.mktemp("trained") / "vocabulary"
    path.write_bytes(content)
    return load_tokenizer(path)


def test_special_tokens_are_where_published_models_have_them(trained: VocabularyTokenizer) -> None:
    assert [trained.cls_id, trained.sep_id, trained.unk_id] == [1, 2, 3]
    assert trained.num_pieces == 900
    assert trained.mask_id == (900 if trained.kind == "unigram" else 899)
    assert trained.fast().token_to_id("[PAD]") == 0


def test_ids_are_those_of_the_exported_file(trained: VocabularyTokenizer) -> None:
    texts = [*SOTU.read_text(encoding="utf-8").splitlines(), "XXX 0000 ----", "\u13a0 e\u0301", "a\tb\u00a0c"]
    fast = trained.fast().encode_batch(texts, add_special_tokens=False)
    assert [ids.tolist() for ids in trained.encode_batch(texts)] == [encoding.ids for encoding in fast]


def test_bytes_leave_nothing_unknown(trained: VocabularyTokenizer) -> None:
    has_unknown = trained.unk_id in trained.encode("the \u13a0 people")
    assert has_unknown == (trained.kind == "wordpiece")


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        (VocabularyKind.BPE, 100, r"100 is too small: the 256 bytes and the special tokens need 261 entries"),
        (VocabularyKind.WORDPIECE, 30, r"30 is too small: \d+ characters of the text"),
        (
            VocabularyKind.BPE,
            99_999,
            r"99999 is more than this corpus allows: .*choose --vocab-size=\d+ or less, or add",
        ),
        (VocabularyKind.WORDPIECE, 99_999, r"99999 is more than this corpus allows"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_one_that_can(
    kind: VocabularyKind, size: int, message: str, sample: Sample
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        train_vocabulary(sample, VocabularyOptions(size, kind=kind))
    found = re.search(r"choose --vocab-size=(\d+)", str(refused.value))
    assert found is not None
    train_vocabulary(sample, VocabularyOptions(int(found[1]), kind=kind))


def test_options_that_say_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="are for a vocabulary to train"):
        VocabularyOptions(tokenizer=Path("spm.model"), kind=VocabularyKind.BPE)
    with pytest.raises(ConfigError, match="--byte-fallback is for --vocab-kind=unigram, not bpe"):
        VocabularyOptions(900, kind=VocabularyKind.BPE, byte_fallback=True)


def test_covering_characters_are_the_frequent_ones() -> None:
    assert covering_characters(iter(["aab bc", "ad"]), 0.7) == ["a", "b"]
    assert covering_characters(iter(["aab bc", "ad"]), 1.0) == ["a", "b", "c", "d"]


def test_a_set_with_a_new_vocabulary_and_then_one_of_another_kind(tmp_path: Path) -> None:
    def run(kind: VocabularyKind, **more: object) -> Path:
        vocabulary = VocabularyOptions(800, kind=kind)
        options = PrepOptions(corpora=(SOTU,), output=tmp_path / "set", vocabulary=vocabulary, **more)
        prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
        return tokenizer_in(tmp_path / "set" / "tokenizer")

    path = run(VocabularyKind.WORDPIECE)
    assert path.name == "tokenizer.json"
    assert verify_set(tmp_path / "set").tokenizer.kind == "wordpiece"
    assert json.loads((tmp_path / "set" / "train.json").read_text())["options"]["vocab_kind"] == "wordpiece"
    with TokenShard.open(tmp_path / "set" / "train") as shard:
        tokenizer = load_tokenizer(path, expected_sha256=shard.manifest.tokenizer_sha256)
        text = tokenizer.decode(shard.document(0).tolist())
    assert text.split()[0] in SOTU.read_text(encoding="utf-8")

    path = run(VocabularyKind.UNIGRAM, overwrite=True)
    assert sorted(found.name for found in path.parent.iterdir()) == ["spm.model", "spm.vocab"]
    assert verify_set(tmp_path / "set").tokenizer.kind == "unigram"
