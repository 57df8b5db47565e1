"""A folder laid out like the published v3 goes all the way: import, replaced token detection, export, transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from megadeberta.config.load import load_run_config
from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.family import ModelKind
from megadeberta.convert.formats.places import find_generator
from megadeberta.convert.import_parts import import_parts
from megadeberta.data.tokenizer import CLS_ID, SEP_ID, SentencePieceTokenizer
from megadeberta.observability.metrics import read_metrics
from megadeberta.weights.source import load_weights
from tests.data_fixtures import SOTU
from tests.e2e.tiny_run import write_recipe
from tests.unit.convert.published import write_published_folder
from tests.unit.convert.small_models import small_model, write_checkpoint

STEPS = 20


def _train(recipe: Path, start: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "megadeberta", "train", recipe, "--set", f"training.init_from={start}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_training_goes_on_from_a_published_folder_and_back_to_transformers(prepared: Path, tmp_path: Path) -> None:
    changes = {"model__num_hidden_layers": 4, "objective": {"name": "rtd"}, "training__steps": STEPS}
    recipe = write_recipe(tmp_path, prepared, **changes)
    config = load_run_config(recipe)
    model = small_model(config.model, objective=config.objective)
    spm = prepared / "tokenizer" / "spm.model"
    objective = config.objective.model_dump(mode="json")
    write_checkpoint(tmp_path / "first", model, config.model, spm, step=1, objective=objective)
    published = write_published_folder(tmp_path / "first", tmp_path / "deberta-v3-tiny", tmp_path / "scratch")

    lines = import_parts(published, tmp_path / "start", generator=find_generator(published, None))
    assert {line.action for line in lines} == {"taken"}
    _train(recipe, tmp_path / "start")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {record["step"] for record in records} == set(range(1, STEPS + 1))

    for kind in (None, ModelKind.GENERATOR):
        export_checkpoint(tmp_path / "run", tmp_path / (kind or "discriminator"), kind=kind)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "discriminator")
    reference = SentencePieceTokenizer.load(spm)
    texts = SOTU.read_text(encoding="utf-8").splitlines()[:40]
    assert all(tokenizer(line)["input_ids"] == [CLS_ID, *reference.encode(line), SEP_ID] for line in texts)
    trained = load_weights(tmp_path / "run").encoder_model().weights
    loaded = AutoModel.from_pretrained(tmp_path / "discriminator").eval()
    table = trained["embeddings.word_embeddings.weight"]
    assert torch.equal(loaded.get_input_embeddings().weight.detach(), table)
    before = AutoModel.from_pretrained(tmp_path / "scratch" / "discriminator").get_input_embeddings().weight
    assert 0 < (before - table).abs().mean() < 0.1 * before.abs().mean(), "trained, and from the published weights"
    generator = AutoModelForMaskedLM.from_pretrained(tmp_path / "generator")
    assert generator.config.num_hidden_layers == 2
    assert json.loads((tmp_path / "discriminator" / "config.json").read_text())["num_hidden_layers"] == 4
