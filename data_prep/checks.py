"""Whether a corpus that was read is good enough to go on with."""

from collections import Counter

from megadeberta.data_prep.bad_lines import CorpusTally
from megadeberta.data_prep.options import PrepOptions
from megadeberta.data_prep.parts import Counts
from megadeberta.data_prep.sources import Source
from megadeberta.errors import DataError


def check_corpus(tally: CorpusTally, options: PrepOptions, *, num_files: int) -> None:
    """Refuse a corpus without a document, of which too much cannot be used, or of other scripts or languages.

    Raises:
        DataError: with the fraction and the first place, or the counts.
    """
    tally.check(max_bad_fraction=options.max_bad_fraction)
    if tally.total("documents") == 0:
        raise DataError(
            f"no document in {num_files} file(s): {tally.total('lines')} lines, "
            f"{tally.total('empty_documents')} of them empty after cleaning; check --text-key and --document-per"
            + "".join(f"; {line}" for line in tally.left_out().lines())
        )
    _check_scripts(tally, options)
    _check_languages(tally, options)


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
