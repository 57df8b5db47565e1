"""What an export of a run holds by its objective, and what its card says of that."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoModelForTokenClassification

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.card_facts import CardFacts
from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.fill_mask import predict_masks
from megadeberta.convert.formats.family import ModelKind
from megadeberta.data.shard_manifest import ShardSource
from megadeberta.data.shard_writer import ShardWriter
from megadeberta.data.tokenizer import SentencePieceTokenizer
from megadeberta.errors import CheckpointError, ConfigError
from tests.unit.convert.small_models import small_config, small_model, write_checkpoint, write_weights_folder

METRICS = (
    {"step": 4, "loss": 30.5, "mlm_loss": 7.5, "rtd_loss": 0.46, "rtd_recall": 0.25, "tokens_per_second": 512.0},
    {"step": 5, "loss": 30.0, "mlm_loss": 7.25, "rtd_loss": 0.455, "rtd_recall": 0.5, "tokens_per_second": 512.0},
    {"step": 5, "valid_loss": 31.0, "valid_mlm_loss": 7.75, "valid_rtd_loss": 0.465, "valid_rtd_recall": 0.375},
    {"step": 6, "loss": 1.0, "mlm_loss": 1.0, "rtd_loss": 0.0},
)


@pytest.fixture
def rtd_run(tmp_path: Path, spm: Path) -> Path:
    objective = ObjectiveConfig(name="rtd", rtd={"generator_layers": 2})
    config = small_config()
    model = small_model(config, objective=objective)
    write_checkpoint(tmp_path / "run", model, config, spm, step=5, objective=objective.model_dump(mode="json"))
    lines = (json.dumps(record) + "\n" for record in METRICS)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines))
    return tmp_path / "run"


def layers_of(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["num_hidden_layers"]


def test_of_two_parts_the_discriminator_goes_out_unless_the_generator_is_asked_for(
    rtd_run: Path, tmp_path: Path
) -> None:
    said = export_checkpoint(rtd_run, tmp_path / "default")[0]
    assert said.what == "exported"
    assert said.detail.startswith("discriminator, 3 layers, width 24") and "--model generator" in said.detail
    said = export_checkpoint(rtd_run, tmp_path / "generator", kind=ModelKind.GENERATOR)[0]
    assert said.detail.startswith("generator, 2 layers") and "--model discriminator" in said.detail
    assert layers_of(tmp_path / "default") == 3 and layers_of(tmp_path / "generator") == 2
    assert "# tiny (discriminator)" in (tmp_path / "default" / "README.md").read_text()
    assert "# tiny (generator)" in (tmp_path / "generator" / "README.md").read_text()
    export_checkpoint(rtd_run, tmp_path / "old", kind=ModelKind.MLM)
    old, new = (tmp_path / name / "model.safetensors" for name in ("old", "generator"))
    assert old.read_bytes() == new.read_bytes()


def test_a_model_of_one_part_has_no_generator(tmp_path: Path, spm: Path) -> None:
    config = small_config()
    source = write_weights_folder(tmp_path / "source", small_model(config), config, spm)
    with pytest.raises(CheckpointError, match=r"has no generator \(objective mlm\); export without --model"):
        export_checkpoint(source, tmp_path / "out", kind=ModelKind.GENERATOR)
    said = export_checkpoint(source, tmp_path / "out")[0].detail
    assert said.startswith("model, 3 layers") and "--model" not in said


def test_the_card_has_each_loss_and_what_is_known_of_data_and_hardware(rtd_run: Path, tmp_path: Path) -> None:
    export_checkpoint(rtd_run, tmp_path / "out", facts=CardFacts("apache-2.0", ("en", "de")))
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0" and head["language"] == ["en", "de"]
    for row in (
        "| training MLM loss (generator) | 7.2500 |",
        "| training RTD loss (discriminator) | 0.4550 |",
        "| validation MLM loss (generator) | 7.7500 |",
        "| validation rtd recall (discriminator) | 0.3750 |",
        "| licence | apache-2.0 |",
        "| language | en, de |",
        "| hardware | 1 x not recorded, fp32, ZeRO stage 1 |",
        "| time | 0.0 minutes |",
        "| training data | `shards/train` |",
    ):
        assert row in card, row
    assert "30.0" not in card, "a sum of losses of different units says nothing"


@pytest.mark.parametrize("changes", [{}, {"embedding_size": 12, "enhanced_mask_decoder": False}])
def test_what_other_heads_report_as_unexpected_is_in_the_card(changes: dict, tmp_path: Path, spm: Path) -> None:
    config = small_config(**changes)
    source = write_weights_folder(tmp_path / "source", small_model(config), config, spm)
    export_checkpoint(source, tmp_path / "out")
    _, report = AutoModelForTokenClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    kinds = {name.partition(".")[0] for name in report["unexpected_keys"]}
    card = (tmp_path / "out" / "README.md").read_text()
    assert kinds and all(f"`{kind}.predictions.*`" in card or f"`{kind}.*`" in card for kind in kinds)
    assert "as unexpected" in card and "`--model backbone`" in card
    export_checkpoint(source, tmp_path / "backbone", kind=ModelKind.BACKBONE)
    _, report = AutoModelForTokenClassification.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    assert not report["unexpected_keys"]


def test_the_card_counts_the_data_while_it_is_there(tmp_path: Path, spm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = SentencePieceTokenizer.load(spm)
    (tmp_path / "shards").mkdir()
    with ShardWriter(Path("shards/train"), dtype=np.dtype(np.uint16)) as writer:
        writer.add_document(tokenizer.encode("One document.\n"))
        sources = [ShardSource(name="corpus.txt", bytes=14)]
        manifest = writer.commit(
            tokenizer_sha256=tokenizer.sha256, tokenizer_pieces=tokenizer.num_pieces, sources=sources
        )
    config = small_config()
    write_checkpoint(tmp_path / "run", small_model(config), config, spm, step=5)
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"`shards/train` ({manifest.num_tokens} tokens of 1 documents from `corpus.txt`)" in card
    assert "| licence | not stated |" in card and "license:" not in card


@pytest.mark.parametrize("facts", [{"licence": "mit\nx: y"}, {"languages": ("en", "")}, {"languages": ("e n",)}])
def test_a_licence_or_language_is_a_code(facts: dict) -> None:
    with pytest.raises(ConfigError, match=r"--(license|language) .* is no code; write one such as mit"):
        CardFacts(**facts)


def test_a_model_of_next_tokens_fills_no_masks_and_its_encoder_says_so(tmp_path: Path, spm: Path) -> None:
    config, objective = small_config(), ObjectiveConfig(name="ar")
    model = small_model(config, objective=objective)
    write_checkpoint(tmp_path / "run", model, config, spm, step=1, objective=objective.model_dump(mode="json"))
    for kind in (None, ModelKind.MLM, ModelKind.DISCRIMINATOR, ModelKind.GENERATOR):
        with pytest.raises(CheckpointError, match=r"objective ar\b.*export the encoder.* --model backbone"):
            export_checkpoint(tmp_path / "run", tmp_path / "out", kind=kind)
    with pytest.raises(CheckpointError, match=r"never saw a \[MASK\], so it fills none.*--model backbone"):
        predict_masks(tmp_path / "run", "The [MASK] of the")
    export_checkpoint(tmp_path / "run", tmp_path / "out", kind=ModelKind.BACKBONE)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "next tokens, left to right" in card and "no token saw those after it" in card
    assert "fill-mask" not in card and "% of the tokens masked" not in card
