"""What a preparation depends on: whether finished blocks, a finished set or another machine's part belong to it."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from megadeberta.data.tokenizer import VocabularyTokenizer
from megadeberta.data_prep.languages import check_languages
from megadeberta.data_prep.options import Deduplication, PrepOptions
from megadeberta.data_prep.quality import parse_rules
from megadeberta.data_prep.sources import Source

REVISION = 4
"""Raised whenever the same input would give other tokens, so that old parts are not taken for new ones."""


def make_keys(options: PrepOptions, sources: list[Source], tokenizer: VocabularyTokenizer | None) -> tuple[str, str]:
    """What the parts depend on, and what the finished set depends on."""
    agreed = agreement(options, sources, tokenizer)
    times = [source.mtime_ns for source in sources]
    parts = [agreed["program"], agreed["reading"], agreed["vocabulary"], agreed["files"], times, options.part]
    decides = {name: value for name, value in agreed.items() if name != "limits"}
    return digest(parts)[:16], digest([*parts, decides])


def agreement(options: PrepOptions, sources: list[Source], tokenizer: VocabularyTokenizer | None) -> dict[str, Any]:
    """What decides the result, by names for messages: where all of it is equal, so are the token files."""
    # By its hash: the same file may lie elsewhere on another machine.
    is_near = options.deduplicate is Deduplication.NEAR
    limit = {"max_file_bytes": options.max_file_bytes} if options.max_file_bytes else {}  # other sets keep their keys
    vocabulary = {**asdict(options.vocabulary), "tokenizer": tokenizer.sha256 if tokenizer else None}
    reading = asdict(options.read)
    if not options.read.count_languages:
        del reading["count_languages"]  # other sets keep their keys here too
    return {
        "program": REVISION,
        "reading": reading,
        "vocabulary": vocabulary,
        "files": digest([[s.name, s.split, s.format_name, s.compression, s.size] for s in sources]),
        "split": asdict(options.split),
        "deduplicate": [options.deduplicate, options.similarity] if is_near else options.deduplicate,
        **limit,
        **({"expected_scripts": options.expected_scripts} if options.expected_scripts else {}),
        **({"expected_languages": options.expected_languages} if options.expected_languages else {}),
        **({"language_library": library} if (library := language_library(options)) else {}),
        "limits": [options.max_bad_fraction, options.max_unknown_fraction],
    }


def language_library(options: PrepOptions) -> str | None:
    """What tells languages apart, with its version; None where nothing asks for it.

    Raises:
        ConfigError: it is missing, or does not know a language that is asked for.
    """
    library = None
    if options.read.count_languages:
        codes = [code for code, _ in options.expected_languages]
        library = check_languages(codes, "--expect-language" if codes else "--languages")
    for rule in parse_rules(options.read.quality):
        if rule.languages:
            library = check_languages(rule.languages, f"--quality={rule}")
    return library


def digest(value: Any) -> str:
    """SHA-256 of plain values, by their JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
