"""Whether a corpus that was read is good enough to go on with."""

from collections import Counter
from collections.abc import Sequence

from megadeberta.data_prep.bad_lines import CorpusTally
from megadeberta.data_prep.formats.tar import TAR
from megadeberta.data_prep.options import AUTO_FORMAT, PrepOptions
from megadeberta.data_prep.parts import Counts
from megadeberta.data_prep.sources import Source
from megadeberta.data_prep.unfit_text import KINDS, in_file
from megadeberta.errors import DataError


def check_corpus(tally: CorpusTally, options: PrepOptions, sources: Sequence[Source]) -> None:
    """Refuse a corpus without a document, of which too much cannot be used or is no prose, or of other languages.

    Raises:
        DataError: with the fraction and the first place, or the counts.
    """
    tally.check(max_bad_fraction=options.max_bad_fraction)
    if tally.total("documents") == 0:
        raise DataError(
            f"no document in {len(sources)} file(s): {tally.total('lines')} lines, "
            f"{tally.total('empty_documents')} of them empty after cleaning; check --text-key and --document-per"
            + "".join(f"; {line}" for line in tally.left_out().lines())
        )
    _check_unfit(tally, options, sources)
    _check_scripts(tally, options)
    _check_languages(tally, options)


def _check_unfit(tally: CorpusTally, options: PrepOptions, sources: Sequence[Source]) -> None:
    for what, found in tally.unfit().items():
        if is_too_much(found["fraction"], what, options):
            first = sources[tally.first_unfit(what)]
            raise DataError(too_much_unfit(what, found["fraction"], first, found["examples"][0]))


def is_too_much(fraction: float, what: str, options: PrepOptions) -> bool:
    """Whether ``fraction`` of the bytes may not be of the kind ``what`` that ``unfit_text`` names.

    Whoever names the format of the files has text read as it stands; for archives it must be named.
    """
    return options.read.input_format in (AUTO_FORMAT, TAR.name) and fraction > KINDS[what].most


def too_much_unfit(what: str, fraction: float, first: Source, example: str) -> str:
    """What to say where ``fraction`` of the bytes are no prose; ``example`` is how the first of it begins."""
    is_archive = first.file_format is TAR
    as_it_is = "unpack it to read it" if is_archive else f"--format={first.format_name} reads it"
    where = in_file(first.name, example)
    return f"{fraction:.1%} of the text is {what}, {where}; {KINDS[what].remedy}; {as_it_is} as it stands"


def _check_scripts(tally: CorpusTally, options: PrepOptions) -> None:
    scripts = tally.scripts()
    for name, least in options.expected_scripts:
        if scripts[name] / max(1, scripts.total()) < least:
            raise DataError(too_little_of_script(scripts, name, least))


def too_little_of_script(scripts: Counter[str], name: str, least: float) -> str:
    """What to say where less than ``least`` of the letters, by script, are of the script ``name``."""
    fraction, found = _fractions(scripts, name)
    return (
        f"{fraction:.1%} of the letters are {name}, --expect-script={name}:{least:g} wants more; found "
        f"{found or 'no letters'}: leave out what is of other scripts, or lower the limit"
    )


def _check_languages(tally: CorpusTally, options: PrepOptions) -> None:
    languages = tally.languages()
    for code, least in options.expected_languages:
        if languages[code] / max(1, languages.total()) < least:
            raise DataError(too_little_of_language(languages, code, least))


def too_little_of_language(languages: Counter[str], code: str, least: float) -> str:
    """What to say where less than ``least`` of the bytes, by language, are of the language ``code``."""
    fraction, found = _fractions(languages, code)
    return (
        f"{fraction:.1%} of the text is of language {code}, --expect-language={code}:{least:g} wants "
        f"more; found {found}: leave out what is of others (--quality language={code}), or lower the limit"
    )


def _fractions(counts: Counter[str], name: str) -> tuple[float, str]:
    """That of one name, and the largest in words."""
    total = max(1, counts.total())
    return counts[name] / total, ", ".join(f"{each} {number / total:.1%}" for each, number in counts.most_common(4))


def check_unknown(counts: Counts, sources: list[Source], options: PrepOptions) -> None:
    """Refuse text that the vocabulary does not fit.

    Raises:
        DataError: with the fraction of unknown tokens, and the file with the most.
    """
    fraction = counts.num_unknown / max(1, counts.num_tokens)
    if fraction > options.max_unknown_fraction:
        worst, of_worst = counts.most_unknown()
        raise DataError(too_many_unknown(fraction, options, f"{sources[worst].name} ({of_worst:.1%})"))


def too_many_unknown(fraction: float, options: PrepOptions, worst: str) -> str:
    """What to say where ``fraction`` of the tokens are unknown, most of them in ``worst``."""
    return (
        f"{fraction:.1%} of the tokens are [UNK], unknown to the vocabulary (allowed "
        f"{options.max_unknown_fraction:.1%}); most in {worst}: is it of the vocabulary's language, and UTF-8? Train "
        "a vocabulary on this text (--vocab-size), or raise --max-unknown-fraction"
    )
