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
WITH_TIMES = {"report.json", "lengths.png"}
LIMIT = ("--max-file-size", "24000")


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


def stage_times(command: list[str]) -> dict[str, float]:
    """Run it to the end; returns the seconds of each stage, by the first word that the log has of it."""
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
    began: dict[str, float] = {}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.rstrip().endswith("…"):
                began[line.split()[0]] = time.monotonic()
    assert process.returncode == 0
    ends = [*list(began.values())[1:], time.monotonic()]
    return {stage: end - start for (stage, start), end in zip(began.items(), ends, strict=True)}


def killed_in(command: list[str], stage: str, after: float) -> None:
    """Start it, and kill it so many seconds after a stage has begun, if it has not ended."""
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if any(line.startswith(stage) for line in process.stdout):
            time.sleep(after)
        process.kill()


def files_of(folder: Path) -> dict[str, bytes]:
    """All files but those that hold times."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if name.name not in WITH_TIMES}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text in which most documents come twice, with an edit."""
    texts = SOTU.read_text(encoding="utf-8").split("\n\n")
    corpus = tmp_path_factory.mktemp("text") / "corpus.txt"
    corpus.write_text("\n\n".join([*texts, *[f"{text} And more." for text in texts]]), encoding="utf-8")
    return corpus


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("limit", [(), LIMIT], ids=["one file", "several files"])
@pytest.mark.parametrize("name", ["merge parts", "merge sets", "sample", "split"])
def test_killed_commands_end_with_the_same_bytes(
    tmp_path: Path, prepared: Path, corpus: Path, name: str, limit: tuple[str, ...]
) -> None:
    parts = [tmp_path / "part-1", tmp_path / "part-2"]
    if name == "merge parts":
        model = prepared / "tokenizer" / "spm.model"
        for number, part in enumerate(parts, 1):
            options: list[str | Path] = [
                "--tokenizer",
                model,
                "--part",
                f"{number}/2",
                "--deduplicate",
                "near",
                "-j",
                "1",
                *limit,
            ]
            run(command_line("prep", corpus, *options, "--output", part))
    commands: dict[str, list[str | Path]] = {
        "merge parts": ["merge", *parts],
        "merge sets": ["merge", prepared, prepared, *limit],
        "sample": ["sample", prepared, "--fraction", "0.5", *limit],
        "split": ["split", prepared, "--valid", "0.2", "--test", "0.2", *limit],
    }
    arguments = commands[name]
    seconds = run(command_line("data", *arguments, "--output", tmp_path / "whole"))
    expected = files_of(tmp_path / "whole")
    generator = random.Random(name)
    for number in range(20):
        output = tmp_path / f"killed-{number}"
        command = command_line("data", *arguments, "--output", output)
        killed(command, generator.uniform(0.3, 1.0) * seconds)
        run(command)
        assert files_of(output) == expected
        assert set(verify_set(output).shards) == set(verify_set(tmp_path / "whole").shards)
        assert not (output / ".parts").exists()


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("limit", [(), LIMIT], ids=["one file", "several files"])
def test_twenty_kills_in_every_stage_of_prep_give_the_same_bytes(
    tmp_path: Path, corpus: Path, limit: tuple[str, ...]
) -> None:
    options = ("--vocab-size", "500", "--deduplicate", "near", "--valid-fraction", "0.1", *limit)
    arguments: list[str | Path] = ["prep", corpus, *options]
    stages = stage_times(command_line(*arguments, "--output", tmp_path / "whole"))
    assert list(stages) == ["reading", "training", "encoding", "sketching", "comparing", "writing"]
    expected = files_of(tmp_path / "whole")
    assert (len(expected) > 20) is bool(limit)
    generator = random.Random(5)
    for number in range(20):
        output = tmp_path / f"killed-{number}"
        command = command_line(*arguments, "--output", output)
        for stage, seconds in stages.items():
            killed_in(command, stage, generator.uniform(0.0, 1.0) * seconds)
        run(command)
        assert files_of(output) == expected
        assert not (output / ".parts").exists()
        shutil.rmtree(output)


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
