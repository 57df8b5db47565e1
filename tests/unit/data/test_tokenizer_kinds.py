"""Tokenizers of the tokenizers library: read from every file, special ids, word starts, one canonical file."""

import json
from pathlib import Path

import pytest
import tokenizers

from megadeberta.data.tokenizer import PieceKind, VocabularyTokenizer, find_tokenizer, load_tokenizer, sequence_marks
from megadeberta.errors import DataError
from tests.data_fixtures import SOTU
from tests.tokenizer_kinds import BERT_ORDER, KINDS, byte_bpe_files, byte_bpe_json, wordpiece_file
from tests.unit.convert.odd_texts import ODD_TEXTS, SPECIAL_NAMES
from tests.unit.data.test_fast_unigram import random_texts

TEXTS = [
    *SOTU.read_text(encoding="utf-8").splitlines(),
    *(text for texts in ODD_TEXTS.values() for text in texts),
    *random_texts(1000, seed=9),
]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VocabularyTokenizer:
    return load_tokenizer(KINDS[request.param](tmp_path_factory.mktemp("kind") / "given"))


def test_ids_are_those_of_the_exported_file(tokenizer: VocabularyTokenizer) -> None:
    fast = tokenizer.fast()
    expected = [encoding.ids for encoding in fast.encode_batch(TEXTS, add_special_tokens=False)]
    found = [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)]
    differing = [t for t, ours, theirs in zip(TEXTS, found, expected, strict=True) if ours != theirs]
    assert [ascii(text) for text in differing] == []


def test_templates_have_one_separator_behind_each_text(tokenizer: VocabularyTokenizer) -> None:
    fast, (first, second) = tokenizer.fast(), (tokenizer.encode("the people"), tokenizer.encode("states"))
    assert fast.encode("the people").ids == [tokenizer.cls_id, *first, tokenizer.sep_id]
    pair = fast.encode("the people", "states")
    assert pair.ids == [tokenizer.cls_id, *first, tokenizer.sep_id, *second, tokenizer.sep_id]
    assert sum(pair.type_ids) == len(second) + 1
    assert len(fast.encode("the " * 100).ids) > 100  # neither cut nor padded


def test_special_tokens_are_never_targets_and_names_in_text_are_text(tokenizer: VocabularyTokenizer) -> None:
    kinds, fast = tokenizer.piece_kinds(), tokenizer.fast()
    special = [0, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id]
    assert [fast.token_to_id(name) for name in ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")] == special
    assert kinds.shape == (tokenizer.vocab_size_needed,) == (tokenizer.num_pieces,)
    assert set(kinds[special].tolist()) == {PieceKind.SPECIAL}
    assert tokenizer.mask_id not in tokenizer.encode(" ".join(SPECIAL_NAMES))
    assert fast.token_to_id("[MASK]") in fast.encode("the [MASK] people").ids


def test_words_start_where_a_text_has_a_space(tokenizer: VocabularyTokenizer) -> None:
    kinds, words = tokenizer.piece_kinds(), "a people unforgettably united in Wisconsin".split()
    ids = tokenizer.encode("now " + " ".join(words))
    starts = [kinds[token_id] == PieceKind.WORD_START for token_id in ids]
    assert sum(starts[len(tokenizer.encode("now")) :]) == len(words)
    assert len(ids) > len(words) + 1


def test_the_one_file_reads_back_as_it_is(tokenizer: VocabularyTokenizer, tmp_path: Path) -> None:
    (tmp_path / tokenizer.file_name).write_bytes(tokenizer.content)
    again = load_tokenizer(tmp_path, expected_sha256=tokenizer.sha256)
    assert (again.content, again.num_pieces, again.mask_id) == (
        tokenizer.content,
        tokenizer.num_pieces,
        tokenizer.mask_id,
    )
    assert sequence_marks(tmp_path / tokenizer.file_name) == (tokenizer.cls_id, tokenizer.sep_id)
    with pytest.raises(DataError, match="the shards were made with another tokenizer"):
        load_tokenizer(tmp_path, expected_sha256="ab" * 32)


def test_ids_of_berts_order_are_kept(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(wordpiece_file(tmp_path / "given"))
    ids = [0, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    assert ids == list(range(len(BERT_ORDER)))
    assert tokenizer.piece_kinds()[[5, 6]].tolist() == [PieceKind.SPECIAL] * 2  # [unused0], [unused1]
    assert tokenizer.encode("The PEOPLE") == tokenizer.encode("the people")  # no entry has a capital letter


def test_capital_letters_follow_the_settings_beside_the_vocabulary(tmp_path: Path) -> None:
    path = wordpiece_file(tmp_path / "given")
    (path.parent / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    tokenizer = load_tokenizer(path.parent)
    assert tokenizer.encode("PEOPLE") == [tokenizer.unk_id]


def test_ids_of_the_two_files_are_those_of_the_library(tmp_path: Path) -> None:
    folder = byte_bpe_files(tmp_path / "given")
    reference = tokenizers.ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.mask_id == tokenizer.num_pieces - 1
    for text in TEXTS[:300]:
        assert tokenizer.encode(text) == reference.encode(text).ids
    text = "The people\u2019s \u4e2d\u6587 \U0001f600"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pieces_of_bytes_read_as_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_bpe_json(tmp_path / "given"))
    assert [tokenizer.piece(token_id) for token_id in tokenizer.encode(" the")] == ["\u2581the"]
    kinds = tokenizer.piece_kinds()
    first, *others = (kinds[token_id] for token_id in tokenizer.encode("\u13a0"))
    assert (first, set(others)) == (PieceKind.E1, {PieceKind.REST})


def _without(name: str, folder: Path) -> Path:
    path = byte_bpe_files(folder) / "vocab.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    vocabulary["renamed"] = vocabulary.pop(name)
    path.write_text(json.dumps(vocabulary), encoding="utf-8")
    return path


def test_vocabularies_that_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the vocabulary has no \[MASK\]; a DeBERTa needs"):
        load_tokenizer(_without("[MASK]", tmp_path / "no mask"))
    path = wordpiece_file(tmp_path / "pad")
    entries = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([entries[1], entries[0], *entries[2:]]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"\[PAD\] has id 1, and needs 0"):
        load_tokenizer(path)
    plain = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(plain))
    with pytest.raises(DataError, match="of kind BPE without byte level, which is not trained on"):
        load_tokenizer(plain)
    plain.write_text('{"model": 1')
    with pytest.raises(DataError, match=r"not a tokenizer\.json, or it is damaged"):
        load_tokenizer(plain)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no tokenizer: none of spm\.model, tokenizer\.json, vocab\.json"):
        load_tokenizer(tmp_path / "empty")
    assert find_tokenizer(tmp_path / "empty") is None
    config = {"word_tokenizer_type": "mecab"}
    (path.parent / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="asks for MeCab"):
        load_tokenizer(path)


def _with_added(path: Path, folder: Path, *, special: bool) -> Path:
    """Its ``tokenizer.json`` with two tokens more, as ``add_tokens`` of transformers leaves it."""
    library = load_tokenizer(path).fast()
    add = library.add_special_tokens if special else library.add_tokens
    add(["<url>", "New York"])
    folder.mkdir(exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("kind", ["byte-level BPE, tokenizer.json", "WordPiece, vocab.txt", "unigram, tokenizer.json"])
def test_added_tokens_are_found_in_text_as_the_export_finds_them(kind: str, special: bool, tmp_path: Path) -> None:
    path = _with_added(KINDS[kind](tmp_path / "given"), tmp_path, special=special)
    tokenizer = load_tokenizer(path)
    added = [tokenizer.fast().token_to_id(name) for name in ("<url>", "New York")]
    for text in ("see <url>, in New York.", "<url><url>", "a [MASK] b", *TEXTS[:50]):
        if "[MASK]" not in text:
            assert tokenizer.encode(text) == tokenizer.fast().encode(text, add_special_tokens=False).ids
        assert tokenizer.mask_id not in tokenizer.encode(text)
    assert set(added) < set(tokenizer.encode("see <url>, in New York."))
    assert "<url>" in tokenizer.decode(tokenizer.encode("see <url>"))
    kinds = tokenizer.piece_kinds()[added]
    assert all(kinds == PieceKind.SPECIAL) if special else all(kinds != PieceKind.SPECIAL)


def test_the_file_that_has_added_tokens_is_taken_of_two(tmp_path: Path, spm: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "spm.model").write_bytes(spm.read_bytes())
    load_tokenizer(spm).fast().save(str(folder / "tokenizer.json"))
    mask = load_tokenizer(spm).mask_id
    (folder / "added_tokens.json").write_text(json.dumps({"[MASK]": mask}))
    assert find_tokenizer(folder) == folder / "spm.model"  # both say the same
    _with_added(spm, folder, special=False)
    assert find_tokenizer(folder) == folder / "tokenizer.json"
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps({"[MASK]": mask, "<url>": mask + 1}))
    with pytest.raises(
        DataError, match=r"added_tokens\.json has '<url>', which spm\.model has not; write the tokenizer\.js"
    ):
        find_tokenizer(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"[MASK]": mask + 5}))  # the weights' row for it is elsewhere
    with pytest.raises(DataError, match=r"added_tokens\.json has '\[MASK\]', which spm"):
        load_tokenizer(folder)
    (folder / "added_tokens.json").write_text("[1]")
    assert load_tokenizer(folder).mask_id == mask
