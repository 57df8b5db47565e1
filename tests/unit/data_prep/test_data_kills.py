"""SIGKILL at random instants of the commands that make sets of sets, and of packing: the same bytes in the end."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megadeberta.data_prep.verify import verify_set
from tests.data_fixtures import SOTU

CODE = "import sys; from megadeberta.cli import main; sys.exit(main())"
PLAN = "import sys; from pathlib import Path; from megadeberta.data.packing import PackedReader; "
PLAN += "PackedReader(Path(sys.argv[1]), 64)"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}


def command_line(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", CODE, *map(str, arguments)]


def run(command: list[str]) -> float:
    """Run it to the end; returns the seconds."""
    began = time.monotonic()
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    return time.monotonic() - began


def killed(command: list[str], after: float) -> None:
    """Start it, and kill it after so many seconds, if it has not ended."""
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()


def files_of(folder: Path) -> dict[str, bytes]:
    """All files but those that hold times."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if name.suffix in (".bin", ".sum", ".idx")}


@pytest.fixture
def parts(tmp_path: Path, prepared: Path) -> list[Path]:
    """Two parts of a corpus in which most documents come twice, with an edit."""
    texts = SOTU.read_text(encoding="utf-8").split("\n\n")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join([*texts, *[f"{text} And more." for text in texts]]), encoding="utf-8")
    model = prepared / "tokenizer" / "spm.model"
    for number in (1, 2):
        options = ["--tokenizer", model, "--part", f"{number}/2", "--deduplicate", "near", "-j", "1"]
        run(command_line("prep", corpus, *options, "--output", tmp_path / f"part-{number}"))
    return [tmp_path / "part-1", tmp_path / "part-2"]


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["merge parts", "merge sets", "sample", "split"])
def test_killed_commands_end_with_the_same_bytes(tmp_path: Path, prepared: Path, parts: list[Path], name: str) -> None:
    arguments: list[str | Path] = {
        "merge parts": ["merge", *parts],
        "merge sets": ["merge", prepared, prepared],
        "sample": ["sample", prepared, "--fraction", "0.5"],
        "split": ["split", prepared, "--valid", "0.2", "--test", "0.2"],
    }[name]
    seconds = run(command_line("data", *arguments, "--output", tmp_path / "whole"))
    expected = files_of(tmp_path / "whole")
    generator = random.Random(name)
    for number in range(20):
        output = tmp_path / f"killed-{number}"
        command = command_line("data", *arguments, "--output", output)
        killed(command, generator.uniform(0.3, 1.0) * seconds)
        if not (output / "train.json").exists():
            run(command)
        assert files_of(output) == expected
        assert set(verify_set(output).shards) == set(verify_set(tmp_path / "whole").shards)
        assert not (output / ".parts").exists()


@pytest.mark.campaign
def test_a_plan_that_was_killed_while_it_was_made_is_made_by_the_next(tmp_path: Path, prepared: Path) -> None:
    shutil.copytree(prepared, tmp_path / "whole")
    plan = [sys.executable, "-c", PLAN]
    seconds = run([*plan, str(tmp_path / "whole" / "train")])
    expected = (tmp_path / "whole" / "train.packing-64").read_bytes()
    generator = random.Random(1)
    for number in range(20):
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(prepared, folder)
        killed([*plan, str(folder / "train")], generator.uniform(0.5, 1.0) * seconds)
        run([*plan, str(folder / "train")])
        assert (folder / "train.packing-64").read_bytes() == expected
