"""The normaliser of a vocabulary that is trained: what each does, the same bytes each time, and exported as it is."""

from pathlib import Path

import pytest

from megadeberta.data.tokenizer import SentencePieceTokenizer
from megadeberta.data_prep.options import Normalizer, PrepOptions, VocabularyKind, VocabularyOptions
from megadeberta.data_prep.vocabulary import train_vocabulary
from megadeberta.data_prep.vocabulary_sample import Sample
from megadeberta.errors import ConfigError
from tests.data_fixtures import SOTU

ZWNJ = "\u200c"
TEXT = f"The UNION \u0645\u06cc{ZWNJ}\u062e\u0648\u0627\u0647\u0645 \uff21\ufb01\u00bd"


def trained(folder: Path, **options: object) -> SentencePieceTokenizer:
    """Of English and the characters of ``TEXT``, all of which it has."""
    lines = [*SOTU.read_text(encoding="utf-8")[:20_000].split("\n"), *[f"{TEXT} {TEXT.lower()}"] * 4]
    sample = Sample(1 << 20)
    sample.add((number, line.encode()) for number, line in enumerate(lines) if line)
    path = folder / "spm.model"
    path.write_bytes(train_vocabulary(sample, VocabularyOptions(500, character_coverage=1.0, **options)))
    return SentencePieceTokenizer.load(path)


@pytest.mark.parametrize(
    ("normalizer", "keep_zwnj", "shown"),
    [
        (Normalizer.NMT_NFKC, False, "The UNION \u0645\u06cc \u062e\u0648\u0627\u0647\u0645 Afi1\u20442"),
        (Normalizer.NMT_NFKC_CF, True, f"the union \u0645\u06cc{ZWNJ}\u062e\u0648\u0627\u0647\u0645 afi1\u20442"),
        (Normalizer.NFKC, False, f"The UNION \u0645\u06cc{ZWNJ}\u062e\u0648\u0627\u0647\u0645 Afi1\u20442"),
        (Normalizer.IDENTITY, False, TEXT),
    ],
)
def test_each_does_what_its_name_says_and_is_exported(
    tmp_path: Path, normalizer: Normalizer, keep_zwnj: bool, shown: str
) -> None:
    tokenizer = trained(tmp_path, normalizer=normalizer, keep_zwnj=keep_zwnj)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == shown
    tokenizer.check_exportable()
    assert tokenizer.fast().encode(TEXT, add_special_tokens=False).ids == tokenizer.encode(TEXT)


def test_a_table_of_its_own_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    models = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        trained(tmp_path / name, keep_zwnj=True)
        models.append((tmp_path / name / "spm.model").read_bytes())
    assert models[0] == models[1]


def test_what_does_not_fit_together_is_refused() -> None:
    for options, message in (
        ({"size": 500, "kind": VocabularyKind.BPE, "normalizer": Normalizer.NFKC}, "are for a unigram vocabulary"),
        ({"tokenizer": Path("spm.model"), "keep_zwnj": True}, "are for a unigram vocabulary to train; leave them out"),
        ({"size": 500, "keep_zwnj": True, "normalizer": Normalizer.NFKC}, "nfkc keeps it anyway: leave it out"),
    ):
        with pytest.raises(ConfigError, match=message):
            VocabularyOptions(**options)  # type: ignore[arg-type]


def test_the_manifest_says_so_only_where_it_was_asked_for() -> None:
    asked = {"normalizer": Normalizer.NMT_NFKC_CF, "keep_zwnj": True}
    usual = PrepOptions((), Path(), VocabularyOptions(500)).recorded()
    other = PrepOptions((), Path(), VocabularyOptions(500, **asked)).recorded()  # type: ignore[arg-type]
    assert {name: other[name] for name in other.keys() - usual.keys()} == asked
