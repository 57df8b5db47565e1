"""A run that begins with a checkpoint of another one: what may be another one, and what is recorded."""

from pathlib import Path

import pytest

from megadeberta.checkpoint.collectives import SingleProcess
from megadeberta.checkpoint.manifest import manifest_digest, read_manifest
from megadeberta.checkpoint.resume import begin_from
from megadeberta.errors import CheckpointError
from tests.unit.checkpoint.rank_threads import run_record, save


def test_the_checkpoint_its_digest_and_what_changed_are_recorded(tmp_path: Path) -> None:
    save(tmp_path, 5)
    current = run_record(1, **{"data.train": "abc", "objective.mask_rate": "0.3"})
    point, origin = begin_from(tmp_path / "step-5", collectives=SingleProcess(), run=current)
    assert (point.folder, point.step) == (tmp_path / "step-5", 5)
    assert (origin.checkpoint, origin.step) == (str(tmp_path / "step-5"), 5)
    assert origin.changed == {"data.train": "absent", "objective.mask_rate": "absent"}
    assert origin.manifest_sha256 == manifest_digest(read_manifest(tmp_path / "step-5")).sha256


@pytest.mark.parametrize("key", ["deepspeed.train_batch_size", "training.seed", "data.sequence_length", "model.x"])
def test_what_would_move_the_samples_or_the_weights_is_refused_with_the_way_to_do_it(tmp_path: Path, key: str) -> None:
    save(tmp_path, 5)
    current = run_record(1, **{"data.train": "abc", key: "8"})
    with pytest.raises(CheckpointError) as raised:
        begin_from(tmp_path / "step-5", collectives=SingleProcess(), run=current)
    message = str(raised.value)
    assert message.startswith(f"training.continue_from={tmp_path / 'step-5'}: {key} is '8' here and 'absent' there. ")
    assert "`megadeberta extend`" in message


def test_a_damaged_checkpoint_is_not_begun_with(tmp_path: Path) -> None:
    save(tmp_path, 5)
    file = tmp_path / "step-5" / "spm.model"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"spm\.model: sha256"):
        begin_from(tmp_path / "step-5", collectives=SingleProcess(), run=run_record(1))
