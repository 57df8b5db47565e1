"""What a preparation is asked to do: values only, checked once, light enough for the command line to import."""

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from megadeberta.errors import ConfigError


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


class DocumentPer(StrEnum):
    """What one document of a plain-text file is."""

    PARAGRAPH = "paragraph"
    """Lines up to the next blank line."""
    LINE = "line"
    FILE = "file"
    WIKITEXT = "wikitext"
    """Everything from one `` = Title = `` line to the next."""


MAX_LINE_BYTES = 1 << 30
"""The highest limit on a line that can be chosen."""

MOST_MACHINES = 10_000
"""Parts that a corpus can be divided into."""

AUTO_FORMAT = "auto"
"""``--format`` that looks at the first bytes of every file."""


class UnreadablePolicy(StrEnum):
    """What happens at a file of a folder that holds text in a way that is not read."""

    STOP = "stop"
    SKIP = "skip"
    """Name it on the screen and in the report, and go on without it."""


class BadLinePolicy(StrEnum):
    """What happens at a line that cannot be used."""

    SKIP = "skip"
    """Count it, leave it out, and fail at the end if there were too many."""
    STOP = "stop"


class DecontaminateBy(StrEnum):
    """What of a test set must not be in a document."""

    NGRAM = "ngram"
    """A run of 13 words."""
    SENTENCE = "sentence"


class Deduplication(StrEnum):
    """Which documents are left out because of others."""

    NONE = "none"
    EXACT = "exact"
    """Of equal documents the first is kept; validation documents are never in the training text."""
    NEAR = "near"
    """Of documents that are similar to each other too."""


@dataclass(frozen=True)
class ReadOptions:
    """How bytes become documents. Part of the manifest: another value gives other tokens."""

    document_per: DocumentPer = DocumentPer.PARAGRAPH
    input_format: str = AUTO_FORMAT
    """A name of ``formats.table.FORMATS``, or AUTO_FORMAT."""
    text_keys: tuple[str, ...] = ("text",)
    """Keys or columns of the text, joined in this order; "meta.text" is inside a record."""
    max_line_bytes: int = 32 << 20
    max_expansion: int = 100
    on_unreadable: UnreadablePolicy = UnreadablePolicy.STOP
    quality: tuple[str, ...] = ()
    """Rules as ``--quality`` gives them."""
    test_sets: tuple[tuple[str, str], ...] = ()
    """Path and SHA-256 of files whose text is kept out."""
    decontaminate_by: DecontaminateBy = DecontaminateBy.NGRAM
    count_languages: bool = False
    """Of a sample of the documents, for the report; changes no token."""

    def __post_init__(self) -> None:
        _check(all(self.text_keys), "--text-key is empty; name the key or column that holds the text")
        _check(len(set(self.text_keys)) == len(self.text_keys), "--text-key names the same key twice")
        _check(
            1024 <= self.max_line_bytes <= MAX_LINE_BYTES,
            f"--max-line-bytes={self.max_line_bytes}; choose 1024 to {MAX_LINE_BYTES}",
        )
        _check(self.max_expansion >= 2, f"--max-expansion={self.max_expansion}; choose 2 or more")

    def recorded(self) -> dict[str, Any]:
        """As plain values, what of it decides which tokens come out."""
        read = {**asdict(self), "text_keys": list(self.text_keys), "quality": list(self.quality)}
        read["test_sets"] = {Path(path).name: sha256 for path, sha256 in self.test_sets}
        del read["count_languages"]
        # Only where they are asked for, so that the manifests of all other sets stay what they were.
        if not self.quality:
            del read["quality"]
        if not self.test_sets:
            del read["test_sets"], read["decontaminate_by"]
        return read


class VocabularyKind(StrEnum):
    """How a vocabulary cuts words."""

    UNIGRAM = "unigram"
    """SentencePiece, as DeBERTa v2 and v3."""
    BPE = "bpe"
    """Byte-level byte pair encoding, as DeBERTa v1: no text has unknown tokens."""
    WORDPIECE = "wordpiece"
    """As BERT and CamemBERTaV2."""


class Normalizer(StrEnum):
    """What a unigram vocabulary does to the characters of a text first; SentencePiece's names for its tables."""

    NMT_NFKC = "nmt_nfkc"
    """NFKC, and what is invisible or a kind of space becomes a space or nothing."""
    NMT_NFKC_CF = "nmt_nfkc_cf"
    """With case folding: small letters only."""
    NFKC = "nfkc"
    NFKC_CF = "nfkc_cf"
    IDENTITY = "identity"
    """Characters as they are."""


@dataclass(frozen=True)
class VocabularyOptions:
    """A vocabulary to train (``size``) or to take as it is (``tokenizer``); exactly one of them."""

    size: int | None = None
    tokenizer: Path | None = None
    character_coverage: float = 0.9995
    sample_bytes: int | None = None
    """None: as the size of the vocabulary wants it, see ``vocabulary_sample.sample_bytes``."""
    temperature: float = 1.0
    """A corpus of n bytes gets a part of the sample in proportion to n ** (1 / temperature)."""
    weights: tuple[float, ...] = ()
    """Times this; one for each given corpus, or none."""
    kind: VocabularyKind = VocabularyKind.UNIGRAM
    byte_fallback: bool = False
    """Of a unigram vocabulary: characters that it lacks are cut into bytes, not unknown."""
    normalizer: Normalizer = Normalizer.NMT_NFKC
    keep_zwnj: bool = False
    """The zero-width non-joiner, which parts words of Persian and others inside, stays a character."""

    def __post_init__(self) -> None:
        _check(
            (self.size is None) != (self.tokenizer is None),
            "give either --vocab-size, to train a vocabulary, or --tokenizer, to use a vocabulary you have",
        )
        _check(
            self.size is None or 16 <= self.size <= 1_000_000,
            f"--vocab-size={self.size}; choose 16 to 1000000 (the published models have 128000)",
        )
        is_new = self.size is not None
        _check(
            is_new or (self.kind is VocabularyKind.UNIGRAM and not self.byte_fallback),
            "--vocab-kind and --byte-fallback are for a vocabulary to train, and --tokenizer gives one; leave them out",
        )
        _check(
            not self.byte_fallback or self.kind is VocabularyKind.UNIGRAM,
            f"--byte-fallback is for --vocab-kind=unigram, not {self.kind}: byte-level BPE has all bytes anyway, and "
            "WordPiece none; leave it out",
        )
        self._check_normalizer()
        _check(
            0.9 <= self.character_coverage <= 1,
            f"--character-coverage={self.character_coverage:g}; choose 0.9 to 1",
        )
        _check(
            self.sample_bytes is None or self.sample_bytes >= 1 << 16,
            f"--vocab-sample-bytes={self.sample_bytes}; choose {1 << 16} or more",
        )
        _check(1 <= self.temperature <= 100, f"--vocab-temperature={self.temperature:g}; choose 1 to 100")
        _check(
            not self.weights or (min(self.weights) >= 0 and sum(self.weights) > 0),
            f"--vocab-weight={' '.join(f'{weight:g}' for weight in self.weights)}; choose 0 or more, and one above 0",
        )

    def _check_normalizer(self) -> None:
        is_unigram = self.size is not None and self.kind is VocabularyKind.UNIGRAM
        _check(
            is_unigram or (self.normalizer is Normalizer.NMT_NFKC and not self.keep_zwnj),
            "--normalizer and --keep-zwnj are for a unigram vocabulary to train; leave them out",
        )
        _check(
            not self.keep_zwnj or self.normalizer.startswith("nmt"),
            f"--keep-zwnj is for --normalizer=nmt_nfkc and nmt_nfkc_cf; {self.normalizer} keeps it anyway: leave it "
            "out",
        )


@dataclass(frozen=True)
class SplitOptions:
    """How validation documents are set apart from the corpus; ``documents`` wins over ``fraction``."""

    fraction: float = 0.005
    documents: int | None = None

    def __post_init__(self) -> None:
        _check(0 <= self.fraction < 1, f"--valid-fraction={self.fraction:g}; choose 0 (no validation) to less than 1")
        _check(self.documents is None or self.documents >= 0, f"--valid-documents={self.documents}; choose 0 or more")

    def count(self, num_documents: int) -> int:
        """Documents to set apart from ``num_documents``: at least one unless none are wanted."""
        if self.documents is not None:
            return self.documents
        return max(1, round(self.fraction * num_documents)) if self.fraction else 0


@dataclass(frozen=True)
class PrepOptions:
    """One run of `megadeberta prep`."""

    corpora: tuple[Path, ...]
    output: Path
    vocabulary: VocabularyOptions
    valid_corpora: tuple[Path, ...] = ()
    read: ReadOptions = ReadOptions()
    split: SplitOptions = SplitOptions()
    deduplicate: Deduplication = Deduplication.NONE
    similarity: float = 0.75
    """With ``Deduplication.NEAR``: the fraction of words, in their order, that similar documents share at least."""
    on_bad_line: BadLinePolicy = BadLinePolicy.SKIP
    max_bad_fraction: float = 0.01
    max_unknown_fraction: float = 0.05
    expected_scripts: tuple[tuple[str, float], ...] = ()
    """Scripts ("Latin") and the fraction of the letters that each has at least."""
    expected_languages: tuple[tuple[str, float], ...] = ()
    """Languages ("de") and the fraction of the bytes that each has at least; needs ``read.count_languages``."""
    workers: int = 1
    overwrite: bool = False
    max_file_bytes: int | None = None
    """Several token files for each split, no file of them larger; None = one."""
    part: tuple[int, int] | None = None
    """Encode only part I of N, for merging with those of other machines; None = all, and write token files."""

    def __post_init__(self) -> None:
        _check(0 <= self.max_bad_fraction <= 1, f"--max-bad-fraction={self.max_bad_fraction:g}; choose 0 to 1")
        _check(
            0 <= self.max_unknown_fraction <= 1,
            f"--max-unknown-fraction={self.max_unknown_fraction:g}; choose 0 to 1",
        )
        _check(
            0.5 <= self.similarity <= 1,
            f"--similarity={self.similarity:g}; choose 0.5 to 1: documents that share less cannot be told from others",
        )
        _check(
            self.read.count_languages or not self.expected_languages,
            "--expect-language needs the languages to be counted; give --languages too",
        )
        weights = self.vocabulary.weights
        _check(
            len(weights) in (0, len(self.corpora)),
            f"--vocab-weight is given {len(weights)} times for {len(self.corpora)} corpora; give one per corpus",
        )
        part, of = self.part or (1, 1)
        _check(1 <= part <= of <= MOST_MACHINES, f"--part={part}/{of}; choose 1/N to N/N, N at most {MOST_MACHINES}")
        _check(
            self.part is None or self.vocabulary.tokenizer is not None,
            "--part needs --tokenizer, the same file on every machine; train one first, on one machine: `megadeberta "
            "prep` of some of the corpus, whose tokenizer all take",
        )
        _check(1 <= self.workers <= 4096, f"--workers={self.workers}; choose 1 to 4096, or 0 for one per core")

    def recorded(self) -> dict[str, Any]:
        """The options that decide which tokens come out, as the manifest records them."""
        vocabulary: dict[str, Any] = {"tokenizer": "given"}
        if self.vocabulary.size is not None:
            vocabulary = {
                "vocab_size": self.vocabulary.size,
                "character_coverage": self.vocabulary.character_coverage,
                "vocab_sample_bytes": self.vocabulary.sample_bytes,
            }
            # Only where they are asked for, so that the manifests of all other sets stay what they were.
            if self.vocabulary.kind is not VocabularyKind.UNIGRAM:
                vocabulary["vocab_kind"] = self.vocabulary.kind
            if self.vocabulary.byte_fallback:
                vocabulary["byte_fallback"] = True
            if self.vocabulary.normalizer is not Normalizer.NMT_NFKC:
                vocabulary["normalizer"] = self.vocabulary.normalizer
            if self.vocabulary.keep_zwnj:
                vocabulary["keep_zwnj"] = True
            if self.vocabulary.temperature != 1 or self.vocabulary.weights:
                vocabulary["vocab_temperature"] = self.vocabulary.temperature
                vocabulary["vocab_weights"] = list(self.vocabulary.weights)
        split: dict[str, Any] = {"valid": "given"}
        if not self.valid_corpora:
            split = {"valid_fraction": self.split.fraction, "valid_documents": self.split.documents}
        near = {"similarity": self.similarity} if self.deduplicate is Deduplication.NEAR else {}
        return {
            **self.read.recorded(),
            "deduplicate": self.deduplicate,
            **near,
            **vocabulary,
            **split,
            **({"max_file_bytes": self.max_file_bytes} if self.max_file_bytes else {}),
        }


def parse_expected(option: str, values: tuple[str, ...], *, example: str) -> tuple[tuple[str, float], ...]:
    """Names and fractions that an option gives, such as Latin:0.9.

    Raises:
        ConfigError: no name, or no fraction from 0 to 1.
    """
    found = []
    for value in values:
        name, _, number = value.partition(":")
        is_fraction = re.fullmatch(r"0?\.\d+|[01](?:\.0*)?", number) is not None
        _check(bool(name) and is_fraction, f"{option}={value}; give NAME:FRACTION, such as {example}")
        found.append((name, float(number)))
    return tuple(found)


def parse_size(text: str | None) -> int | None:
    """Bytes of ``--max-file-size``: a number, or one with K, M, G or T (powers of 1024) behind.

    Raises:
        ConfigError: it is no size.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ")) if found else 0
    _check(size > 0, f"--max-file-size={text}; give bytes, or a number with K, M, G or T, such as 4G")
    return size
