"""Fine-tuning end to end on a tiny model: every kind of task, seeds, grid, SiFT, and the folder that comes out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

from megadeberta.cli import command_line
from tests.unit.finetune.published_sets import PUBLISHED, TRAIN
from tests.unit.finetune.small_sets import sentence, sst2, write_csv, write_jsonl

Tune = Callable[..., dict[str, Any]]


@pytest.fixture
def tune(tiny_export: Path, tmp_path: Path) -> Tune:
    """The command on some set; its JSON."""

    def run(task: str, data: Path, *more: str, output: str = "tuned") -> dict[str, Any]:
        arguments = ["finetune", task, "--data", str(data), "--model", str(tiny_export)]
        arguments += ["--output", str(tmp_path / output), "--batch-size", "8", "--lr", "1e-3", "--json"]
        if "--epochs" not in more:
            arguments += ["--epochs", "1"]
        done = CliRunner().invoke(command_line(["finetune", "evaluate"]), [*arguments, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        # DeepSpeed, which accelerate imports, also speaks on standard output where the command line has no log set up.
        found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        return found

    return run


@pytest.mark.parametrize(
    ("task", "model_class"),
    [
        ("sst-2", "AutoModelForSequenceClassification"),
        ("sts-b", "AutoModelForSequenceClassification"),
        ("conll2003", "AutoModelForTokenClassification"),
        ("race", "AutoModelForMultipleChoice"),
        ("squad2", "AutoModelForQuestionAnswering"),
    ],
)
def test_each_kind_of_task_ends_in_a_folder_for_transformers(
    task: str, model_class: str, tune: Tune, tmp_path: Path
) -> None:
    folder, write = PUBLISHED[task]
    write(tmp_path / folder)
    found = tune(task, tmp_path, "--sift")
    loaded = getattr(transformers, model_class).from_pretrained(tmp_path / "tuned")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "tuned").mask_token == "[MASK]"
    assert sum(parameter.numel() for parameter in loaded.parameters()) > 10_000
    assert found["task"] == task and found["settings"]["sift"]["weight"] == 5.0
    (run,) = found["points"][0]["runs"]
    assert run["epochs"][0]["loss"] > 0
    dev = next(iter(found["kept"]["metrics"]))
    assert found["kept"]["metrics"][dev][found["metric"]] == found["points"][0][found["metric"]]["median"]
    assert json.loads((tmp_path / "tuned" / "results.json").read_text()) == found
    lines = (tmp_path / "tuned" / f"predictions-{dev}.jsonl").read_text().splitlines()
    assert len(lines) == found["rows"][dev] and {"id", "prediction", "scores"} == json.loads(lines[0]).keys()


def test_predictions_and_scores_are_those_of_the_folder(tune: Tune, tmp_path: Path) -> None:
    sst2(tmp_path / "SST-2")
    found = tune("sst-2", tmp_path, "--epochs", "3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tuned")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned").eval()
    assert model.config.id2label == {0: "0", 1: "1"}
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "predictions-dev.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        batch = tokenizer(sentence(number), return_tensors="pt")
        with torch.no_grad():
            logits = model(batch["input_ids"], batch["attention_mask"]).logits[0]
        torch.testing.assert_close(torch.tensor(line["scores"]), logits.softmax(-1), rtol=0, atol=1e-5)
        assert line["prediction"] == str(int(logits.argmax()))
    right = sum(line["prediction"] == str(number % 2) for number, line in enumerate(lines))
    assert found["kept"]["metrics"]["dev"]["accuracy"] == right / len(lines)
    assert (tmp_path / "tuned" / "SST-2.tsv").read_text().startswith("index\tprediction\n0\t")


def test_a_seed_gives_the_same_weights_and_another_seed_others(tune: Tune, tmp_path: Path) -> None:
    sst2(tmp_path / "SST-2")
    weights = []
    for output, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        tune("sst-2", tmp_path, "--seed", seed, output=output)
        weights.append(load_file(tmp_path / output / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["classifier.weight"], weights[2]["classifier.weight"])


def test_sift_of_weight_zero_is_plain_fine_tuning_bit_for_bit(tune: Tune, tmp_path: Path) -> None:
    sst2(tmp_path / "SST-2")
    weights = {}
    for output, more in {"plain": (), "zero": ("--sift", "--sift-weight", "0"), "five": ("--sift",)}.items():
        tune("sst-2", tmp_path, *more, output=output)
        weights[output] = load_file(tmp_path / output / "model.safetensors")
    assert all(torch.equal(weights["plain"][name], weights["zero"][name]) for name in weights["plain"])
    assert not torch.equal(weights["plain"]["classifier.weight"], weights["five"]["classifier.weight"])


def test_micro_batches_are_added_up_to_the_same_step(tune: Tune, tmp_path: Path) -> None:
    sst2(tmp_path / "SST-2")
    # Dropout draws for what is computed together, so none here; the layers' own is in the model's configuration.
    losses = [
        tune("sst-2", tmp_path, "--micro-batch", size, "--dropout", "0", output=size)["points"][0]["runs"][0]["epochs"]
        for size in ("8", "2")
    ]
    assert losses[0][0]["loss"] == pytest.approx(losses[1][0]["loss"], abs=0.03)


def test_grid_and_seeds_give_a_table_and_the_best_is_kept(tune: Tune, tmp_path: Path) -> None:
    sst2(tmp_path / "SST-2")
    found = tune("sst-2", tmp_path, "--grid", "dropout", "--seeds", "2", "--epochs", "2")
    assert [point["dropout"] for point in found["points"]] == [0.0, 0.1, 0.15]
    medians = []
    for point in found["points"]:
        values = [run["metrics"]["dev"]["accuracy"] for run in point["runs"]]
        assert [run["seed"] for run in point["runs"]] == [1, 2]
        assert point["accuracy"]["min"] == min(values) and point["accuracy"]["max"] == max(values)
        assert point["accuracy"]["median"] == sum(values) / 2
        medians.append(point["accuracy"]["median"])
        for run in point["runs"]:
            best = max(epoch["metrics"]["accuracy"] for epoch in run["epochs"])
            assert run["metrics"]["dev"]["accuracy"] == best
    best_point = found["points"][medians.index(max(medians))]
    assert found["kept"]["dropout"] == best_point["dropout"]
    table = (tmp_path / "tuned" / "results.md").read_text()
    assert table.count("| 0.001 | 8 |") == 3


OWN: dict[str, Callable[[Path], Path]] = {
    "classification": lambda root: write_csv(
        root / "set" / "train.csv", ["review", "stars"], [(sentence(n), f"s{n % 3}") for n in range(30)]
    ),
    "pairs": lambda root: write_jsonl(
        root / "set" / "train.jsonl", [{"text": sentence(n), "pair": "it", "label": n % 2 == 0} for n in range(TRAIN)]
    ),
    "regression": lambda root: write_jsonl(
        root / "set" / "train.jsonl", [{"text": sentence(n), "label": n / 4} for n in range(30)]
    ),
    "tokens": lambda root: write_csv(
        root / "set" / "train.csv", ["tokens", "tags"], [("the navy of Texas", "O O O B-LOC")] * TRAIN
    ),
    "multiple-choice": lambda root: write_jsonl(
        root / "set" / "train.jsonl",
        [
            {"context": sentence(n), "question": "?", "choices": ["war", "law", "it"], "label": n % 3}
            for n in range(TRAIN)
        ],
    ),
    "spans": lambda root: write_jsonl(
        root / "set" / "train.jsonl",
        [{"context": sentence(n), "question": "When?", "answer": str(n) if n % 2 else None} for n in range(TRAIN)],
    ),
}


@pytest.mark.parametrize("task", OWN)
def test_own_tables_are_read_and_a_tenth_is_kept_for_development(task: str, tune: Tune, tmp_path: Path) -> None:
    path = OWN[task](tmp_path)
    more = ["--column", "text=review", "--column", "label=stars"] if task == "classification" else []
    found = tune(task, path.parent if task != "tokens" else path, *more)
    total = sum(found["rows"].values())
    assert found["rows"] == {"training": total - total // 10, "dev": total // 10}
    assert found["kept"]["metrics"]["dev"][found["metric"]] <= 1
