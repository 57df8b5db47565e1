"""The line of an epoch."""

from types import SimpleNamespace

import pytest

from megadeberta.finetune import progress as progress_module
from megadeberta.finetune.progress import Progress


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_line_of_an_epoch_is_broken_between_two_items(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    scores = {"accuracy": 0.8, "macro_f1": 0.7333}
    Progress("classification seed 1", 3).epoch(1, 0.9044, scores, 7.0, best=True)
    shown = capsys.readouterr().err
    assert all(len(line) <= columns for line in shown.splitlines())
    whole = "classification seed 1 epoch 1/3 loss 0.9044 accuracy 0.8000 macro_f1 0.7333 (best) 7 s"
    assert " ".join(shown.split()) == whole
    assert [line.split()[0] for line in shown.splitlines()[1:]] == {60: ["macro_f1"], 80: ["(best)"], 200: []}[columns]


def test_steps_are_said_now_and_then_where_no_bar_is_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for quiet in (True, False):
        progress = Progress("sst-2 seed 1", 1, quiet=quiet)
        progress.start(100)
        for number in range(1, 7):
            now[0] += 1.0
            progress.step(number)
        progress.stop()
    assert capsys.readouterr().err == "sst-2 seed 1 step 3 of 100\nsst-2 seed 1 step 6 of 100\n"
