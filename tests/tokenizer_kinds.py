"""Small vocabularies of every kind, made with the libraries that published ones were made with."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import DebertaV2Tokenizer

from megadeberta.data.tokenizer.byte_bpe import byte_level
from megadeberta.data.tokenizer.wordpiece import bert_like
from tests.data_fixtures import SOTU, train_vocabulary

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
BERT_ORDER = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _train(tokenizer: Tokenizer, trainer: object) -> Tokenizer:
    tokenizer.train_from_iterator(SOTU.read_text(encoding="utf-8").splitlines(), trainer)
    return tokenizer


def byte_bpe_files(folder: Path) -> Path:
    """``vocab.json`` and ``merges.txt`` with the ids of DeBERTa v1: [MASK] last."""
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    folder.mkdir(parents=True)
    trained = _train(byte_level(models.BPE()), trainer)
    trained.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["[MASK]"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "gpt2"}))
    return folder


def byte_bpe_json(folder: Path) -> Path:
    """A ``tokenizer.json`` of byte-level BPE as others write it: no template, truncation and padding on."""
    files = byte_bpe_files(folder)
    tokenizer = byte_level(models.BPE.from_file(str(files / "vocab.json"), str(files / "merges.txt")))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    tokenizer.add_special_tokens([*SPECIAL, "[MASK]"])
    tokenizer.save(str(folder / "only.json"))
    return folder / "only.json"


def wordpiece_file(folder: Path) -> Path:
    """``vocab.txt`` of BERT's order of special tokens, with some unused entries."""
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=[*BERT_ORDER, "[unused0]", "[unused1]"], show_progress=False
    )
    folder.mkdir(parents=True)
    trained = _train(bert_like(models.WordPiece(unk_token="[UNK]"), lowercase=True), trainer)
    trained.model.save(str(folder))
    return folder / "vocab.txt"


def wordpiece_json(folder: Path) -> Path:
    """A cased ``tokenizer.json`` of WordPiece with digits apart and another normaliser, as CamemBERTaV2 has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\u2019", "'")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits()]
    )
    trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=[*SPECIAL, "[MASK]"], show_progress=False)
    folder.mkdir(parents=True)
    _train(tokenizer, trainer).save(str(folder / "tokenizer.json"))
    return folder


def unigram_json(folder: Path) -> Path:
    """The ``tokenizer.json`` that transformers writes for an ``spm.model``, without that file."""
    (folder / "model").mkdir(parents=True)
    train_vocabulary(folder / "model" / "spm.model", vocab_size=700, num_sub_iterations=1)
    DebertaV2Tokenizer.from_pretrained(folder / "model").save_pretrained(folder / "saved")
    assert not (folder / "saved" / "spm.model").exists()
    return folder / "saved"


def distinct_lines(count: int) -> list[str]:
    """Lines of the test text, the documents and the code of this repository, in a random order of their own."""
    root = Path(__file__).parents[1]
    files = (SOTU, *sorted(root.glob("docs/*.md")), *sorted(root.glob("megadeberta/**/*.py")))
    lines = list(
        dict.fromkeys(line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    )
    random.Random(1).shuffle(lines)
    return lines[:count]


KINDS: dict[str, Callable[[Path], Path]] = {
    "byte-level BPE, two files": byte_bpe_files,
    "byte-level BPE, tokenizer.json": byte_bpe_json,
    "WordPiece, vocab.txt": wordpiece_file,
    "WordPiece, tokenizer.json": wordpiece_json,
    "unigram, tokenizer.json": unigram_json,
}
