"""What an export of a run holds by its objective, and what its card says of that."""

from pathlib import Path

import pytest

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.fill_mask import predict_masks
from megadeberta.convert.formats.family import ModelKind
from megadeberta.errors import CheckpointError
from tests.unit.convert.small_models import small_config, small_model, write_checkpoint


def test_a_model_of_next_tokens_fills_no_masks_and_its_encoder_says_so(tmp_path: Path, spm: Path) -> None:
    config, objective = small_config(), ObjectiveConfig(name="ar")
    model = small_model(config, objective=objective)
    write_checkpoint(tmp_path / "run", model, config, spm, step=1, objective=objective.model_dump(mode="json"))
    for kind in (ModelKind.MLM, ModelKind.DISCRIMINATOR):
        with pytest.raises(CheckpointError, match=r"objective ar.*"):
            export_checkpoint(tmp_path / "run", tmp_path / "out", kind=kind)
    with pytest.raises(CheckpointError, match=r"never saw a \[MASK\], so it fills none.*--model backbone"):
        predict_masks(tmp_path / "run", "The [MASK] of the")
    export_checkpoint(tmp_path / "run", tmp_path / "out", kind=ModelKind.BACKBONE)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "next tokens, left to right" in card and "no token saw those after it" in card
    assert "fill-mask" not in card and "% of the tokens masked" not in card
