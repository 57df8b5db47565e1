"""Metrics against scikit-learn, scipy and the definitions of the official scripts, on 200 random cases each."""

import random
import re
import string
from collections import Counter
from collections.abc import Sequence

import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error

from megadeberta.finetune.chunk_metric import chunk_metrics, chunks
from megadeberta.finetune.metrics import (
    accuracy_by_group,
    mean_accuracy_f1,
    mean_accuracy_macro_f1,
    mean_correlation,
    pick,
    regression_metrics,
)
from megadeberta.finetune.rows import ChoiceRow, Prediction, SpanRow, TextRow, TokenRow
from megadeberta.finetune.squad_metric import multirc_metrics, record_metrics, squad_metrics

CASES = 200


def _texts(labels: Sequence[str | float]) -> list[TextRow]:
    return [TextRow(str(number), "", label=label) for number, label in enumerate(labels)]


def _predictions(values: Sequence[str | float]) -> list[Prediction]:
    return [Prediction(value) for value in values]


def test_label_metrics_are_those_of_scikit_learn() -> None:
    draw = random.Random(1)
    for _ in range(CASES):
        size = draw.randint(2, 30)
        gold, found = ([draw.choice("01") for _ in range(size)] for _ in range(2))
        metrics = pick("accuracy", "f1", "matthews")(_texts(gold), _predictions(found))
        assert metrics["accuracy"] == accuracy_score(gold, found)
        assert metrics["f1"] == f1_score(gold, found, pos_label="1", zero_division=0.0)
        assert metrics["matthews"] == matthews_corrcoef(gold, found)
        both = mean_accuracy_f1(_texts(gold), _predictions(found))
        assert both["mean"] == pytest.approx((metrics["accuracy"] + metrics["f1"]) / 2)
        three = [draw.choice("abc") for _ in gold], [draw.choice("abc") for _ in gold]
        cb = mean_accuracy_macro_f1(_texts(three[0]), _predictions(three[1]))
        assert cb["macro_f1"] == f1_score(*three, average="macro", zero_division=0.0)


def test_metrics_of_numbers_are_those_of_scipy_and_scikit_learn() -> None:
    draw = random.Random(2)
    for _ in range(CASES):
        size = draw.randint(3, 30)
        gold, found = ([round(draw.uniform(0, 5), 1) for _ in range(size)] for _ in range(2))
        metrics = mean_correlation(_texts(gold), _predictions(found))
        assert metrics["pearson"] == pytest.approx(pearsonr(gold, found).statistic, abs=1e-12)
        assert metrics["spearman"] == pytest.approx(spearmanr(gold, found).statistic, abs=1e-12)
        rmse = regression_metrics(_texts(gold), _predictions(found))["rmse"]
        assert rmse**2 == pytest.approx(mean_squared_error(gold, found))


def test_a_correlation_with_something_constant_is_zero() -> None:
    metrics = mean_correlation(_texts([1.0, 2.0, 3.0]), _predictions([2.0, 2.0, 2.0]))
    assert metrics == {"pearson": 0.0, "spearman": 0.0, "mean": 0.0}


def _official_normalize(text: str) -> str:
    """evaluate-v2.0.py, step by step."""

    def remove_articles(text: str) -> str:
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punctuation(text: str) -> str:
        return "".join(character for character in text if character not in set(string.punctuation))

    return white_space_fix(remove_articles(remove_punctuation(text.lower())))


def _official_f1(gold: str, found: str) -> float:
    gold_words = _official_normalize(gold).split() if gold else []
    found_words = _official_normalize(found).split() if found else []
    same = sum((Counter(gold_words) & Counter(found_words)).values())
    if len(gold_words) == 0 or len(found_words) == 0:
        return int(gold_words == found_words)
    if same == 0:
        return 0
    precision, recall = 1.0 * same / len(found_words), 1.0 * same / len(gold_words)
    return (2 * precision * recall) / (precision + recall)


def _random_answer(draw: random.Random) -> str:
    words = ["the", "a", "War", "of", "1812,", "war", "U.S.", "an", "great", "--", "Peace"]
    return " ".join(draw.choice(words) for _ in range(draw.randint(0, 4)))


def test_squad_metrics_are_those_of_the_official_script() -> None:
    draw = random.Random(3)
    for _ in range(CASES):
        rows, found = [], []
        for number in range(draw.randint(1, 6)):
            answers = tuple(filter(None, (_random_answer(draw) for _ in range(draw.randint(0, 3)))))
            rows.append(SpanRow(str(number), "", "", answers, 0 if answers else None))
            found.append(Prediction(draw.choice([_random_answer(draw), *answers])))
        exact, f1 = [], []
        for row, prediction in zip(rows, found, strict=True):
            gold = [answer for answer in row.answers if _official_normalize(answer)] or [""]
            text = str(prediction.value)
            exact.append(max(int(_official_normalize(one) == _official_normalize(text)) for one in gold))
            f1.append(max(_official_f1(one, text) for one in gold))
        metrics = squad_metrics(rows, found)
        assert metrics["exact_match"] == pytest.approx(sum(exact) / len(exact), abs=1e-12)
        assert metrics["f1"] == pytest.approx(sum(f1) / len(f1), abs=1e-12)
        has_answer = [bool(row.answers) for row in rows]
        if any(has_answer) and not all(has_answer):
            chosen = [value for value, has in zip(f1, has_answer, strict=True) if not has]
            assert metrics["f1_unanswerable"] == pytest.approx(sum(chosen) / len(chosen), abs=1e-12)


def _official_chunks(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """conlleval.pl's endOfChunk and startOfChunk, for IOB tags, word by word."""
    found, begin, previous = set(), None, ("O", "")
    for place, tag in enumerate([*tags, "O"]):
        letter, _, kind = tag.partition("-")
        before, kind_before = previous
        ends = before in ("B", "I") and (letter in ("B", "O") or kind_before != kind)
        starts = letter == "B" or (letter == "I" and (before == "O" or kind_before != kind))
        if ends and begin is not None:
            found.add((begin, place, kind_before))
            begin = None
        if starts:
            begin = place
        previous = (letter, kind)
    return found


def test_entity_metrics_are_those_of_conlleval() -> None:
    draw = random.Random(4)
    tags = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    for _ in range(CASES):
        rows, found = [], []
        for number in range(draw.randint(1, 4)):
            size = draw.randint(1, 9)
            gold, ours = (tuple(draw.choice(tags) for _ in range(size)) for _ in range(2))
            rows.append(TokenRow(str(number), ("w",) * size, gold))
            found.append(Prediction(draw.choice([ours, gold])))
        pairs = [
            (_official_chunks(row.tags or ()), _official_chunks(p.value)) for row, p in zip(rows, found, strict=True)
        ]
        right, called, wanted = (sum(map(len, sets)) for sets in zip(*((a & b, b, a) for a, b in pairs), strict=True))
        metrics = chunk_metrics(rows, found)
        assert metrics["precision"] == pytest.approx(right / called if called else 0.0)
        assert metrics["recall"] == pytest.approx(right / wanted if wanted else 0.0)
        assert metrics["f1"] == pytest.approx(2 * right / (called + wanted) if right else 0.0)


def test_both_ways_to_tag_entities_have_the_same_entities() -> None:
    assert chunks(["I-PER", "I-PER", "O", "I-LOC", "B-LOC"]) == chunks(["B-PER", "I-PER", "O", "B-LOC", "B-LOC"])
    assert chunks(["I-PER", "I-LOC"]) == {(0, 1, "PER"), (1, 2, "LOC")}


def test_multirc_counts_answers_and_whole_questions() -> None:
    gold = ["1", "0", "1", "0"]
    rows = [TextRow(str(n), "", label=label, group=f"question {n // 2}") for n, label in enumerate(gold)]
    metrics = multirc_metrics(rows, _predictions(["1", "0", "1", "1"]))
    assert metrics["exact_match"] == 0.5
    assert metrics["f1a"] == pytest.approx(f1_score([1, 0, 1, 0], [1, 0, 1, 1]))


def test_record_takes_the_likeliest_candidate_of_each_query() -> None:
    answers = ("New York", "the Big Apple")
    rows = [TextRow("", "", label="0", group="q", candidate=name, answers=answers) for name in ("York", "Big Apple")]
    found = [Prediction("0", (0.9, 0.1)), Prediction("0", (0.8, 0.2))]
    assert record_metrics(rows, found) == {"f1": 1.0, "exact_match": 1.0}
    assert record_metrics(rows, found[::-1]) == {"f1": pytest.approx(2 / 3), "exact_match": 0.0}


def test_accuracy_is_counted_by_group_as_well() -> None:
    rows = [ChoiceRow(str(n), (("", ""),) * 4, label=n, group=("high", "middle")[n % 2]) for n in range(4)]
    assert accuracy_by_group(rows, [Prediction(value) for value in (0, 0, 2, 3)]) == {
        "accuracy": 0.75,
        "accuracy_high": 1.0,
        "accuracy_middle": 0.5,
    }
