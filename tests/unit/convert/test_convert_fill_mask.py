"""fill-mask predicts through our model, from every kind of folder, and explains what it cannot do."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, pipeline

from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.fill_mask import predict_masks
from megadeberta.convert.formats.family import ModelKind
from megadeberta.data.tokenizer import SentencePieceTokenizer
from megadeberta.errors import CheckpointError, ConfigError, DataError
from tests.data_fixtures import NUM_PIECES
from tests.unit.convert.small_models import (
    NO_MASK_DECODER,
    small_config,
    small_model,
    write_checkpoint,
    write_weights_folder,
)

TEXT = "The [MASK] of the United [MASK]."


def test_every_kind_of_folder_gives_the_same_predictions(tmp_path: Path, spm: Path) -> None:
    config = small_config()
    model = small_model(config)
    source = write_weights_folder(tmp_path / "imported", model, config, spm)
    write_checkpoint(tmp_path / "run", model, config, spm, step=3)
    export_checkpoint(source, tmp_path / "out")
    expected = predict_masks(source, TEXT, top_k=4)
    assert len(expected) == 2 and all(len(guesses) == 4 for guesses in expected)
    assert predict_masks(tmp_path / "run", TEXT, top_k=4) == expected
    assert predict_masks(tmp_path / "out", TEXT, top_k=4) == expected


def test_guesses_are_the_likeliest_pieces_of_the_mask_decoder(tmp_path: Path, spm: Path) -> None:
    config = small_config()
    model = small_model(config)
    with torch.no_grad():
        model.get_parameter("mlm_head.decoder.bias")[[0, 1, 2, 3, NUM_PIECES, NUM_PIECES + 3]] = 50.0
    source = write_weights_folder(tmp_path / "imported", model, config, spm)
    tokenizer = SentencePieceTokenizer.load(spm).fast()
    ids = torch.tensor([tokenizer.encode(TEXT).ids])
    place = ids[0].tolist().index(NUM_PIECES)
    probabilities = model.mlm_logits(ids, torch.ones_like(ids))[0, place, 4:NUM_PIECES].softmax(-1)
    best = probabilities.topk(3)
    guesses = predict_masks(source, TEXT, top_k=3)[0]
    assert [guess.piece for guess in guesses] == [tokenizer.id_to_token(i + 4) for i in best.indices.tolist()]
    assert [guess.probability for guess in guesses] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_without_mask_decoder_the_pipeline_of_transformers_agrees(tmp_path: Path, spm: Path) -> None:
    config = small_config(**NO_MASK_DECODER)
    source = write_weights_folder(tmp_path / "imported", small_model(config), config, spm)
    export_checkpoint(source, tmp_path / "out")
    tokenizer = SentencePieceTokenizer.load(spm).fast()
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    theirs = pipeline("fill-mask", model=model, tokenizer=str(tmp_path / "out"), device="cpu")(TEXT, top_k=3)
    for guesses, found in zip(predict_masks(source, TEXT, top_k=3), theirs, strict=True):
        pieces = [each["token"] for each in found if 4 <= each["token"] < NUM_PIECES]  # special tokens are not offered
        assert len(pieces) >= 2
        assert [tokenizer.token_to_id(guess.piece) for guess in guesses][: len(pieces)] == pieces


def test_what_cannot_be_predicted_is_explained(tmp_path: Path, spm: Path) -> None:
    config = small_config()
    source = write_weights_folder(tmp_path / "imported", small_model(config), config, spm)
    with pytest.raises(DataError, match=r"holds no \[MASK\]: 'The people'"):
        predict_masks(source, "The people")
    with pytest.raises(DataError, match=r"has \d+ tokens with \[CLS\] and \[SEP\], the model takes 32"):
        predict_masks(source, "the [MASK] " * 20)
    for top_k in (0, NUM_PIECES):
        with pytest.raises(ConfigError, match=rf"--top-k {top_k} is not between 1 and {NUM_PIECES - 4}"):
            predict_masks(source, TEXT, top_k=top_k)
    export_checkpoint(source, tmp_path / "backbone", kind=ModelKind.BACKBONE)
    with pytest.raises(CheckpointError, match=r"has no .*export with --model mlm"):
        predict_masks(tmp_path / "backbone", TEXT)
    (source / "spm.model").unlink()
    with pytest.raises(CheckpointError, match=r"spm\.model: is missing"):
        predict_masks(source, TEXT)
