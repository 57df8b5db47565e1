"""What `megadeberta evaluate` scores: a text, BLiMP's pairs of sentences, token files. Read before torch is loaded."""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadeberta.config.data import SHORTEST_SEQUENCE, DataConfig
from megadeberta.config.model import ModelConfig
from megadeberta.convert.find import recorded_model
from megadeberta.data.check import check_data
from megadeberta.data.missing import check_prefix
from megadeberta.errors import ConfigError, DataError
from megadeberta.weights.recorded import check_has_tokenizer
from megadeberta.weights.vocabulary import check_tokenizer_fits

_FIELDS = ("UID", "field", "linguistics_term", "sentence_good", "sentence_bad")


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ as little as possible."""

    paradigm: str
    phenomenon: str
    field: str
    good: str
    bad: str


def read_text(path: Path) -> str:
    """A UTF-8 text.

    Raises:
        DataError: it cannot be read, or is blank.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start}: {error.reason}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not content.strip():
        raise DataError(f"{path}: holds no text; nothing can be scored")
    return content


def read_pairs(path: Path, *, most: int | None = None) -> list[Pair]:
    """Pairs of a ``.jsonl`` (or ``.jsonl.gz``) in BLiMP's format, or of all such files of a folder.

    Args:
        most: the first pairs of each paradigm, at most.

    Raises:
        DataError: not there, no pairs, or a line is none.
    """
    files = sorted(path.glob("*.jsonl*")) if path.is_dir() else [path]
    seen: dict[str, int] = defaultdict(int)
    pairs = []
    for file in files:
        for pair in _pairs_of(file):
            seen[pair.paradigm] += 1
            if most is None or seen[pair.paradigm] <= most:
                pairs.append(pair)
    if not pairs:
        raise DataError(f"{path}: holds no pairs; give BLiMP's .jsonl, .jsonl.gz, or the folder of its files")
    return pairs


def _pairs_of(file: Path) -> Iterator[Pair]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _pair(line, f"{file}: line {number}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file}: cannot be read ({reason})") from None


def _pair(line: str, source: str) -> Pair:
    try:
        record = json.loads(line)
        paradigm, field, term, good, bad = (str(record[name]) for name in _FIELDS)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{source}: is no pair of BLiMP with {', '.join(_FIELDS)} ({type(error).__name__}: {error})"
        ) from None
    # The published files spell one field in two ways.
    return Pair(paradigm, term, field.replace("/", "_"), good, bad)


def check_files(shard: Path | None, text: Path | None) -> None:
    """Refuse files that are not there or hold nothing to score.

    Raises:
        DataError: says which.
    """
    if text is not None:
        read_text(text)
    if shard is not None:
        check_prefix("--data", shard)


def check_inputs(place: Path, *, shard: Path | None, text: Path | None, length: int | None) -> None:
    """Refuse what ``evaluate.run.score`` would, as far as the weights say it without their tensors.

    Raises:
        CheckpointError, ConfigError, DataError: nothing to score on, or it does not fit.
    """
    known = recorded_model(place)
    tokenizer, recipe = check_has_tokenizer(known.folder, known.tokenizer), known.recipe or {}
    if known.config is None:
        return
    check_tokenizer_fits(tokenizer, known.config)
    data = data_section(recipe, tokenizer, shard=shard, length=sequence_length(known.config, recipe, length))
    if data.valid is None and text is None:
        raise nothing_to_score(known.folder)
    if shard is not None or text is None:
        for prefix in data.valid_prefixes.values():
            check_data(data.model_copy(update={"train": prefix, "valid": prefix}), known.config.vocab_size)


def nothing_to_score(folder: Path) -> ConfigError:
    """What to tell who names weights alone that are of no run with validation data."""
    return ConfigError(f"{folder}: these weights name no validation shard; give --data PREFIX or --text FILE")


def data_section(recipe: Mapping[str, Any], tokenizer: Path, *, shard: Path | None, length: int) -> DataConfig:
    """The data section of the run, with the tokenizer beside the weights; a plain one where there was no run."""
    section = dict(recipe["data"]) if recipe else {"train": shard or Path(), "valid": None}
    section |= {"tokenizer": tokenizer, "loader_workers": 0, "sequence_length": length}
    if shard is not None:
        section["valid"] = shard
    return DataConfig.model_validate(section)


def sequence_length(model: ModelConfig, recipe: Mapping[str, Any], asked: int | None) -> int:
    """As asked, else as in the run, else the longest.

    Raises:
        ConfigError: the model has fewer positions, or it is no length of a sequence.
    """
    longest = model.max_position_embeddings
    if asked is None:
        return recipe["data"]["sequence_length"] if recipe else longest
    if asked < SHORTEST_SEQUENCE:
        raise ConfigError(f"--length {asked} is below {SHORTEST_SEQUENCE}, the shortest sequence")
    if asked > longest and (model.position_biased_input or model.enhanced_mask_decoder):
        raise ConfigError(f"--length {asked} is more than the {longest} absolute positions of the model")
    return asked
