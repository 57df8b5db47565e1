"""`megadeberta init`: the recipe it writes for a corpus and a machine."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.errors import ConfigError, DataError, MegadebertaError
from megadeberta.plan.new_recipe import MOST_EPOCHS, Wishes, new_recipe
from megadeberta.preflight.corpus import Corpus
from megadeberta.preflight.run import check_recipe


def _corpus(*, tokens: int = 10**10, documents: int = 10**7, vocabulary: int = 50_048) -> Corpus:
    return Corpus(Path("corpora/mine"), tokens, documents, True, vocabulary)


def _init(*arguments: str, ok: bool = True) -> str:
    done = CliRunner().invoke(app, ["init", *arguments])
    if ok:
        assert done.exit_code == 0, (done.output, done.exception)
    elif isinstance(done.exception, MegadebertaError):
        raise done.exception
    return done.output


def test_a_prepared_folder_gets_a_recipe_that_passes_the_dry_run(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    shown = _init("--data", str(prepared))
    assert "start it: megadeberta launch recipe.json" in shown
    values = json.loads((tmp_path / "recipe.json").read_text())
    assert (values["extends"], values["model"]["vocab_size"], values["name"]) == ("small-rtd", 1024, "sotu")
    done = CliRunner().invoke(app, ["train", "recipe.json", "--dry-run"])
    assert done.exit_code == 0, done.output
    of_run = re.search(r"([\d.]+) epochs in the run", done.output)
    for text in (shown, values["description"]):
        assert float(re.search(r"([\d.]+) epochs", text)[1]) == pytest.approx(float(of_run[1]), rel=5e-3)


def test_two_recipes_of_one_corpus_have_two_output_folders(tmp_path: Path) -> None:
    wishes = Wishes("small-rtd", 0, None)
    runs = [new_recipe(_corpus(), tmp_path / name, wishes)[0] for name in ("recipe.json", "trial.json", "base.yaml")]
    assert [values["training"]["output_dir"] for values in runs] == ["runs/mine", "runs/trial", "runs/base"]
    assert [values["name"] for values in runs] == ["mine", "trial", "base"]


def test_gpus_get_the_layout_that_the_planner_recommends(tmp_path: Path, prepared: Path) -> None:
    recipe = tmp_path / "recipe.json"
    _init("--data", str(prepared), "--gpus", "8", "--memory", "24", "--tokens", "2B", "--output", str(recipe))
    config, algebra, topology = check_recipe(recipe, [], world_size=8)
    assert topology.world_size == 8
    assert config.training.steps * algebra.global_batch * config.data.sequence_length >= 2_000_000_000
    assert config.engine.precision == "bf16"


def test_budget_is_that_of_the_base_but_not_more_than_so_many_epochs(tmp_path: Path) -> None:
    wishes = Wishes("deberta-v3-base", 8, 80.0)
    _, config = new_recipe(_corpus(tokens=10**8), tmp_path / "r.json", wishes)
    trained = config.training.steps * config.engine.global_batch * config.data.sequence_length
    assert trained == pytest.approx(MOST_EPOCHS * 10**8, rel=1e-3)
    _, config = new_recipe(_corpus(tokens=10**12), tmp_path / "r.json", wishes)
    assert (config.training.steps, config.engine.global_batch, config.optimizer.lr) == (500_000, 8192, 5e-4)


def test_smaller_batches_have_smaller_learning_rates_and_shorter_warm_up(tmp_path: Path) -> None:
    _, config = new_recipe(_corpus(tokens=10**9), tmp_path / "r.json", Wishes("deberta-v3-base", 8, 80.0, 10**9))
    batch = config.engine.global_batch
    assert batch < 8192
    assert config.optimizer.lr == pytest.approx(5e-4 * (batch / 8192) ** 0.5, rel=0.05)
    assert config.schedule.warmup_steps <= 0.06 * config.training.steps


def test_short_documents_get_short_sequences_and_a_wish_comes_first(tmp_path: Path) -> None:
    tweets = _corpus(tokens=10**9, documents=10**7)
    wishes = Wishes("deberta-v3-base", 0, None)
    assert new_recipe(tweets, tmp_path / "r.json", wishes)[1].data.sequence_length == 128
    assert new_recipe(_corpus(documents=10**5), tmp_path / "r.json", wishes)[1].data.sequence_length == 512
    _, long = new_recipe(tweets, tmp_path / "r.json", Wishes("deberta-v3-base", 0, None, length=2048))
    assert (long.data.sequence_length, long.model.max_position_embeddings) == (2048, 2048)
    assert long.model.relative_span == 512


def test_base_that_is_a_file_is_found_from_the_new_recipe(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "bases").mkdir()
    base = tmp_path / "bases" / "mine.json"
    base.write_text('{"extends": "quickstart", "name": "mine"}')
    _init("--data", str(prepared), "--base", str(base), "--output", str(tmp_path / "recipe.json"), "--gpus", "0")
    assert json.loads((tmp_path / "recipe.json").read_text())["extends"] == "bases/mine.json"
    check_recipe(tmp_path / "recipe.json", [], world_size=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--data", "none"], DataError, "none does not exist; give the --output folder"),
        (["--data", "raw"], DataError, "raw holds no train.bin.*run `megadeberta prep raw"),
        (["--data", "raw/text.txt"], DataError, "text.txt is a file"),
        (["--data", "PREPARED", "--output", "taken.json"], ConfigError, "taken.json exists"),
        (["--data", "PREPARED", "--output", "no/such/r.json"], ConfigError, "folder no/such of --output"),
        (["--data", "PREPARED", "--tokens", "many"], ConfigError, "--tokens=many is no number"),
        (["--data", "PREPARED", "--base", "deberta-v3-bse"], ConfigError, "did you mean"),
        (["--data", "PREPARED", "--base", "deberta-v2-xxlarge", "--gpus", "1", "--memory", "8"], ConfigError, "no lay"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_written(
    arguments: list[str],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "text.txt").write_text("text\n")
    (tmp_path / "taken.json").write_text("{}")
    with pytest.raises(error, match=message):
        _init(*(str(prepared) if word == "PREPARED" else word for word in arguments), ok=False)
    assert not (tmp_path / "recipe.json").exists()
    assert (tmp_path / "taken.json").read_text() == "{}"
