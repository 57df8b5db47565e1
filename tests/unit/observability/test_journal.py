"""What the journal records of a start beside its steps."""

import logging
from pathlib import Path

import pytest
import torch

from megadeberta.observability.journal import Journal, open_journal
from tests.models import run_config


def _journal(folder: Path, *, is_writer: bool = True) -> Journal:
    return open_journal(
        run_config(training={"output_dir": str(folder), "steps": 10}, logging={"peak_tflops": 1.0, "plot": False}),
        done=0,
        unigram=None,
        world_size=1,
        device=torch.device("cpu"),
        is_writer=is_writer,
    )


def test_a_resumed_run_says_that_it_has_other_kernels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for taken, resumed in (("triton", False), ("triton", True), ("reference", True), ("triton", False)):
        with _journal(tmp_path) as journal:
            journal.kernels(taken, resumed=resumed)
    assert [record.message for record in caplog.records] == [
        "attention was triton and is reference from here on: the same up to rounding"
    ]
    assert (tmp_path / "kernels.txt").read_text() == "triton\n"
    with _journal(tmp_path, is_writer=False) as journal:
        journal.kernels("reference", resumed=True)
    assert len(caplog.records) == 1
