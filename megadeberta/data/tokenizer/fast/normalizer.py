"""SentencePiece's character normalisation, built from the steps that the tokenizers library has.

SentencePiece replaces the longest match of its compiled table at every place, from left to right. The library's
``Precompiled`` applies the same table to one grapheme, or to single characters when the grapheme is long, and takes the
shortest match. So a text is first cut where SentencePiece's matches begin and end: a border is a noncharacter, which
keeps both sides apart. Then ``Precompiled`` sees one character at a time, and NFC composes what is inside a match: the
matches of several characters in the tables that SentencePiece has are letters with their marks, in every spelling. The
few whose replacement is not what NFC makes of them are steps of their own, and what differs is this: 21 letters of
Todhri, Dives Akuru, Gurung Khema and Kirat Rai where they are written as two or three signs, and text that holds the
noncharacters or stand-ins below.
"""

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from tokenizers import Regex, normalizers

from megadeberta.data.tokenizer.fast.charsmap import RULES, is_own_table, read_charsmap
from megadeberta.data.tokenizer.fast.joiners import composing_characters, grapheme_extenders, normalize_each
from megadeberta.data.tokenizer.fast.patterns import any_of, longest_of, none_of
from megadeberta.data.tokenizer.pieces import WORD_BOUNDARY
from megadeberta.errors import DataError

BORDER, _INNER_BORDER = "\U0008fffe", "\U0008ffff"
"""Noncharacters. The outer border is between two matches, the inner one between the characters of a match."""
_STAND_INS = 0xF0000
"""From here on, in private use: characters that stand for a text while the table is applied."""
_NEW_SCRIPTS = "\U00010500"
"""From here on: scripts of which Unicode went on to add letters. What those of a library's older Unicode do not compose
is left as it is: three steps for each letter would make all text slower."""
_MOST_STEPS = 64
_ANY = "(?m:.)"


def sentencepiece_normalizer(charsmap: bytes, symbols: Collection[str] = ()) -> normalizers.Normalizer:
    """The steps of SentencePiece's normaliser, without the word boundary at the start.

    Args:
        charsmap: the compiled table of a model; empty for the identity.
        symbols: user-defined ones, which stay as they are wherever they occur.

    Raises:
        DataError: the library has no steps for the table.
    """
    table = _table(charsmap)
    steps: list[normalizers.Normalizer] = []
    if table is not None:
        kept = sorted((symbol for symbol in symbols if table.may_touch(symbol)), key=len, reverse=True)
        stand_ins = {symbol: chr(_STAND_INS + number) for number, symbol in enumerate(kept)}
        for symbol, stand_in in stand_ins.items():
            head, rest = re.escape(symbol[0]), re.escape(symbol[1:])
            steps += _stand_in(f"{head}(?={rest})", rest, stand_in)
        steps += table.steps(first_stand_in=_STAND_INS + len(kept))
        steps += [normalizers.Replace(stand_in, symbol) for symbol, stand_in in stand_ins.items()]
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    # At the end only: a space in front of the text is its first word boundary.
    steps.append(normalizers.Replace(Regex(f"[ {WORD_BOUNDARY}]+\\z"), ""))
    # SentencePiece puts its own boundary in front of one that the text has there.
    steps.append(normalizers.Replace(Regex(f"\\A{WORD_BOUNDARY}"), f" {WORD_BOUNDARY}"))
    return normalizers.Sequence(steps)


def check_normalization(charsmap: bytes) -> None:
    """That ``sentencepiece_normalizer`` has steps for a table; those of SentencePiece itself are known to have.

    Raises:
        DataError: it has not.
    """
    if not is_own_table(charsmap):
        _table(charsmap)


@dataclass(frozen=True)
class _Table:
    """A compiled table, and how the library's steps can do what it says."""

    compiled: normalizers.Normalizer
    single: Mapping[str, str]
    """Replacements of one character."""
    matches: frozenset[str]
    """What is replaced as one and has several characters."""
    joiners: frozenset[str]
    """Characters in front of which a border is needed."""
    kept: tuple[str, ...]
    """Marks that a match composes as they are, although the table replaces them elsewhere."""
    exceptions: Mapping[str, tuple[str, ...]]
    """Replacements that NFC does not give, and the matches they are for."""

    def may_touch(self, text: str) -> bool:
        """Whether a symbol could be changed, or join what stands behind it."""
        is_plain = all(c not in self.joiners and self.single.get(c, c) == c for c in text)
        return not is_plain or any(match[0] == text[-1] for match in self.matches)

    def steps(self, *, first_stand_in: int) -> Iterator[normalizers.Normalizer]:
        """The table as steps."""
        joiner, other = any_of(self.joiners), none_of(self.joiners)
        # From the last border or any character that joins nothing: one match, and behind it a character that joins.
        borders = f"(?:\\G|(?={other}))(?={_ANY}{joiner})(?>{longest_of(self.matches)}|{_ANY})\\K(?={joiner})"
        yield normalizers.Replace(Regex(f"{borders}|\\r\\K(?=\\n)"), BORDER)
        free = map(chr, itertools.count(first_stand_in))
        stand_ins = dict(zip(self.exceptions, free, strict=False))
        for value, stand_in in stand_ins.items():
            yield from _stand_in(self._whole(self.exceptions[value]), f"{joiner}+", stand_in)
        behind = f"(?<={none_of(BORDER)})"  # not at the start either, where an insertion would crash the library
        kept = dict(zip(self.kept, free, strict=False))
        for mark, stand_in in kept.items():
            yield normalizers.Replace(Regex(behind + mark), stand_in)
        yield normalizers.Replace(Regex(f"{behind}(?={joiner})"), _INNER_BORDER)
        yield self.compiled
        yield normalizers.Replace(_INNER_BORDER, "")
        for mark, stand_in in kept.items():
            yield normalizers.Replace(stand_in, mark)
        yield normalizers.NFC()
        yield normalizers.Replace(BORDER, "")
        for value, stand_in in stand_ins.items():
            yield normalizers.Replace(stand_in, value)

    def _whole(self, matches: Collection[str]) -> str:
        """The first characters of these matches, where a match stands between two borders."""
        rests = defaultdict(list)
        for match in matches:
            rests[match[1:]].append(match[0])
        patterns = []
        for rest, heads in rests.items():
            follows = f"(?={re.escape(rest)}(?:{none_of(self.joiners)}|\\z))"
            joining = [head for head in heads if head in self.joiners]
            others = [head for head in heads if head not in self.joiners]
            patterns += [any_of(others) + follows] if others else []
            patterns += [f"(?:(?<={BORDER})|\\A){any_of(joining)}{follows}"] if joining else []
        return "|".join(patterns)


def _stand_in(head: str, rest: str, stand_in: str) -> list[normalizers.Normalizer]:
    """Steps that put ``stand_in`` for what two patterns match, one behind the other.

    In two steps: the library would lose count of where a text began if its first characters became fewer at once, and
    would then find no word boundary at its start.
    """
    return [normalizers.Replace(Regex(head), stand_in), normalizers.Replace(Regex(f"(?<={stand_in}){rest}"), "")]


@functools.lru_cache(maxsize=4)
def _table(charsmap: bytes) -> _Table | None:
    replacements = read_charsmap(charsmap)
    if not replacements:
        return None
    single = {key: value for key, value in replacements.items() if len(key) == 1}
    several = {key: value for key, value in replacements.items() if len(key) > 1}
    compiled = normalizers.Precompiled(charsmap)
    joiners = composing_characters() | grapheme_extenders(compiled, single)
    joiners |= {character for match in several for character in match[1:]}
    joiners |= {character for character, value in single.items() if value and value[0] in joiners}
    kept, exceptions = _exceptions(several, single)
    if len(exceptions) > _MOST_STEPS:
        value, (match, *_) = next(iter(exceptions.items()))
        raise DataError(
            f"its normalisation replaces {len(exceptions)} groups of characters by something other than their composed "
            f"form (first {match!r} by {value!r}), which tokenizer.json cannot express; train the vocabulary with "
            f"normalization_rule_name {', '.join(RULES[:-1])} or {RULES[-1]}"
        )
    return _Table(compiled, single, frozenset(several), frozenset(joiners), kept, exceptions)


def _exceptions(
    several: Mapping[str, str], single: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Marks to keep inside matches, fewest possible, and what is still not right then: replacement, matches."""

    def wrong(kept: Collection[str]) -> dict[str, str]:
        made = ["".join(c if n and c in kept else single.get(c, c) for n, c in enumerate(match)) for match in several]
        composed = normalize_each(normalizers.NFC(), made)
        return {match: right for (match, right), found in zip(several.items(), composed, strict=True) if found != right}

    found = wrong(())
    kept = {mark for match in found for mark in match[1:] if mark in single}
    fewest = wrong(kept) if kept else found
    for mark in sorted(kept):
        if len(without := wrong(kept - {mark})) <= len(fewest):
            kept.remove(mark)
            fewest = without
    by_value: dict[str, list[str]] = defaultdict(list)
    for match, value in fewest.items():
        if min(match + value) < _NEW_SCRIPTS:
            by_value[value].append(match)
    return tuple(sorted(kept)), {value: tuple(matches) for value, matches in by_value.items()}
