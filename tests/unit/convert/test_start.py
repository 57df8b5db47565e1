"""``training.init_from`` takes what ``convert import`` wrote, and imports everything else once."""

from pathlib import Path

import pytest

from megadeberta.checkpoint.collectives import SingleProcess
from megadeberta.config.run import RunConfig
from megadeberta.convert.start import start_folder
from megadeberta.errors import CheckpointError
from megadeberta.weights.source import load_weights
from tests.models import run_config
from tests.unit.convert.published import write_published_folder
from tests.unit.convert.small_models import small_config, small_model, write_checkpoint, write_weights_folder


class OtherRank(SingleProcess):
    """What rank 0 said, heard by another."""

    rank = 1

    def __init__(self, said: str) -> None:
        self._said = said

    def broadcast_text(self, text: str | None) -> str:
        assert text is None
        return self._said


def run_from(init_from: Path, output: Path, *, objective: str = "rtd") -> RunConfig:
    training = {"init_from": str(init_from), "output_dir": str(output)}
    section = {"name": objective} | ({"rtd": {"generator_layers": 2}} if objective == "rtd" else {})
    return run_config(model=small_config().model_dump(), objective=section, training=training)


@pytest.fixture
def published(tmp_path: Path, spm: Path) -> Path:
    config = run_from(tmp_path, tmp_path)
    model = small_model(config.model, objective=config.objective)
    objective = config.objective.model_dump(mode="json")
    write_checkpoint(tmp_path / "first", model, config.model, spm, step=1, objective=objective)
    return write_published_folder(tmp_path / "first", tmp_path / "published", tmp_path / "scratch")


def test_both_parts_of_a_published_folder_are_imported(published: Path, tmp_path: Path) -> None:
    folder = start_folder(run_from(published, tmp_path / "run"), SingleProcess())
    assert folder == tmp_path / "run" / "start"
    assert load_weights(folder).objective.name == "rtd"


def test_a_model_of_one_part_is_imported_from_a_file(published: Path, tmp_path: Path) -> None:
    config = run_from(published / "pytorch_model.generator.bin", tmp_path / "run", objective="mlm")
    assert load_weights(start_folder(config, SingleProcess())).config.num_hidden_layers == 2


def test_weights_of_ours_are_taken_where_they_are(tmp_path: Path, spm: Path) -> None:
    source = write_weights_folder(tmp_path / "weights", small_model(small_config()), small_config(), spm)
    assert start_folder(run_from(source, tmp_path / "run", objective="mlm"), SingleProcess()) == source
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_does_not_need_its_source_again(published: Path, tmp_path: Path, spm: Path) -> None:
    config = run_from(published, tmp_path / "run")
    folder = start_folder(config, SingleProcess())
    write_checkpoint(tmp_path / "run", small_model(small_config()), small_config(), spm, step=1)
    published.rename(tmp_path / "elsewhere")
    assert start_folder(config, SingleProcess()) == folder


def test_other_ranks_hear_of_the_folder_and_of_errors() -> None:
    config = run_from(Path("anything"), Path("run"))
    assert start_folder(config, OtherRank("run/start")) == Path("run/start")
    with pytest.raises(CheckpointError, match=r"^no such folder$"):
        start_folder(config, OtherRank("failed: no such folder"))


def test_what_cannot_be_started_from_says_what_to_do(published: Path, tmp_path: Path) -> None:
    (published / "pytorch_model.generator.bin").unlink()
    with pytest.raises(CheckpointError, match=r"init_from=.* no generator.*OUT --new-generator` starts one: give OUT"):
        start_folder(run_from(published, tmp_path / "run"), SingleProcess())
    with pytest.raises(CheckpointError, match=r"init_from=.*/nowhere: .*no such folder or file"):
        start_folder(run_from(tmp_path / "nowhere", tmp_path / "run"), SingleProcess())
    assert not (tmp_path / "run").exists()
