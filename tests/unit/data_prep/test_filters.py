"""Rules of quality and test sets: what is left out, that it is counted and shown, and that bytes stay the same."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import megadeberta.data_prep.prepare
from megadeberta.data.indexed import TokenShard
from megadeberta.data_prep.decontamination import Contamination, fingerprint, text_hashes
from megadeberta.data_prep.document_filter import document_filter
from megadeberta.data_prep.options import (
    DecontaminateBy,
    DocumentPer,
    PrepOptions,
    ReadOptions,
    SplitOptions,
    VocabularyOptions,
    parse_expected,
)
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.quality import parse_rules, repeated_fraction, symbol_fraction
from megadeberta.data_prep.scripts import count_scripts
from megadeberta.data_prep.shingles import run_hashes, word_hashes
from megadeberta.errors import ConfigError, DataError
from tests.data_fixtures import SOTU

SPEECH = " ".join(SOTU.read_text(encoding="utf-8").split())


def breaks(rule: str, text: str) -> bool:
    (parsed,) = parse_rules((rule,))
    return not parsed.keeps(text)


@pytest.mark.parametrize(
    ("rule", "kept", "left_out"),
    [
        ("min-characters=5", "abcde", "abcd"),
        ("max-characters=5", "abcde", "abcdef"),
        ("min-words=3", "a, b - c!", "a - b"),
        ("max-words=2", "a b", "a b c"),
        ("min-words=4", "私の名前", "名前は"),
        ("max-symbols=0.2", "abc def!", "a! b? c!"),
        ("max-repeated=0.3", "one two three four five six", "buy it now at our shop " * 9),
        ("min-script=Latin:0.5", "hello мир", "привет, a"),
    ],
)
def test_a_rule_leaves_out_what_breaks_it(rule: str, kept: str, left_out: str) -> None:
    assert not breaks(rule, kept)
    assert breaks(rule, left_out)


def test_fractions_are_those_of_their_definition() -> None:
    assert symbol_fraction("ab, c.") == pytest.approx(2 / 6)
    assert repeated_fraction("a b c d e") == 0
    assert repeated_fraction("a b c d e " * 2) == pytest.approx(1 - 5 / 6)
    assert repeated_fraction("too short") == 0


def test_case_punctuation_and_spacing_do_not_count_for_words() -> None:
    assert (word_hashes("It is, so!") == word_hashes("it  IS so")).all()
    assert len(word_hashes("日本語 text สวัสดี")) == 3 + 1 + 6
    assert len(word_hashes("हिन्दी में")) == 2 and symbol_fraction("हिन्दी") == 0
    words = word_hashes("a b c d")
    assert len(run_hashes(words, 3)) == 2 and len(run_hashes(words, 5)) == 0
    assert len(set(run_hashes(word_hashes("a b a b b a"), 2).tolist())) == 3


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (("long",), "--quality=long is no rule; choose from min-characters=NUMBER"),
        (("max-symbols=2",), "'2' is not a fraction from 0 to 1; write --quality=max-symbols=0.2"),
        (("min-words=many",), "'many' is not a number from 0; write --quality=min-words=100"),
        (("min-script=0.5",), "write --quality=min-script=Latin:0.8"),
        (("web", "min-words=1"), "--quality gives min-words twice"),
    ],
)
def test_a_wrong_rule_says_what_to_write(rules: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        parse_rules(rules)


def read_with(*test_sets: Path, by: DecontaminateBy = DecontaminateBy.NGRAM, **options: Any) -> ReadOptions:
    read = ReadOptions(**options)
    return ReadOptions(**options, test_sets=fingerprint(test_sets, read), decontaminate_by=by)


def reasons(read: ReadOptions, *texts: str) -> list[str | None]:
    keep = document_filter(read)
    assert keep is not None
    return [keep.reason(text) for text in texts]


def test_a_run_of_13_words_of_a_test_set_is_found_in_any_case_and_punctuation(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "A b c d e f g\nh i j k l m n."}) + "\n")
    read = read_with(tmp_path / "test.jsonl")
    found = reasons(read, "so: B C D, e f g h i j k l m n", "b c d e f g h i j k l m", "b c d e f g h x i j k l m n")
    assert found == ["--decontaminate", None, None]


def test_a_sentence_of_a_test_set_is_found(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "test.txt.gz", "wt") as file:
        file.write("We know that it is a long way home. I do not know.")
    read = read_with(tmp_path / "test.txt.gz", by=DecontaminateBy.SENTENCE)
    assert reasons(read, "Yes! We know that it is a long way home.", "I do not know. Ask.") == ["--decontaminate", None]


def test_text_without_spaces_is_compared_by_characters() -> None:
    hashes = np.unique(text_hashes("吾輩は猫である名前はまだ無い", DecontaminateBy.NGRAM))
    contamination = Contamination(DecontaminateBy.NGRAM, hashes, 1, 0)
    assert contamination.is_in("「吾輩は猫である。名前はまだ無い。」")
    assert not contamination.is_in("吾輩は犬である。名前はまだ無い。")
    assert not contamination.is_in("短い")


def test_a_test_set_with_nothing_to_look_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("yes\n\nno\n")
    with pytest.raises(DataError, match=r"none of the 2 documents of .*test.txt has 13 words; check --text-key"):
        document_filter(read_with(tmp_path / "test.txt"))


def test_lines_of_a_test_set_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n{"body": "a b"}\n')
    with pytest.raises(DataError, match=r"test.jsonl: 1 of its lines cannot be used \(missing_key\); check --text-key"):
        document_filter(read_with(tmp_path / "test.jsonl"))


def run(corpus: Path, output: Path, tokenizer: Path, read: ReadOptions, **options: Any) -> tuple[dict[str, Any], str]:
    console = Console(width=500, record=True, quiet=False, file=(output.parent / "screen").open("w"))
    prepared = PrepOptions(
        corpora=(corpus,),
        output=output,
        vocabulary=VocabularyOptions(tokenizer=tokenizer),
        split=SplitOptions(fraction=0.1),
        read=read,
        **options,
    )
    prepare(prepared, console=console, plot=lambda folder, lengths: None)
    return json.loads((output / "report.json").read_bytes()), console.export_text()


def test_what_is_left_out_is_counted_shown_and_recorded_with_any_workers(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megadeberta.data_prep.prepare, "choose_block_bytes", lambda sources: 50_000)
    tokenizer = prepared / "tokenizer" / "spm.model"
    leaked = " ".join(SPEECH.split()[500:520])
    (tmp_path / "test.txt").write_text(leaked)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(SOTU.read_text(encoding="utf-8") + "\n\nshort\n\n!!! ??? !!! ??? !!! !!!\n\n")
    read = read_with(tmp_path / "test.txt", quality=("min-words=2", "max-symbols=0.5"))
    report, screen = run(corpus, tmp_path / "one", tokenizer, read)
    left_out = report["corpus"]["left_out"]
    assert left_out["--quality min-words=2"] == {
        "documents": 2,
        "num_bytes": 5 + 23,
        "examples": ["short", "!!! ??? !!! ??? !!! !!!"],
    }
    assert left_out["--decontaminate"]["documents"] == 1
    assert "test sets: 1 documents, 8 runs of 13 words to keep out" in screen
    assert "left out, --quality min-words=2: 2 documents, 0.0 MB" in screen
    run(corpus, tmp_path / "two", tokenizer, read, workers=2)
    for name in ("train.bin", "train.idx", "train.json", "valid.bin"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    with TokenShard.open(tmp_path / "one" / "train") as shard:
        options = json.loads((tmp_path / "one" / "train.json").read_bytes())["options"]
        assert shard.num_documents + 3 + TokenShard.open(tmp_path / "one" / "valid").num_documents == 25 + 2
    assert options["quality"] == ["min-words=2", "max-symbols=0.5"]
    assert list(options["test_sets"]) == ["test.txt"] and options["decontaminate_by"] == "ngram"


def test_a_corpus_that_is_left_out_whole_says_why(tmp_path: Path, prepared: Path) -> None:
    read = ReadOptions(document_per=DocumentPer.LINE, quality=("min-words=100000",))
    with pytest.raises(DataError, match=r"no document in .*; left out, --quality min-words=100000: \d+ documents"):
        run(SOTU, tmp_path / "out", prepared / "tokenizer" / "spm.model", read)


def test_forms_of_letters_count_for_the_script_of_the_letter() -> None:
    text = "1.\u00aa, n.\u00ba, \ufb01m, \u2115, \uff21 5 \u00b5m 3 k\u2126 \u4eba\u3005 \uff76\uff80"
    text += " \u043f\u02bc\u044f\u0442\u044c"
    assert dict(count_scripts(text)) == {
        "Latin": 9,
        "Greek": 2,
        "Han": 2,
        "Japanese kana": 2,
        "Cyrillic": 4,
    }


def test_text_of_another_script_than_expected_stops_the_run(tmp_path: Path, prepared: Path) -> None:
    texts = [
        SPEECH[start : start + 300] for start in range(0, 60000, 300)
    ]  # 200, then 100: found by a sample of what follows
    texts += ["Все люди рождаются свободными и равными в своем достоинстве и правах. " * 4] * 100
    (tmp_path / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")

    def prepare_with(*values: str) -> None:
        options = PrepOptions(
            (tmp_path / "a.txt",),
            tmp_path / "out",
            VocabularyOptions(tokenizer=prepared / "tokenizer" / "spm.model"),
            max_unknown_fraction=1,
            expected_scripts=parse_expected("--expect-script", values, example="Latin:0.9"),
        )
        prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)

    message = r"% of the letters are Latin, --expect-script=Latin:0.9 wants more; found Latin .*, Cyrillic .*%"
    with pytest.raises(DataError, match=message):
        prepare_with("Latin:0.9")
    with pytest.raises(DataError, match=r"0.0% of the letters are Greek"):
        prepare_with("Latin:0.2", "Greek:0.1")
    assert not (tmp_path / "out" / "train.json").exists()
    prepare_with("Latin:0.2", "Cyrillic:.2")
    assert (tmp_path / "out" / "train.json").exists()
    for wrong in ("Latin", ":0.5", "Latin:2", "Latin:x"):
        with pytest.raises(ConfigError, match=r"give NAME:FRACTION, such as Latin:0.9"):
            parse_expected("--expect-script", (wrong,), example="Latin:0.9")
