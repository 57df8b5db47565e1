"""Which documents are left out of a corpus, one clean document at a time."""

from dataclasses import dataclass
from functools import lru_cache

from megadeberta.data_prep.decontamination import Contamination, read_contamination
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.quality import QualityRule, parse_rules


@dataclass(frozen=True)
class DocumentFilter:
    """Rules of quality first, then test sets."""

    rules: tuple[QualityRule, ...] = ()
    contamination: Contamination | None = None

    def reason(self, text: str) -> str | None:
        """Why a document is left out, as the report calls it: the first rule it breaks; None if it is kept."""
        for rule in self.rules:
            if not rule.keeps(text):
                return f"--quality {rule}"
        if self.contamination is not None and self.contamination.is_in(text):
            return "--decontaminate"
        return None


@lru_cache(maxsize=4)
def document_filter(options: ReadOptions) -> DocumentFilter | None:
    """The filter that options ask for, made once per process; None if they keep every document.

    Raises:
        ConfigError: a rule of quality is wrong.
        DataError: a test set cannot be read, or has nothing to look for.
    """
    if not options.quality and not options.test_sets:
        return None
    contamination = read_contamination(options) if options.test_sets else None
    return DocumentFilter(parse_rules(options.quality), contamination)


def describe_test_sets(options: ReadOptions) -> list[str]:
    """Lines for the screen; checks all rules on the way.

    Raises:
        ConfigError, DataError: as ``document_filter``.
    """
    keep = document_filter(options)
    return [keep.contamination.describe()] if keep and keep.contamination else []
