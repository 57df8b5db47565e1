"""Mistakes that a new user makes, through the real command line: one clear line first, the documented exit code, and
nothing left that looks whole."""

import fcntl
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from megadeberta.config.load import load_run_config
from megadeberta.errors import EXIT_DIVERGED, EXIT_STORAGE, EXIT_USAGE
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.whole import WholeModel
from tests.data_fixtures import SOTU
from tests.e2e.tiny_run import finish, start, write_recipe

SECONDS_ALLOWED = 10.0
"""Of CPU time: beside other work a machine may be several times slower than on its own."""
Case = Callable[[Path, Path], list[str]]


def _run(arguments: list[str], **options: object) -> tuple[int, list[str], float]:
    """Exit code, lines of standard error, and CPU seconds of the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "megadeberta", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **{"env": {**os.environ, "DS_ACCELERATOR": "cpu"}, **options},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stderr.splitlines(), seconds


def _shards(folder: Path, prepared: Path) -> Path:
    """A copy of the prepared set, to damage."""
    return Path(shutil.copytree(prepared, folder / "shards"))


def _damaged(change: Callable[[Path], None]) -> Case:
    def case(folder: Path, prepared: Path) -> list[str]:
        shards = _shards(folder, prepared)
        change(shards)
        return ["train", str(write_recipe(folder, shards))]

    return case


def _recipe(**changes: object) -> Case:
    return lambda folder, prepared: ["train", str(write_recipe(folder, prepared, **changes))]


def _override(*overrides: str) -> Case:
    def case(folder: Path, prepared: Path) -> list[str]:
        words = [word for override in overrides for word in ("--set", override)]
        return ["train", str(write_recipe(folder, prepared)), *words]

    return case


def _text(content: str) -> Case:
    def case(folder: Path, prepared: Path) -> list[str]:
        (folder / "recipe.json").write_text(content)
        return ["train", str(folder / "recipe.json")]

    return case


def _corpus(content: bytes, *options: str, name: str = "corpus.txt") -> Case:
    def case(folder: Path, prepared: Path) -> list[str]:
        (folder / name).write_bytes(content)
        options_or_default = options or ("--vocab-size", "300")
        return ["prep", str(folder / name), "--output", str(folder / "run"), *options_or_default]

    return case


def _truncate(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)


def _wrong_magic(shards: Path) -> None:
    with open(shards / "train.idx", "r+b") as file:
        file.write(b"NOTANIDX")


def _other_tokenizer(shards: Path) -> None:
    model = shards / "tokenizer" / "spm.model"
    model.write_bytes(model.read_bytes() + b"\0")


def _output_is_a_file(folder: Path, prepared: Path) -> list[str]:
    (folder / "file").write_text("")
    return ["train", str(write_recipe(folder, prepared, training__output_dir=str(folder / "file")))]


def _nan_weights(folder: Path, prepared: Path) -> list[str]:
    """Weights of the right names and shapes, one value of which is not a number."""
    arguments = ["train", str(write_recipe(folder, prepared)), "--set", f"training.init_from={folder / 'weights'}"]
    (folder / "weights").mkdir()
    config = load_run_config(folder / "recipe.json").model
    shapes = {name: tuple(p.shape) for name, p in WholeModel(token_model_layers(config)).named_parameters()}
    weights = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}
    weights["layer.0.feed_forward.up.weight"][3, 4] = np.nan
    safetensors.numpy.save_file(weights, folder / "weights" / "model.safetensors")
    return arguments


MISTAKES: dict[str, tuple[Case, str]] = {
    "recipe that does not exist": (
        lambda f, p: ["train", str(f / "quikstart.json")],
        r"recipe .*quikstart.json does not",
    ),
    "recipe that is not JSON": (_text('{"name": "x",}'), r"recipe.json:1: not valid JSON"),
    "recipe that is a list": (_text("[]"), r"one JSON object, found list"),
    "key given twice": (_text('{"name": "a", "name": "b"}'), r"'name' is given twice"),
    "recipe that extends itself": (_text('{"extends": "recipe.json"}'), r"forms a loop"),
    "missing section": (_text('{"name": "x"}'), r"model is required and missing"),
    "unknown key": (_override("model.num_heads=4"), r"unknown key model.num_heads; did you mean 'num_attention_heads'"),
    "unknown deepspeed key": (
        _override('deepspeed.zero_optimisation={"stage":2}'),
        r"unknown key deepspeed.zero_optimisation; did you mean 'zero_optimization'",
    ),
    "override without a value": (_override("optimizer.lr"), r"--set 'optimizer.lr' is not of the form"),
    "value of the wrong type": (_override("training.steps=many"), r"training.steps='many'"),
    "negative learning rate": (_override("optimizer.lr=-1"), r"optimizer.lr=-1"),
    "heads that do not divide": (_override("model.num_attention_heads=3"), r"num_attention_heads=3 does not divide"),
    "sequence longer than positions": (_override("data.sequence_length=65"), r"sequence_length=65 is longer than"),
    "batch that does not multiply out": (
        _override("deepspeed.train_batch_size=5"),
        r"train_batch_size=5 is not a multiple .* nearest that works is train_batch_size=4",
    ),
    "warm-up longer than the run": (_override("schedule.warmup_steps=99"), r"warmup_steps=99 leaves nothing"),
    "two precisions": (
        _override('deepspeed.bf16={"enabled":true}', 'deepspeed.fp16={"enabled":true}'),
        r"bf16 and deepspeed.fp16 are both enabled",
    ),
    "wrong shard path": (_recipe(data__train="/nowhere/train"), r"/nowhere/train"),
    "tokenizer missing": (_recipe(data__tokenizer="/nowhere/spm.model"), r"/nowhere/spm.model"),
    "tokenizer of other shards": (_damaged(_other_tokenizer), r"another tokenizer"),
    "vocabulary too small for the tokenizer": (_override("model.vocab_size=512"), r"vocab_size=512 is too small"),
    "truncated .bin": (_damaged(lambda s: _truncate(s / "train.bin", 1001)), r"train.bin"),
    "wrong magic": (_damaged(_wrong_magic), r"train.idx"),
    "manifest missing": (_damaged(lambda s: (s / "train.json").unlink()), r"train.json"),
    "output folder that is a file": (_output_is_a_file, r"a file of that name is in the way"),
    "asked to resume where nothing is": (_override("checkpoint.resume=required"), r"no checkpoint to resume from"),
    "weights that are not numbers": (_nan_weights, r"layer.0.feed_forward.up.weight .*not finite"),
    "corpus that does not exist": (
        lambda f, p: ["prep", str(f / "none.txt"), "--vocab-size", "300", "--output", str(f / "run")],
        r"none.txt",
    ),
    "empty corpus": (_corpus(b""), r"corpus.txt"),
    "corpus of blank lines": (_corpus(b"\n \n\t\n"), r"no "),
    "line of 40 MB": (_corpus(b"word " * 8_000_000), r"longer than .*corpus.txt:1 "),
    "invalid UTF-8": (_corpus(b"caf\xe9 latin one\n" * 50), r"not valid UTF-8, first at corpus.txt:1 "),
    "JSON without the key": (_corpus(b'{"body": "x"}\n' * 20, name="corpus.jsonl"), r"'text'"),
    "vocabulary larger than the corpus allows": (
        _corpus(b"a few words only, said twice. a few words only.\n", "--vocab-size", "5000"),
        r"5000",
    ),
    "neither vocabulary nor tokenizer": (_corpus(b"text\n", "--workers", "1"), r"--vocab-size"),
    "tokenizer that is none": (_corpus(b"text\n", "--tokenizer", str(SOTU)), r"sotu.txt"),
    "shards that are none": (lambda f, p: ["verify", str(f)], r"verify|no .*shard|not a finished"),
    "checkpoint that is none": (lambda f, p: ["convert", "export", str(f), str(f / "run")], r"checkpoint"),
    "mask filling without a mask": (lambda f, p: ["fill-mask", str(f), "no mask here"], r"\[MASK\]|checkpoint|folder"),
    "no such command": (lambda f, p: ["trian"], r"trian"),
    "no such option": (lambda f, p: ["train", "x.json", "--step", "3"], r"--step"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_gives_one_clear_line_and_exit_code_2(name: str, tmp_path: Path, prepared: Path) -> None:
    case, expected = MISTAKES[name]
    code, lines, seconds = _run(case(tmp_path, prepared))
    assert code == EXIT_USAGE, lines
    assert lines[0].startswith("error: "), lines
    assert len(lines) == 1, lines
    assert len(lines[0]) < 700
    assert re.search(expected, lines[0]), lines[0]
    assert seconds < SECONDS_ALLOWED
    _nothing_looks_whole(tmp_path / "run")


def _nothing_looks_whole(output: Path) -> None:
    assert not (output / "train.json").exists()
    assert not (output / "checkpoints" / "latest").exists()
    assert not (output / "recipe.json").exists() or not list((output / "checkpoints").glob("step-*"))
    assert not (output / "model.safetensors").exists()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """Folder of a recipe whose run of three steps is done."""
    folder = tmp_path_factory.mktemp("finished")
    code, lines, _ = _run(["train", str(write_recipe(folder, prepared)), "--set", "training.steps=6"])
    assert code == 0, lines
    return folder


def _with_recipe_of(finished: Path, prepared: Path, *overrides: str) -> list[str]:
    return _override(*overrides)(finished, prepared)


def test_checkpoint_of_another_model_is_refused_and_kept(finished_run: Path, prepared: Path) -> None:
    before = (finished_run / "run" / "checkpoints" / "latest").read_text()
    code, lines, seconds = _run(_with_recipe_of(finished_run, prepared, "model.intermediate_size=96"))
    assert code == EXIT_USAGE
    assert re.search(r"error: .*model.intermediate_size is '96' here and '64' there", "\n".join(lines))
    assert seconds < SECONDS_ALLOWED * 2  # torch and DeepSpeed are loaded by now
    assert (finished_run / "run" / "checkpoints" / "latest").read_text() == before


def test_run_that_is_done_says_so_and_changes_nothing(finished_run: Path, prepared: Path) -> None:
    before = (finished_run / "run" / "metrics.jsonl").read_bytes()
    code, lines, _ = _run(_with_recipe_of(finished_run, prepared, "training.steps=6"))
    assert code == 0
    assert "done after step 6" in "\n".join(lines)
    assert (finished_run / "run" / "metrics.jsonl").read_bytes() == before


def test_damaged_checkpoints_are_never_a_silent_fresh_start(finished_run: Path, prepared: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "copy"))
    for weights in (copy / "run" / "checkpoints").glob("step-*/rank-0.safetensors"):
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    code, lines, _ = _run(_with_recipe_of(copy, prepared))
    assert code == EXIT_USAGE
    assert re.search(r"error: .*no sound checkpoint to resume from: .*rank-0.safetensors.*sha256", "\n".join(lines))


def test_folder_in_use_names_the_process_that_holds_it(tmp_path: Path, prepared: Path) -> None:
    recipe = write_recipe(tmp_path, prepared)
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f'{{"pid": {os.getpid()}, "host": "here", "since": "now"}}')
        lock.flush()
        code, lines, seconds = _run(["train", str(recipe)])
    assert code == EXIT_USAGE
    assert re.search(rf"^error: output folder .* is in use by process {os.getpid()} on here", lines[0])
    assert seconds < SECONDS_ALLOWED * 2  # torch and DeepSpeed are loaded by now


def test_port_in_use_is_named(tmp_path: Path, prepared: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        recipe = str(write_recipe(tmp_path, prepared))
        code, lines, seconds = _run(["launch", recipe, "--ranks", "2", "--master-port", str(port)])
    assert code == EXIT_USAGE
    assert re.search(rf"^error: .*port {port} is in use", lines[0])
    assert seconds < SECONDS_ALLOWED


def test_half_an_environment_of_a_launcher_is_named(tmp_path: Path, prepared: Path) -> None:
    recipe = str(write_recipe(tmp_path, prepared))
    code, lines, _ = _run(["train", recipe], env={**os.environ, "RANK": "1"})
    assert code == EXIT_USAGE
    assert lines[0].startswith("error: WORLD_SIZE not set")


def test_missing_compiler_is_named_before_anything_starts(tmp_path: Path, prepared: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    arguments = _override('deepspeed.zero_optimization={"stage":2,"offload_optimizer":{"device":"cpu"}}')
    code, lines, seconds = _run(
        arguments(tmp_path, prepared), env={**os.environ, "PATH": str(tools), "DS_ACCELERATOR": "cpu"}
    )
    assert code == EXIT_USAGE
    assert re.search(r"^error: .*offload_optimizer.*g\+\+.*apt install g\+\+", lines[0])
    assert seconds < SECONDS_ALLOWED


def test_key_that_only_deepspeed_knows_to_be_wrong_is_named(tmp_path: Path, prepared: Path) -> None:
    code, lines, _ = _run(_override('deepspeed.zero_optimization={"stagee":1}')(tmp_path, prepared))
    assert code == EXIT_USAGE
    assert re.search(r"error: DeepSpeed .* refuses the deepspeed block: .*stagee", "\n".join(lines))


def test_full_disk_stops_with_79_and_leaves_no_checkpoint(tmp_path: Path, prepared: Path) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    recipe = str(write_recipe(tmp_path, prepared, training__steps=5))
    code, lines, _ = _run(["train", recipe], preexec_fn=small_files_only)
    assert code == EXIT_STORAGE, lines
    assert re.search(r"error: checkpoint of step 5 could not be written: .*step-5", "\n".join(lines))
    assert not list((tmp_path / "run" / "checkpoints").glob("*step-*"))


def test_run_that_diverges_stops_with_77_and_keeps_its_checkpoints(tmp_path: Path, prepared: Path) -> None:
    recipe = write_recipe(tmp_path, prepared, optimizer__lr=1e30, checkpoint__interval=1, schedule__warmup_steps=2)
    code, lines, _ = _run(["train", str(recipe)])
    assert code == EXIT_DIVERGED, lines
    assert re.search(r"error: step \d+: the (loss|gradient)", "\n".join(lines))


def test_stale_compile_lock_does_not_hang_the_start(tmp_path: Path, prepared: Path) -> None:
    """A run that was killed while DeepSpeed compiled leaves ``lock``; every later start used to wait forever."""
    lock = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    started = time.monotonic()
    process = start(
        write_recipe(tmp_path, prepared, training__steps=5), TORCH_EXTENSIONS_DIR=str(tmp_path / "extensions")
    )
    output = finish(process, timeout=120)
    assert process.returncode == 0, output
    assert time.monotonic() - started < 120
