"""docs/extending.md: its paths exist, its lists stay short, and its worked example is code that trains."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import recipe, write_json

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
# The most files that each list of a section may have. A change that needs more is spread over too many places.
MOST_FILES = {
    "Adding an objective": [8],
    "Adding a learning-rate schedule": [2],
    "Adding an input format: Parquet": [4],
    "Adding an optimizer": [3],
    "Adding an attention backend": [3],
    "Adding a Hugging Face family": [3],
    "Adding an experiment tracker: Comet": [5],
    "Adding context parallelism": [17],
    "Adding another hash": [4],
    "Adding a fine-tuning task: TREC": [3],
}
USE = """
import sys, torch
from megadeberta.config.load import load_run_config
from megadeberta.data.counter_random import stream_key
from megadeberta.data.targets import load_targets
from megadeberta.data.tokenizer import PieceKind
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.layers.recipe import micro_batch_of
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.layers.stages import plan_stages
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from pathlib import Path
import numpy as np

config = load_run_config(Path(sys.argv[1]))
layers = list_layers(config.model, config.objective)
stages = [stage.names for stage in plan_stages(layers, micro_batch_of(config), 2)]
model = WholeModel(layers).eval()
initialize(model, seed=1, std=0.05)
held = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
assert held == parameter_shapes(config.model, config.objective)

kinds = np.array([PieceKind.SPECIAL] * 4 + [PieceKind.WORD_START] * 100, np.uint8)
tokens = np.arange(4, 104).repeat(2).reshape(10, 20)  # every token twice, one after the other: order can be learned
made = load_targets(config.objective, kinds, mask_id=3)(tokens, stream_key(1, "test", np.arange(10)))
assert made.masked_labels.shape[1] == objective_of(config.objective).slots(config.objective, 20)
names = ("input_ids", "masked_positions", "masked_labels", *objective_of(config.objective).batch_fields)
batch = {name: torch.from_numpy(made.field(name)) for name in names}
batch["attention_mask"] = torch.ones_like(batch["input_ids"])
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
losses = []
for _ in range(30):
    terms, _ = model(**batch)
    total, count = terms["shuffled_loss"]
    assert int(count) == 200
    optimizer.zero_grad()
    (total / count).backward()
    optimizer.step()
    losses.append(float(total / count))
print(losses[0], losses[-1], stages[-1][-1])
"""


def _lists(section: str) -> list[list[str]]:
    """The files of each numbered table of a section."""
    tables: list[list[str]] = []
    for number, path in re.findall(r"^\| (\d+) \| \*?`([^`]+)`\*? \|", SECTIONS[section], re.MULTILINE):
        if number == "1":
            tables.append([])
        tables[-1].append(path)
        assert int(number) == len(tables[-1]), f"{section}: {path} has number {number}"
    return tables


def test_every_section_that_adds_something_has_a_bound() -> None:
    assert [name for name in SECTIONS if name.startswith("Adding")] == list(MOST_FILES)


@pytest.mark.parametrize("section", MOST_FILES)
def test_a_change_needs_no_more_files_than_its_bound(section: str) -> None:
    lists = _lists(section)
    assert len(lists) == len(MOST_FILES[section])
    for files, most in zip(lists, MOST_FILES[section], strict=True):
        assert 0 < len(files) <= most
        assert [path for path in files if not (ROOT / path).is_file()] == []


def test_the_first_table_has_the_numbers_of_the_sections() -> None:
    first = PAGE.split("## Plugins")[0]
    told = re.findall(r"^\| \[.+?\]\(#.+?\) \| ([\d, ]+) \|", first, re.MULTILINE)
    assert told == [", ".join(str(len(files)) for files in _lists(section)) for section in MOST_FILES]


def test_the_worked_example_is_listed_planned_and_trained(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", SECTIONS["Adding an objective"], re.MULTILINE | re.DOTALL)
    (values,) = re.findall(r"^```json\n(.*?)^```", SECTIONS["Adding an objective"], re.MULTILINE | re.DOTALL)
    told = json.loads(values)
    (tmp_path / f"{told['plugins'][0]}.py").write_text(code, encoding="utf-8")
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path = write_json(
        tmp_path / "tiny.json", recipe(model=no_dropout, objective=told["objective"], plugins=told["plugins"])
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, "-c", USE, str(path)], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, last, head = done.stdout.split()
    assert head == "shuffled_head"
    assert 0.6 < float(first) < 0.8  # log 2: one of two
    assert float(last) < 0.8 * float(first)
    command = [sys.executable, "-m", "megadeberta", "plan", str(path), "--gpus", "2", "--memory", "16"]
    planned = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    assert "layouts fit" in planned.stdout
