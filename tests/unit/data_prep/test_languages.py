"""Languages of a corpus: told apart, counted by bytes, limits that stop the run, and documents left out by language."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import megadeberta.data_prep.languages
import megadeberta.data_prep.prepare
from megadeberta.data.indexed import TokenShard
from megadeberta.data_prep.documents import read_documents
from megadeberta.data_prep.identity import make_keys
from megadeberta.data_prep.languages import language_of
from megadeberta.data_prep.merge_machines import merge_machines
from megadeberta.data_prep.options import (
    PrepOptions,
    ReadOptions,
    SplitOptions,
    VocabularyOptions,
    parse_expected,
)
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.quality import parse_rules
from megadeberta.errors import ConfigError, DataError

pytest.importorskip("py3langid")

TEXTS = {
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "en": "All human beings are born free and equal in dignity and rights. They have reason and conscience.",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ar": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميراً.",
}
DE, EN = TEXTS["de"], TEXTS["en"]


@pytest.mark.parametrize("code", TEXTS)
def test_languages_are_told_apart_also_where_a_script_is_not_enough(code: str) -> None:
    assert language_of(TEXTS[code]) == code


def test_what_says_too_little_has_no_language() -> None:
    assert {language_of(text) for text in ("", "ok", "a")} == {"und"}
    assert language_of("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18") in ("und", "zxx")


def test_a_mixed_text_is_of_the_language_that_it_begins_with() -> None:
    assert language_of(f"{DE} " * 10 + f"{EN} " * 100) == "de"
    assert language_of(f"{EN} " * 10 + f"{DE} " * 100) == "en"
    assert language_of(f"{DE} {DE} {DE} {EN}") == "de"


def test_the_sum_is_that_of_one_feature_after_another_in_double_precision() -> None:
    # What the library itself would answer in single precision, but for the last digits of that.
    from py3langid.langid import LanguageIdentifier

    identifier = megadeberta.data_prep.languages._identifier()
    visits = {feature: 1 + feature % 3 for feature in range(0, 3000, 7)}
    ours = identifier._sparse_score(visits, identifier.nb_ptc)
    assert ours.dtype == np.float64
    theirs = LanguageIdentifier._sparse_score(identifier, visits, identifier.nb_ptc)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert identifier._raw_score(DE.encode()).dtype == np.float64  # so this is what the library calls


def corpus_of(folder: Path, documents: Sequence[str]) -> Path:
    """Some files, and one of several blocks."""
    folder.mkdir()
    for number, text in enumerate(documents[:10]):
        (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    (folder / "all.txt").write_text("\n\n".join(documents[10:]), encoding="utf-8")
    return folder


def numbered(text: str, count: int) -> list[str]:
    return [f"{text} ({number})" for number in range(count)]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In turns: 300 German, 300 English and 20 Chinese documents."""
    monkeypatch.setattr(megadeberta.data_prep.prepare, "choose_block_bytes", lambda sources: 20_000)
    turns = [text for pair in zip(numbered(DE, 300), numbered(EN, 300), strict=True) for text in pair]
    return corpus_of(tmp_path / "corpus", [*turns, *numbered(TEXTS["zh"], 20)])


@pytest.fixture
def model(prepared: Path) -> Path:
    return prepared / "tokenizer" / "spm.model"


def run(corpus: Path, output: Path, model: Path, *, read: ReadOptions, **options: Any) -> tuple[dict[str, Any], str]:
    console = Console(width=500, record=True, file=output.with_name("screen").open("w"))
    vocabulary = VocabularyOptions(tokenizer=model)
    asked = PrepOptions(
        (corpus,), output, vocabulary, read=read, split=SplitOptions(0.1), max_unknown_fraction=1, **options
    )
    outcome = prepare(asked, console=console, plot=lambda folder, lengths: None)
    report = json.loads((output / "report.json").read_bytes())["corpus"] if outcome.train else {}
    return report, console.export_text()


def test_shares_are_on_the_screen_and_in_the_report_only_where_asked_for(
    corpus: Path, tmp_path: Path, model: Path
) -> None:
    report, screen = run(corpus, tmp_path / "asked", model, read=ReadOptions(count_languages=True))
    exact = {
        code: sum(len(f"{TEXTS[code]} ({number})".encode()) for number in range(count))
        for code, count in (("de", 300), ("en", 300), ("zh", 20))
    }
    assert list(report["languages"]) == ["de", "en", "zh"]
    for code, fraction in report["languages"].items():
        assert fraction == pytest.approx(exact[code] / sum(exact.values()), abs=1e-4)
    assert f"languages, of the bytes: de {report['languages']['de']:.1%}, en" in screen
    plain, screen = run(corpus, tmp_path / "plain", model, read=ReadOptions())
    assert "languages" not in plain and "languages" not in screen
    for name in ("train.bin", "train.idx", "train.json", "valid.bin"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "asked" / name).read_bytes()


def test_workers_and_merged_parts_change_neither_shares_nor_bytes(corpus: Path, tmp_path: Path, model: Path) -> None:
    read = ReadOptions(count_languages=True, quality=("language=de,zh",))
    one, _ = run(corpus, tmp_path / "one", model, read=read)
    two, _ = run(corpus, tmp_path / "two", model, read=read, workers=2)
    parts = [tmp_path / "part-1", tmp_path / "part-2"]
    for number, part in enumerate(parts, 1):
        run(corpus, part, model, read=read, part=(number, 2))
    merge_machines(parts, tmp_path / "merged", console=Console(quiet=True), plot=lambda folder, lengths: None)
    merged = json.loads((tmp_path / "merged" / "report.json").read_bytes())["corpus"]
    left_out = one["left_out"]["--quality language=de,zh"]
    assert left_out["documents"] == 300 and left_out["examples"][0].startswith(EN)
    assert set(one["languages"]) == {"de", "zh"}
    for other in (two, merged):
        assert (other["languages"], other["left_out"]) == (one["languages"], one["left_out"])
    for name in ("train.bin", "train.idx", "train.json", "valid.bin"):
        expected = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "two" / name).read_bytes() == expected
        assert (tmp_path / "merged" / name).read_bytes() == expected
    with TokenShard.open(tmp_path / "one" / "train") as train, TokenShard.open(tmp_path / "one" / "valid") as valid:
        assert train.num_documents + valid.num_documents == 320
    options = json.loads((tmp_path / "one" / "train.json").read_bytes())["options"]
    assert options["quality"] == ["language=de,zh"] and "count_languages" not in options


def test_text_of_another_language_than_expected_stops_the_run(corpus: Path, tmp_path: Path, model: Path) -> None:
    def prepare_with(output: Path, *values: str, **options: Any) -> dict[str, Any]:
        expected = parse_expected("--expect-language", values, example="de:0.8")
        read = ReadOptions(count_languages=True)
        return run(corpus, output, model, read=read, expected_languages=expected, **options)[0]

    message = (
        r"% of the text is of language de, --expect-language=de:0.8 wants more; found de .*%, en .*%, zh .*: leave"
    )
    with pytest.raises(DataError, match=message):
        prepare_with(tmp_path / "out", "de:0.8")
    with pytest.raises(DataError, match=r"0.0% of the text is of language ar"):
        prepare_with(tmp_path / "out", "de:0.3", "ar:0.1")
    assert not (tmp_path / "out" / "train.json").exists()
    parts = [tmp_path / "part-1", tmp_path / "part-2"]
    for number, part in enumerate(parts, 1):
        prepare_with(part, "de:0.8", part=(number, 2))
    with pytest.raises(DataError, match=message):
        merge_machines(parts, tmp_path / "merged", console=Console(quiet=True), plot=lambda folder, lengths: None)
    prepare_with(tmp_path / "out", "de:0.3", "en:.3")
    assert (tmp_path / "out" / "train.json").exists()
    with pytest.raises(ConfigError, match=r"--expect-language=de; give NAME:FRACTION, such as de:0.8"):
        parse_expected("--expect-language", ("de",), example="de:0.8")


def test_a_new_vocabulary_is_not_trained_on_text_of_another_language(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(megadeberta.data_prep.prepare, "train_vocabulary", refuse)
    asked = PrepOptions(
        (corpus,),
        tmp_path / "out",
        VocabularyOptions(size=300),
        read=ReadOptions(count_languages=True),
        expected_languages=(("de", 0.8),),
    )
    with pytest.raises(DataError, match=r"of language de, --expect-language=de:0.8 wants more"):
        prepare(asked, console=Console(quiet=True), plot=lambda folder, lengths: None)


@pytest.mark.parametrize("read", [ReadOptions(count_languages=True), ReadOptions(quality=("language=de",))])
def test_a_missing_library_is_said_before_anything_is_read(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, read: ReadOptions
) -> None:
    monkeypatch.setattr(megadeberta.data_prep.languages, "find_spec", lambda name: None)
    monkeypatch.setattr(megadeberta.data_prep.prepare, "load_or_encode", read_documents)
    (tmp_path / "a.txt").write_text(DE)
    message = r"^--(languages|quality=language=de) needs py3langid: pip install 'megadeberta\[languages\]'$"
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "a.txt", tmp_path / "out", model, read=read)
    assert not (tmp_path / "out" / "report.json").exists()


def test_unknown_codes_are_refused_with_those_that_are_known(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match=r"--quality=language=deu: no language 'deu'; choose from .*, de, .*, und"):
        parse_rules(("language=deu",))
    with pytest.raises(ConfigError, match=r"a language is missing; write --quality=language=de, or de,nl"):
        parse_rules(("language=de,",))
    with pytest.raises(ConfigError, match=r"--quality gives language twice"):
        parse_rules(("language=de", "language=en"))
    (tmp_path / "a.txt").write_text(DE)
    with pytest.raises(ConfigError, match=r"--expect-language: no language 'german'; choose from"):
        run(
            tmp_path / "a.txt",
            tmp_path / "out",
            model,
            read=ReadOptions(count_languages=True),
            expected_languages=(("german", 0.8),),
        )


def test_sets_made_without_languages_keep_their_keys(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**read: Any) -> tuple[str, str]:
        options = PrepOptions((Path("a"),), Path("b"), VocabularyOptions(tokenizer=model), read=ReadOptions(**read))
        return make_keys(options, [], None)

    counted, plain = key(count_languages=True), key()
    assert counted != plain
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.4.9")
    assert key() == plain and key(count_languages=True)[1] != counted[1]
