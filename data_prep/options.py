"""What a preparation is asked to do: values only, checked once, light enough for the command line to import."""

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


class InputFormat(StrEnum):
    """How files are read; ``AUTO`` takes .jsonl, .ndjson and .json (also compressed) as JSON lines."""

    AUTO = "auto"
    TEXT = "text"
    JSONL = "jsonl"


class BadLinePolicy(StrEnum):
    """What happens at a line that cannot be used."""

    SKIP = "skip"
    """Count it, leave it out, and fail at the end if there were too many."""
    STOP = "stop"


@dataclass(frozen=True)
class ReadOptions:
    """How bytes become documents. Part of the manifest: another value gives other tokens."""

    document_per: DocumentPer = DocumentPer.PARAGRAPH
    input_format: InputFormat = InputFormat.AUTO
    json_key: str = "text"
    max_line_bytes: int = 8 << 20
    max_expansion: int = 100

    def __post_init__(self) -> None:
        _check(self.json_key != "", "--json-key is empty; name the key that holds the text")
        _check(
            1024 <= self.max_line_bytes <= 1 << 30,
            f"--max-line-bytes={self.max_line_bytes}; choose 1024 to {1 << 30}",
        )
        _check(self.max_expansion >= 2, f"--max-expansion={self.max_expansion}; choose 2 or more")


@dataclass(frozen=True)
class VocabularyOptions:
    """A vocabulary to train (``size``) or to take as it is (``tokenizer``); exactly one of them."""

    size: int | None = None
    tokenizer: Path | None = None
    character_coverage: float = 0.9995
    sample_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        _check(
            (self.size is None) != (self.tokenizer is None),
            "give either --vocab-size, to train a vocabulary, or --tokenizer, to use an spm.model you have",
        )
        _check(
            self.size is None or 16 <= self.size <= 1_000_000,
            f"--vocab-size={self.size}; choose 16 to 1000000 (the published models have 128000)",
        )
        _check(
            0.9 <= self.character_coverage <= 1,
            f"--character-coverage={self.character_coverage:g}; choose 0.9 to 1",
        )
        _check(self.sample_bytes >= 1 << 16, f"--vocab-sample-bytes={self.sample_bytes}; choose {1 << 16} or more")


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
    on_bad_line: BadLinePolicy = BadLinePolicy.SKIP
    max_bad_fraction: float = 0.01
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        _check(0 <= self.max_bad_fraction <= 1, f"--max-bad-fraction={self.max_bad_fraction:g}; choose 0 to 1")
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
        split: dict[str, Any] = {"valid": "given"}
        if not self.valid_corpora:
            split = {"valid_fraction": self.split.fraction, "valid_documents": self.split.documents}
        return {**asdict(self.read), **vocabulary, **split}
