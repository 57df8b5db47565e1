"""What the pages of ``test_document_walks.py`` find in the folder where a reader starts: small models, little text."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from megadeberta.config.load import load_run_config
from tests.data_fixtures import SOTU
from tests.document_commands import ROOT, shell_lines, simple
from tests.unit.convert.published import write_published_folder
from tests.unit.convert.small_models import small_model, write_checkpoint

DOCS = ROOT / "docs"
SMALLER = {"2M": "1500", "2000": "700", "32000": "700", "64000": "900"}
"""Words of the commands that say how much, and what is taken instead."""
SMALL_MODEL = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "max_relative_positions": 64,
    "position_buckets": 16,
}
SHORT_RUN: dict[str, Any] = {
    "training": {"steps": 4, "eval_interval": 2, "eval_sequences": 8},
    "schedule": {"warmup_steps": 1},
    "checkpoint": {"interval": 2},
    "logging": {"interval": 1},
    "deepspeed": {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4},
}


def commands_of(page: str) -> list[list[str]]:
    """The commands of a page in order, as words, at the size of a test."""
    found = []
    for number, line in shell_lines(DOCS / page):
        words = simple(line)
        assert len(words) == 1 and ">" not in line, f"{page}:{number}: one plain command per line can be walked"
        found.append([SMALLER.get(word, word) for word in words[0]])
    return found


def prepare_folder(folder: Path, page: str, spm: Path) -> None:
    """Text, labelled sentences, the recipes that the page writes out, and small recipes under the shipped names."""
    (folder / "texts").mkdir()
    text = SOTU.read_text(encoding="utf-8")
    (folder / "texts" / "speeches.txt").write_text(text[:200_000], encoding="utf-8")
    (folder / "heldout.txt").write_text(text[-1500:], encoding="utf-8")
    rows = [f"{number % 2}\t{('quiet', 'busy')[number % 2]} day {number} in the house" for number in range(32)]
    (folder / "labelled.tsv").write_text("\n".join(["label\ttext", *rows]) + "\n", encoding="utf-8")
    for name in ("small-rtd", "deberta-v3-base"):  # in the working folder a file wins over a shipped recipe
        values = {"extends": str(ROOT / "ds_configs" / f"{name}.json"), "name": name, "model": SMALL_MODEL, **SHORT_RUN}
        values |= {"data": {"sequence_length": 32}, "deepspeed": {**SHORT_RUN["deepspeed"], "bf16": {"enabled": False}}}
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    for block in re.findall(r"^```json\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S):
        recipe = json.loads(block)
        shorter = {name: recipe.get(name, {}) | section for name, section in SHORT_RUN.items()}
        (folder / f"{recipe['name']}.json").write_text(json.dumps(recipe | shorter), encoding="utf-8")
    if "microsoft/deberta-v3-base" in (DOCS / page).read_text(encoding="utf-8"):
        _publish(folder, spm)


def _publish(folder: Path, spm: Path) -> None:
    """A small model laid out like the published one: a folder of the name that the hub has."""
    config = load_run_config(folder / "deberta-v3-base")
    scratch, model = folder / "scratch", small_model(config.model, objective=config.objective)
    objective = config.objective.model_dump(mode="json")
    write_checkpoint(scratch / "run", model, config.model, spm, step=1, objective=objective)
    write_published_folder(scratch / "run", folder / "microsoft" / "deberta-v3-base", scratch, rtd_head=False)
    shutil.rmtree(scratch)


def python_of(page: str) -> str:
    """The Python blocks of a page, in order, as one program."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
