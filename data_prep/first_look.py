"""A look at some places of a corpus before it is encoded: text that will not do stops the run at its start.

The limits are about the whole corpus, and only what is far from them at many places stops it here. N places.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from megadeberta.data.tokenizer import VocabularyTokenizer
from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import Section, find_cut
from megadeberta.data_prep.checks import (
    is_too_much,
    too_little_of_language,
    too_little_of_script,
    too_many_unknown,
    too_much_unfit,
)
from megadeberta.data_prep.left_out import LeftOutByReason
from megadeberta.data_prep.options import PrepOptions
from megadeberta.data_prep.sources import Source
from megadeberta.data_prep.unfit_text import KINDS
from megadeberta.data_prep.work import WorkContext, documents_of
from megadeberta.errors import DataError

WORTH_A_LOOK, WORTH_REMOTE = 64 << 20, 4 << 30
"""Bytes of a corpus, and of one behind addresses, of which megabytes are fetched: smaller ones are encoded soon."""
_PLACES = 64
_PLACE_BYTES, _MOST_BYTES = 4 << 10, 256 << 10
"""Of text at a place, and of the file that it is looked for in."""
_ERRORS, _ODD_PLACES = 4, 4
"""How many standard errors the mean of all places may be wrong by, and how many of them may be like no other."""


@dataclass
class _Place:
    """What was seen at one place, which stands for ``weight`` places of a file of which only the beginning is read."""

    source: int
    weight: int = 1
    tally: Tally = field(default_factory=Tally)
    num_tokens: int = 0
    num_unknown: int = 0


@dataclass(frozen=True)
class _Doubt:
    """What does not do at the places together, and by how much it is above the limit at each."""

    message: str
    excess: list[float]
    weights: list[int]

    @property
    def is_certain(self) -> bool:
        """Whether it cannot be by chance: a place counts less where one file has many of them."""
        weights = np.array(self.weights) / sum(self.weights)
        excess = np.array(self.excess)
        mean = float(weights @ excess)
        number = 1 / float(weights @ weights)
        error = math.sqrt(float(weights @ (excess - mean) ** 2) / number)
        return mean > _ERRORS * error + _ODD_PLACES / number


def check_places(
    sources: Sequence[Source], options: PrepOptions, tokenizer: VocabularyTokenizer, say: Callable[[str], None]
) -> None:
    """Refuse a large corpus whose scripts, languages or unknown tokens are far from what is wanted.

    Of a compressed file, or one of tables, only the beginning is looked at; a few such files decide nothing.

    Args:
        say: prints a line; told what does not do at the places where that is not enough to refuse the corpus.

    Raises:
        DataError: with what was found.
    """
    is_remote = any(not isinstance(source.path, Path) for source in sources)
    if sum(source.text_bytes for source in sources) < (WORTH_REMOTE if is_remote else WORTH_A_LOOK):
        return
    read = replace(options.read, count_languages=bool(options.expected_languages))
    context = WorkContext(tuple(sources), read, sample_every=1)
    places = list(_sections(context))
    for place, section in places:
        _look(place, section, context, tokenizer)
    seen = [place for place, _ in places if place.num_tokens]
    for doubt in _doubts(seen, sources, options):
        where = f"at {len(seen)} places of the corpus, before it is encoded"
        if doubt.is_certain:
            raise DataError(f"{where}: {doubt.message}")
        say(f"{where}: {doubt.message}. Too few to stop here: the whole corpus decides")


def _doubts(places: Sequence[_Place], sources: Sequence[Source], options: PrepOptions) -> Iterator[_Doubt]:
    tokens, unknown = sum(place.num_tokens for place in places), sum(place.num_unknown for place in places)
    most = options.max_unknown_fraction
    if unknown > most * tokens:
        rates = [place.num_unknown / place.num_tokens for place in places]
        worst = int(np.argmax(rates))
        name = f"{sources[places[worst].source].name} ({rates[worst]:.1%})"
        message = too_many_unknown(unknown / tokens, options, name)
        yield _Doubt(message, [rate - most for rate in rates], [place.weight for place in places])
    yield from _unfit(places, sources, options)
    for name, least in options.expected_scripts:
        scripts = [(Counter(place.tally.scripts), place.weight) for place in places]
        yield from _lacks(scripts, name, least, too_little_of_script)
    for code, least in options.expected_languages:
        languages = [(Counter(place.tally.languages), place.weight) for place in places]
        yield from _lacks(languages, code, least, too_little_of_language)


def _unfit(places: Sequence[_Place], sources: Sequence[Source], options: PrepOptions) -> Iterator[_Doubt]:
    described = sum(place.tally.described_bytes for place in places)
    together = LeftOutByReason()
    for place in places:
        together.join(place.tally.unfit)
    for what, found in together.items():
        fraction = found.num_bytes / described
        if is_too_much(fraction, what, options):
            first = next(place for place in places if what in place.tally.unfit)
            message = too_much_unfit(what, fraction, sources[first.source], found.examples[0])
            excess = [_unfit_fraction(place.tally, what) - KINDS[what].most for place in places]
            yield _Doubt(message, excess, [place.weight for place in places])


def _unfit_fraction(tally: Tally, what: str) -> float:
    found = tally.unfit.get(what)
    return found.num_bytes / tally.described_bytes if found else 0.0


def _lacks(
    found: Sequence[tuple[Counter[str], int]],
    name: str,
    least: float,
    message: Callable[[Counter[str], str, float], str],
) -> Iterator[_Doubt]:
    together = Counter[str]()
    for counts, _ in found:
        together.update(counts)
    if together.total() and together[name] < least * together.total():
        some = [(counts, weight) for counts, weight in found if counts.total()]
        excess = [least - counts[name] / counts.total() for counts, _ in some]
        yield _Doubt(message(together, name, least), excess, [weight for _, weight in some])


def _sections(context: WorkContext) -> Iterator[tuple[_Place, Section]]:
    """Places that are evenly spaced over the corpus, and the file from each of them on."""
    ends = list(accumulate(source.text_bytes for source in context.sources))
    begun: dict[int, _Place] = {}
    for number in range(_PLACES):
        at = (2 * number + 1) * ends[-1] // (2 * _PLACES)
        source = bisect_right(ends, at)
        start = _start(context.sources[source], at - (ends[source] - context.sources[source].size), context)
        if start == 0 and source in begun:
            begun[source].weight += 1
        elif start is not None:
            place = _Place(source)
            begun.setdefault(source, place) if start == 0 else None
            yield place, _section(source, start, context)


def _start(source: Source, inside: int, context: WorkContext) -> int | None:
    """Where the first document at or after byte ``inside`` begins, as far as that is known; None = not looked at."""
    file_format = source.file_format
    if file_format.cuts is None:
        return 0
    cut = file_format.cuts(context.read)
    if source.compression is not None:
        return 0 if cut is not None or source.size <= _MOST_BYTES else None  # else it is one document
    try:
        with source.path.open("rb") as file:
            start = 0 if cut is None else find_cut(file, inside, source.size, cut=cut)
    except OSError as error:
        raise DataError(f"{source.path}: reading failed ({error.strerror}); check the disk") from error
    return start if start < source.size else None


def _section(source: int, start: int, context: WorkContext) -> Section:
    path, size = context.sources[source].path, context.sources[source].size
    is_packed = context.sources[source].compression is not None or context.sources[source].file_format.cuts is None
    stop = size if is_packed else min(size, start + _MOST_BYTES)
    return Section(source, path, start, stop, start, is_packed=is_packed)


def _look(place: _Place, section: Section, context: WorkContext, tokenizer: VocabularyTokenizer) -> None:
    contents, size = [], 0
    with closing(documents_of(context, section, place.tally)) as documents:
        for document in documents:
            contents.append(document[:_PLACE_BYTES].encode())
            size += len(contents[-1])
            if size >= _PLACE_BYTES:
                break
    if contents:
        ids, _ = tokenizer.encode_utf8(contents)
        place.num_tokens, place.num_unknown = len(ids), int(np.count_nonzero(ids == tokenizer.unk_id))
