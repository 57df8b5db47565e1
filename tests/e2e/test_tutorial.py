"""The commands of docs/tutorial.md, run in order from an empty folder, as a reader would copy them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROOT = Path(__file__).parents[2]
FEWER_TOKENS = ("--tokens 2M", "--tokens 20k")
"""The one thing that is changed: how long the model is trained."""


def _commands() -> list[str]:
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_tutorial_leads_from_text_to_a_tuned_model(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    shutil.copy(ROOT / "tests" / "data" / "sotu.txt", tmp_path / "texts")
    rows = ["label\ttext"]
    rows += [f"{number % 2}\t{('quiet', 'busy')[number % 2]} day {number} in the house" for number in range(32)]
    (tmp_path / "labelled.tsv").write_text("\n".join(rows) + "\n")
    # The commands of this environment and this checkout, whatever is installed elsewhere.
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, words in {"megadeberta": "-m megadeberta ", "python": ""}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        (tools / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    commands = _commands()
    assert len(commands) == 8
    for command in commands:
        done = subprocess.run(
            command.replace(*FEWER_TOKENS), shell=True, cwd=tmp_path, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned")
    batch = AutoTokenizer.from_pretrained(tmp_path / "tuned")("a busy day in the house", return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert model(**inputs).logits.shape == (1, 2)
