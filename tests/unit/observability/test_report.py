"""The report of a run with several losses."""

import io
from pathlib import Path

from rich.console import Console

from megadeberta.observability.metrics import MetricsFile, read_metrics
from megadeberta.observability.report import print_report


def _report(folder: Path, valid: dict[str, float]) -> str:
    with MetricsFile.create(folder / "metrics.jsonl") as file:
        file.write(10, {"loss": 7.5})
        file.write(10, {"valid_loss": 7.0, "valid_perplexity": 90.0, "unigram_cross_entropy": 6.5} | valid)
    console = Console(record=True, width=160, file=io.StringIO())
    print_report(folder, read_metrics(folder / "metrics.jsonl"), console)
    return " ".join(console.export_text().split())


def test_report_shows_both_losses_and_compares_the_token_loss_with_word_frequencies(tmp_path: Path) -> None:
    text = _report(tmp_path, {"valid_mlm_loss": 4.5, "valid_rtd_loss": 0.05, "valid_rtd_recall": 0.25})
    assert "mlm 4.500 rtd 0.050 rec 0.250" in text
    assert "validation MLM loss 4.500 nats per masked token after step 10" in text
    assert "6.500: 2.000 nats better" in text


def test_every_loss_has_a_verdict_against_its_own_baseline(tmp_path: Path) -> None:
    terms = {"valid_mlm_loss": 6.75, "valid_rtd_loss": 0.474, "valid_replaced_rate": 0.229, "valid_rtd_precision": None}
    text = _report(tmp_path, terms)
    assert "unigram cross-entropy 6.500: 0.250 nats worse" in text
    assert "RTD loss 0.474 nats per token after step 10; entropy of the replaced fraction 0.538: 0.064 nats" in text
    assert "prec -" in text


def test_report_of_a_run_that_reads_left_to_right_says_so(tmp_path: Path) -> None:
    text = _report(tmp_path, {"valid_ar_loss": 4.0, "valid_ar_accuracy": 0.3})
    assert "acc 0.300" in text
    assert "validation next-token loss 4.000 nats per token after step 10" in text


def test_report_shows_the_loss_of_each_validation_file(tmp_path: Path) -> None:
    text = _report(
        tmp_path, {"valid_mlm_loss": 4.5, "valid_loss/en": 4.0, "valid_loss/sw": 5.25, "valid_loss/xx": None}
    )
    assert "validation loss of each source: en 4.000, sw 5.250" in text and "xx" not in text
