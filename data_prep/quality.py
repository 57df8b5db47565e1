"""Rules of quality: what a document must be like to be kept. All are opt-in, and none looks beyond its document."""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from megadeberta.data_prep.languages import check_languages, language_of
from megadeberta.data_prep.scripts import check_scripts, count_scripts
from megadeberta.data_prep.shingles import run_hashes, word_hashes
from megadeberta.errors import ConfigError

_REPEATED_RUN = 5


def symbol_fraction(text: str) -> float:
    """Characters that are neither letter, accent or vowel sign, digit nor space, of all characters."""
    counts = Counter(text)
    return sum(number for character, number in counts.items() if _is_symbol(character)) / max(1, len(text))


@lru_cache(maxsize=1 << 16)
def _is_symbol(character: str) -> bool:
    return unicodedata.category(character)[0] not in "LMNZ"


def repeated_fraction(text: str) -> float:
    """Runs of five words that the text has before, of all its runs: a page that says one thing again and again."""
    runs = run_hashes(word_hashes(text), _REPEATED_RUN)
    return 1 - len(np.unique(runs)) / len(runs) if len(runs) else 0.0


def _script_fraction(text: str, script: str) -> float:
    counts = count_scripts(text)
    return counts[script] / max(1, counts.total())


@dataclass(frozen=True)
class _Kind:
    keeps: Callable[[str, float], bool]
    is_fraction: bool
    explanation: str


KINDS = {
    "min-characters": _Kind(lambda text, limit: len(text) >= limit, False, "fewer characters"),
    "max-characters": _Kind(lambda text, limit: len(text) <= limit, False, "more characters"),
    "min-words": _Kind(lambda text, limit: len(word_hashes(text)) >= limit, False, "fewer words"),
    "max-words": _Kind(lambda text, limit: len(word_hashes(text)) <= limit, False, "more words"),
    "max-symbols": _Kind(lambda text, limit: symbol_fraction(text) <= limit, True, "a larger fraction of symbols"),
    "max-repeated": _Kind(
        lambda text, limit: repeated_fraction(text) <= limit, True, "a larger fraction of repeated runs of five words"
    ),
}
"""By name; ``min-script`` has a script beside its number, and ``language`` codes instead of one."""
MIN_SCRIPT = "min-script"
LANGUAGE = "language"
PRESETS = {"web": ("min-words=20", "max-symbols=0.25", "max-repeated=0.3")}
"""Name -> rules: thresholds for pages of the web, looser than those of Gopher (Rae et al. 2021, appendix A.1)."""


@dataclass(frozen=True)
class QualityRule:
    """One rule, as ``--quality NAME=VALUE`` gives it."""

    name: str
    limit: float
    script: str = ""
    languages: tuple[str, ...] = ()

    def keeps(self, text: str) -> bool:
        """Whether a clean document passes."""
        if self.name == LANGUAGE:
            return language_of(text) in self.languages
        if self.name == MIN_SCRIPT:
            return _script_fraction(text, self.script) >= self.limit
        return KINDS[self.name].keeps(text, self.limit)

    def __str__(self) -> str:
        if self.name == LANGUAGE:
            return f"{LANGUAGE}={','.join(self.languages)}"
        return f"{self.name}={self.script + ':' if self.script else ''}{self.limit:g}"


def parse_rules(values: tuple[str, ...]) -> tuple[QualityRule, ...]:
    """The rules that ``--quality`` names, presets replaced by theirs, in the order given.

    Raises:
        ConfigError: an unknown rule, a value out of range, or one rule twice.
    """
    rules = tuple(_parse(rule) for value in values for rule in PRESETS.get(value, (value,)))
    names = [rule.name + rule.script for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--quality gives {name} twice; give each rule once")
    return rules


def _parse(value: str) -> QualityRule:
    name, equals, number = value.partition("=")
    if name == LANGUAGE:
        codes = tuple(number.split(","))
        if not all(codes):
            raise ConfigError(f"--quality={value}: a language is missing; write --quality={LANGUAGE}=de, or de,nl")
        check_languages(codes, f"--quality={value}")
        return QualityRule(name, 0.0, languages=codes)
    script = ""
    if name == MIN_SCRIPT:
        script, _, number = number.partition(":")
    elif not equals or name not in KINDS:
        known = ", ".join(
            [*(f"{kind}=NUMBER" for kind in KINDS), f"{MIN_SCRIPT}=Latin:NUMBER", f"{LANGUAGE}=CODE", *PRESETS]
        )
        raise ConfigError(f"--quality={value} is no rule; choose from {known}")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    largest = 1.0 if name == MIN_SCRIPT or KINDS[name].is_fraction else math.inf
    if not 0 <= limit <= largest or not math.isfinite(limit):
        allowed = "a fraction from 0 to 1" if largest == 1 else "a number from 0"
        example = f"{MIN_SCRIPT}=Latin:0.8" if name == MIN_SCRIPT else f"{name}={'0.2' if largest == 1 else '100'}"
        raise ConfigError(f"--quality={value}: {number!r} is not {allowed}; write --quality={example}")
    check_scripts([script] if name == MIN_SCRIPT else [], f"--quality={value}")
    return QualityRule(name, limit, script)
