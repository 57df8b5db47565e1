"""Which language a text is in, as py3langid tells it: naive Bayes over runs of bytes, with its model in the package.

Codes are those of ISO 639 ("de"), "zxx" for numbers and markup, and "und" where no language is likely enough.
"""

from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from megadeberta.errors import ConfigError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_PACKAGE = "py3langid"
_UNKNOWN = "und"
_SAMPLED_CHARACTERS = 1000
"""At the beginning of a text."""
_LEAST_CONFIDENCE = 0.5


def language_of(text: str) -> str:
    """The language of the first 1000 characters of ``text``."""
    return str(_identifier().classify(text[:_SAMPLED_CHARACTERS])[0])


def check_languages(codes: Iterable[str], option: str) -> str:
    """Refuse what cannot be told; the name and version of the library otherwise, which decide what it tells.

    Args:
        codes: languages that the user names.
        option: that needs the library, for the message.

    Raises:
        ConfigError: the library is missing, or does not know one of them.
    """
    if find_spec(_PACKAGE) is None:
        raise ConfigError(f"{option} needs {_PACKAGE}: pip install 'megadeberta[languages]'")
    known = [*sorted(_identifier().labels), _UNKNOWN]
    for code in codes:
        if code not in known:
            raise ConfigError(f"{option}: no language {code!r}; choose from {', '.join(known)}")
    from importlib.metadata import version  # loads much

    return f"{_PACKAGE} {version(_PACKAGE)}"


@lru_cache(maxsize=1)
def _identifier() -> "LanguageIdentifier":
    import numpy as np
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    class Identifier(LanguageIdentifier):
        """Adds in double precision, one feature after another: the library's sums in single precision depend on the
        processor and its number of threads, and what is left out of a corpus must not."""

        def _sparse_score(self, visits: dict[int, int], table: Any) -> Any:
            counts = np.log1p(np.fromiter(visits.values(), np.float64, len(visits)))
            weights = table[np.fromiter(visits.keys(), np.intp, len(visits))].astype(np.float64)
            return np.add.reduce(counts[:, None] * weights, axis=0) + self.nb_pc

    return Identifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_LEAST_CONFIDENCE)
