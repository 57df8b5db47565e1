"""The pages that a newcomer follows: their commands in order from an empty folder, with small models and little text.

By default in processes that are forked from one, and with one rank, which takes seconds; as a campaign exactly as a
reader would paste them into a shell.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from tests.document_commands import ROOT
from tests.e2e.document_pages import commands_of, prepare_folder, python_of
from tests.forked_commands import ForkedCommands

Runner = Callable[[list[str], Path], str]


@pytest.fixture(scope="module")
def forked() -> Iterator[Runner]:
    with ForkedCommands() as commands:

        def run(words: list[str], folder: Path) -> str:
            if words[:2] == ["megadeberta", "launch"]:  # whose ranks would each load torch for seconds
                words = ["megadeberta", "train", words[2]]
            code, output = commands.run(words, folder)
            assert code == 0, f"{shlex.join(words)}\n{output[-4000:]}"
            return output

        yield run


def in_shell(words: list[str], folder: Path) -> str:
    """As a reader pastes it; `megadeberta` and `python` are those of this environment and this checkout."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name, more in {"megadeberta": "-m megadeberta ", "python": ""}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {more}"$@"\n')
        (tools / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(shlex.join(words), shell=True, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def walk(page: str, folder: Path, run: Runner, spm: Path) -> dict[str, str]:
    """Run all commands of a page; what each has printed, by its line."""
    prepare_folder(folder, page, spm)
    return {shlex.join(words): run(words, folder) for words in commands_of(page)}


def tutorial(folder: Path, run: Runner, spm: Path) -> None:
    """And docs/python-api.md, which goes on with its files."""
    shown = walk("tutorial.md", folder, run, spm)
    assert len(shown) == 8
    model = AutoModelForSequenceClassification.from_pretrained(folder / "tuned")
    batch = AutoTokenizer.from_pretrained(folder / "tuned")("a busy day in the house", return_tensors="pt")
    assert model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits.shape == (1, 2)
    (folder / "api.py").write_text(python_of("python-api.md"), encoding="utf-8")
    printed = run(["python", "api.py"], folder)
    assert "'mlm_loss': " in printed and "'rtd_loss': " in printed
    assert (folder / "exported-from-python" / "model.safetensors").read_bytes() == (
        folder / "exported" / "model.safetensors"
    ).read_bytes()


def adapt(folder: Path, run: Runner, spm: Path) -> None:
    """A folder laid out like the published model goes on, and comes out with its tokens."""
    shown = walk("adapt-v3.md", folder, run, spm)
    scores = [output for line, output in shown.items() if line.startswith("megadeberta evaluate")]
    assert len(scores) == 2 and all("mlm loss" in output and "rtd loss baseline" in output for output in scores)
    assert (folder / "exported" / "spm.model").read_bytes() == spm.read_bytes()
    first, last = (AutoTokenizer.from_pretrained(folder / name) for name in ("exported", "tuned"))
    assert first("a busy day")["input_ids"] == last("a busy day")["input_ids"]
    assert AutoModel.from_pretrained(folder / "exported").config.num_hidden_layers == 4
    assert (folder / "start-own" / "model.safetensors").is_file()


def new_language(folder: Path, run: Runner, spm: Path) -> None:
    """Vocabularies are compared, and trial and real run are two runs."""
    shown = walk("new-language.md", folder, run, spm)
    assert "language:\n- sw" in (folder / "exported" / "README.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["base", "trial"]
    assert "<html" in (folder / "comparison.html").read_text(encoding="utf-8")
    assert any("bits a byte" in output for output in shown.values())


WALKS = [tutorial, adapt, new_language]


@pytest.mark.parametrize("way", [tutorial, adapt, pytest.param(new_language, marks=pytest.mark.campaign)])
def test_no_command_of_a_page_fails(way: Callable, forked: Runner, spm: Path, tmp_path: Path) -> None:
    way(tmp_path, forked, spm)


@pytest.mark.campaign
@pytest.mark.parametrize("way", WALKS, ids=lambda way: way.__name__)
def test_no_command_of_a_page_fails_in_a_shell(way: Callable, spm: Path, tmp_path: Path) -> None:
    way(tmp_path, in_shell, spm)
