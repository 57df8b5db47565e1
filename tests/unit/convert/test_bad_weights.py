"""Bad weights, through the command line: one line that says what is wrong, exit code 2, and nothing written."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from megadeberta.cli import main
from megadeberta.config.load import load_run_config
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.family import FileFormat, ModelKind
from megadeberta.data.shard_writer import ShardWriter
from megadeberta.data.tokenizer import SentencePieceTokenizer
from megadeberta.errors import EXIT_USAGE, CheckpointError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.model.whole import WholeModel
from megadeberta.weights.hub import check_start
from megadeberta.weights.initial import initial_values
from tests.data_fixtures import NUM_PIECES, train_vocabulary
from tests.e2e.tiny_run import write_recipe
from tests.unit.convert.odd_texts import ALL_TEXTS
from tests.unit.convert.small_models import (
    small_config,
    small_model,
    weights_of,
    write_checkpoint,
    write_weights_folder,
)

CONFIG = small_config(max_position_embeddings=48)
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


class RunsCode:
    """Unpickled carelessly, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self._trace}",)


def _truncated(folder: Path, other: Path) -> None:
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) * 2 // 3])


def _tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path, Path], None]:
    def damage(folder: Path, other: Path) -> None:
        if (folder / SAFETENSORS).is_file():
            found = change(safetensors.torch.load_file(folder / SAFETENSORS))
            safetensors.torch.save_file(
                {name: tensor.contiguous() for name, tensor in found.items()}, folder / SAFETENSORS
            )
        else:
            torch.save(change(torch.load(folder / PICKLED, weights_only=True)), folder / PICKLED)

    return damage


def _table(tensors: dict[str, Tensor]) -> str:
    return next(name for name in tensors if name.endswith("embeddings.word_embeddings.weight"))


def _pickle_with_code(folder: Path, other: Path) -> None:
    (folder / SAFETENSORS).unlink(missing_ok=True)
    torch.save({"weight": torch.ones(1), "code": RunsCode(folder.parent / "trace")}, folder / PICKLED)


def _another_vocabulary(folder: Path, other: Path) -> None:
    shutil.copyfile(other, folder / "spm.model")


DAMAGES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "truncated": (_truncated, r"cannot be read|is no file of torch\.save, or it is damaged"),
    "wrong shapes": (
        _tensors(lambda tensors: tensors | {_table(tensors): torch.zeros(7, 24)}),
        r"word_embeddings\.weight: (expected|the recipe has) \(1008, 24\), (found|the file) \(7, 24\)",
    ),
    "a pickle with code in it": (_pickle_with_code, r"asks for (posix|os)\.system, which is not a tensor; refused"),
    "half of the tensors": (
        _tensors(lambda tensors: {name: tensors[name] for name in sorted(tensors)[::2]}),
        r"tensors do not fit the",
    ),
    "NaN": (
        _tensors(lambda tensors: tensors | {_table(tensors): tensors[_table(tensors)] * float("nan")}),
        r"1 of \d+ tensors hold NaN or infinity",
    ),
    "another vocabulary": (
        _another_vocabulary,
        r"spm\.model: needs 1021 rows with \[MASK\], the word table has 1008; it is not the tokenizer of these weights",
    ),
}


@pytest.fixture(scope="module")
def larger_spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("larger")
    return train_vocabulary(folder / "spm.model", extra=ALL_TEXTS, vocab_size=NUM_PIECES + 20)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, spm: Path) -> Path:
    """Sound folders of every kind that a command reads weights from, and a shard of the same vocabulary."""
    root = tmp_path_factory.mktemp("sound")
    write_weights_folder(root / "imported", small_model(CONFIG), CONFIG, spm)
    export_checkpoint(root / "imported", root / "hf")
    export_checkpoint(root / "imported", root / "microsoft", file_format=FileFormat.MICROSOFT)
    objective = ObjectiveConfig(name="rtd", rtd={"generator_layers": 2})
    both = small_model(CONFIG, objective=objective)
    write_checkpoint(root / "run", both, CONFIG, spm, step=1, objective=objective.model_dump(mode="json"))
    export_checkpoint(root / "run", root / "generator", kind=ModelKind.GENERATOR)
    export_checkpoint(root / "run", root / "discriminator", kind=ModelKind.DISCRIMINATOR)
    tokenizer = SentencePieceTokenizer.load(spm)
    with ShardWriter(root / "shard", dtype=torch.zeros(1, dtype=torch.int32).numpy().dtype) as writer:
        for _ in range(30):
            writer.add_document(tokenizer.encode("The state of the Union is strong, and so are its parts."))
        writer.commit(tokenizer_sha256=tokenizer.sha256, tokenizer_pieces=tokenizer.num_pieces)
    return root


# name: the folder that is damaged, and the words of the command about it
COMMANDS: dict[str, tuple[str, Callable[[Path, Path], list[object]]]] = {
    "import of safetensors": ("hf", lambda bad, sound: ["convert", "import", bad, bad.parent / "out"]),
    "import of a pickle": ("microsoft", lambda bad, sound: ["convert", "import", bad, bad.parent / "out"]),
    "import of a discriminator": (
        "discriminator",
        lambda bad, sound: ["convert", "import", bad, bad.parent / "out", "--generator", sound / "generator"],
    ),
    "import of a generator": (
        "generator",
        lambda bad, sound: ["convert", "import", sound / "discriminator", bad.parent / "out", "--generator", bad],
    ),
    "import with a new generator": (
        "discriminator",
        lambda bad, sound: ["convert", "import", bad, bad.parent / "out", "--new-generator", "--allow-new"],
    ),
    "export": ("imported", lambda bad, sound: ["convert", "export", bad, bad.parent / "out"]),
    "export for microsoft": (
        "imported",
        lambda bad, sound: ["convert", "export", bad, bad.parent / "out", "--format", "microsoft"],
    ),
    "evaluate": ("imported", lambda bad, sound: ["evaluate", bad, "--data", sound / "shard", "--sequences", "2"]),
    "fill-mask": ("imported", lambda bad, sound: ["fill-mask", bad, "The [MASK] of the Union"]),
    "fill-mask of safetensors": ("hf", lambda bad, sound: ["fill-mask", bad, "The [MASK] of the Union"]),
}


def _expected(command: str, damage: str) -> str:
    """What the line must say; where a command meets the damage in another way, that."""
    folder = COMMANDS[command][0]
    if damage == "another vocabulary" and command in ("import of a discriminator", "import of a generator"):
        return "differ: generator and discriminator need one vocabulary"
    if damage == "a pickle with code in it" and folder == "imported":
        return r"model\.safetensors: is missing; the folder holds no weights by our names"
    return DAMAGES[damage][1]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_bad_weights_in_one_line_and_writes_nothing(
    command: str,
    damage: str,
    sound: Path,
    larger_spm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, words = COMMANDS[command]
    bad = Path(shutil.copytree(sound / folder, tmp_path / folder))
    DAMAGES[damage][0](bad, larger_spm)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["megadeberta", *map(str, words(bad, sound))])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == EXIT_USAGE
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert re.search(_expected(command, damage), lines[0]), lines[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_training_does_not_start_from_bad_weights(damage: str, sound: Path, larger_spm: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(sound / "imported", tmp_path / "imported"))
    DAMAGES[damage][0](bad, larger_spm)
    expected = DAMAGES[damage][1]
    if damage == "a pickle with code in it":
        expected = r"training\.init_from=.*model\.safetensors cannot be read .*make the folder with"
    if damage == "another vocabulary":
        expected = r"these weights are for the vocabulary of spm\.model there, which is not data\.tokenizer="
    model = WholeModel(token_model_layers(CONFIG))
    before = weights_of(model)
    with pytest.raises(CheckpointError, match=expected):
        check_start(bad)
        initial_values(parameter_shapes(CONFIG, ObjectiveConfig()), bad, tokenizer=sound / "imported" / "spm.model")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(model).items())
    assert not (tmp_path / "trace").exists()


def test_a_run_that_cannot_start_from_its_weights_leaves_no_trace_of_a_run(
    tmp_path: Path, prepared: Path, larger_spm: Path
) -> None:
    recipe = write_recipe(tmp_path, prepared)
    config = load_run_config(recipe).model
    write_weights_folder(tmp_path / "weights", small_model(config), config, larger_spm)
    done = subprocess.run(
        [sys.executable, "-m", "megadeberta", "train", recipe, "--set", f"training.init_from={tmp_path / 'weights'}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == EXIT_USAGE
    last = done.stderr.splitlines()[-1]  # lines in front tell of a slow start
    assert re.fullmatch(r"error: training\.init_from=.*which is not data\.tokenizer=.*", last), done.stderr
    assert {path.name for path in (tmp_path / "run").rglob("*")} <= {".lock"}


def test_evaluation_on_a_shard_of_another_vocabulary_is_refused(
    sound: Path, larger_spm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(vocab_size=NUM_PIECES + 30)
    folder = write_weights_folder(tmp_path / "imported", small_model(config), config, larger_spm)
    monkeypatch.setattr(sys, "argv", ["megadeberta", "evaluate", str(folder), "--data", str(sound / "shard")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == EXIT_USAGE
    shown = " ".join(capsys.readouterr().err.split())
    assert "error: the shards were made with another tokenizer" in shown
    assert f"prepare the text with this one (`megadeberta prep TEXT --tokenizer {folder / 'spm.model'}`)" in shown


def test_a_damaged_objective_of_an_import_is_named(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(sound / "imported", tmp_path / "imported"))
    (folder / "objective.json").write_text(json.dumps({"name": "electra"}))
    monkeypatch.setattr(sys, "argv", ["megadeberta", "fill-mask", str(folder), "The [MASK]"])
    with pytest.raises(SystemExit):
        main()
    assert re.search(r"objective\.json: not an objective .*import the model again", capsys.readouterr().err)


def test_two_generators_are_one_too_many(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--generator", str(sound / "generator"), "--new-generator"]
    words = ["convert", "import", str(sound / "discriminator"), str(tmp_path / "out"), *both]
    monkeypatch.setattr(sys, "argv", ["megadeberta", *words])
    with pytest.raises(SystemExit):
        main()
    assert "error: --generator, --new-generator and --no-generator exclude each other" in capsys.readouterr().err
