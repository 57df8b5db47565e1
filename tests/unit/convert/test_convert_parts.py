"""Generator and discriminator go out to both file formats and come back as weights that replaced token detection goes
on from."""

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoModel

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.family import FileFormat, ModelKind
from megadeberta.convert.formats.read_folder import ReportLine, read_discriminator
from megadeberta.convert.import_folder import import_folder
from megadeberta.convert.import_parts import import_parts
from megadeberta.errors import CheckpointError
from megadeberta.layers.objectives import list_layers
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.model.initialize import give_storage, initialize
from megadeberta.model.whole import WholeModel
from megadeberta.weights.initial import initial_values
from megadeberta.weights.source import load_weights
from tests.data_fixtures import train_vocabulary
from tests.models import rtd_logits
from tests.unit.convert.small_models import (
    NO_MASK_DECODER,
    V1,
    padded_batch,
    small_config,
    small_model,
    weights_of,
    write_checkpoint,
)

TABLE = "embeddings.word_embeddings"
DELTA = f"discriminator.{TABLE}.delta"
HF_TABLE = f"deberta.{TABLE}"
SHARINGS = ("gdes", "es", "nes")


def objective_of(sharing: str = "gdes") -> ObjectiveConfig:
    return ObjectiveConfig(name="rtd", rtd={"generator_layers": 2, "embedding_sharing": sharing})


def make_run(folder: Path, spm: Path, *, sharing: str = "gdes", **changes: object) -> tuple[WholeModel, ModelConfig]:
    """A checkpoint of a model of two parts whose every tensor is random, E_delta too."""
    config, objective = small_config(**changes), objective_of(sharing)
    model = small_model(config, objective=objective)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".delta"):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(5))
    write_checkpoint(folder, model, config, spm, step=3, objective=objective.model_dump(mode="json"))
    return model, config


def export_both(run: Path, to: Path, file_format: FileFormat = FileFormat.MICROSOFT) -> tuple[Path, Path]:
    """Discriminator's and generator's folder."""
    for kind, name in ((ModelKind.DISCRIMINATOR, "discriminator"), (ModelKind.MLM, "generator")):
        export_checkpoint(run, to / name, kind=kind, file_format=file_format)
    return to / "discriminator", to / "generator"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "pytorch_model.bin"
    torch.save(change(torch.load(path, weights_only=True)), path)


def exported_weights(model: WholeModel) -> dict[str, Tensor]:
    """What an export holds: row 0 of a bucketed table is a copy of row 1."""
    expected = weights_of(model)
    for name, tensor in expected.items():
        if name.endswith("relative.embedding.weight"):
            tensor[0] = tensor[1]
    return expected


@pytest.mark.parametrize("file_format", FileFormat)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_both_parts_come_back_as_the_weights_of_the_run(
    sharing: str, file_format: FileFormat, tmp_path: Path, spm: Path
) -> None:
    model, config = make_run(tmp_path / "run", spm, sharing=sharing)
    discriminator, generator = export_both(tmp_path / "run", tmp_path, file_format)
    lines = import_parts(discriminator, tmp_path / "back", generator=generator, sharing=sharing)
    back, expected = load_weights(tmp_path / "back"), exported_weights(model)
    assert (back.config, back.objective) == (config, objective_of(sharing))
    assert back.weights.keys() == expected.keys() == {line.ours for line in lines if line.action == "taken"}
    assert not [line for line in lines if line.action == "created"]
    changed = [name for name in expected if not torch.equal(expected[name], back.weights[name])]
    if sharing == "gdes" and file_format == FileFormat.HUGGING_FACE:
        # The file has fl(E_G + E_delta); less E_G that is E_delta up to the rounding of two sums of this size.
        assert changed == [DELTA]
        table = expected[f"generator.{TABLE}.weight"]
        rounding = 2**-23 * (table.abs() + expected[DELTA].abs())
        assert ((back.weights[DELTA] - expected[DELTA]).abs() <= rounding).all()
    else:
        assert changed == []


def test_training_of_both_parts_starts_from_the_import(tmp_path: Path, spm: Path) -> None:
    model, config = make_run(tmp_path / "run", spm)
    discriminator, generator = export_both(tmp_path / "run", tmp_path)
    import_parts(discriminator, tmp_path / "start", generator=generator)
    started = WholeModel(list_layers(config, objective_of())).eval()
    give_storage(started, initial_values({name: p.shape for name, p in started.named_parameters()}, tmp_path / "start"))
    ids, mask = padded_batch(config)
    with torch.no_grad():
        torch.testing.assert_close(rtd_logits(started, ids, mask), rtd_logits(model, ids, mask), rtol=0, atol=1e-6)
        torch.testing.assert_close(started.mlm_logits(ids, mask), model.mlm_logits(ids, mask), rtol=0, atol=1e-6)
    with pytest.raises(CheckpointError, match=r"do not fit the recipe's model, first discriminator\."):
        initial_values(parameter_shapes(config, ObjectiveConfig()), tmp_path / "start")


@pytest.mark.parametrize("file_format", FileFormat)
@pytest.mark.parametrize("changes", [{}, V1, {"conv_kernel_size": 3}, {"embedding_size": 12, **NO_MASK_DECODER}])
def test_a_masked_language_model_comes_back_from_both_formats(
    changes: dict, file_format: FileFormat, tmp_path: Path, spm: Path
) -> None:
    config = small_config(**changes)
    model = small_model(config)
    write_checkpoint(tmp_path / "run", model, config, spm, step=3)
    export_checkpoint(tmp_path / "run", tmp_path / "out", file_format=file_format)
    import_folder(tmp_path / "out", tmp_path / "back")
    back, expected = load_weights(tmp_path / "back"), weights_of(model)
    if config.position_buckets > 0:
        expected["relative.embedding.weight"][0] = expected["relative.embedding.weight"][1]
    assert back.config == config and back.weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], back.weights[name])] == []


def test_exported_discriminator_has_the_summed_table_and_for_microsoft_the_difference(
    tmp_path: Path, spm: Path
) -> None:
    model, config = make_run(tmp_path / "run", spm)
    weights = weights_of(model)
    total = weights[f"generator.{TABLE}.weight"] + weights[DELTA]
    for file_format in FileFormat:
        export_both(tmp_path / "run", tmp_path / file_format, file_format)
    ours = safetensors.torch.load_file(tmp_path / "hf" / "discriminator" / "model.safetensors")
    theirs = torch.load(tmp_path / "microsoft" / "discriminator" / "pytorch_model.bin", weights_only=True)
    assert torch.equal(ours[f"{HF_TABLE}.weight"], total) and torch.equal(theirs[f"{HF_TABLE}.weight"], total)
    assert theirs.keys() - ours.keys() == {f"{HF_TABLE}._weight"} and not ours.keys() - theirs.keys()
    assert torch.equal(theirs[f"{HF_TABLE}._weight"], weights[DELTA])
    assert ours["mask_predictions.classifier.weight"].shape == (1, 24)
    assert torch.equal(
        ours["deberta.encoder.rel_embeddings.weight"][0], ours["deberta.encoder.rel_embeddings.weight"][1]
    )
    ids, mask = padded_batch(config)
    loaded = AutoModel.from_pretrained(tmp_path / "hf" / "discriminator").eval()
    with torch.no_grad():
        states = loaded(input_ids=ids, attention_mask=mask)[0]
    torch.testing.assert_close(model.encode(ids, mask)[mask.bool()], states[mask.bool()], rtol=0, atol=1e-5)  # fp32


def test_microsoft_folder_holds_what_its_programs_read(tmp_path: Path, spm: Path) -> None:
    make_run(tmp_path / "run", spm)
    for folder in export_both(tmp_path / "run", tmp_path):
        names = {path.name for path in folder.iterdir()}
        assert names == {"README.md", "config.json", "model_config.json", "pytorch_model.bin", "spm.model"}
        values = json.loads((folder / "model_config.json").read_text())
        assert values["padding_idx"] == 0 and values["pos_att_type"] == "p2c|c2p" and values["position_buckets"] == 6
        assert (folder / "config.json").read_text() == (folder / "model_config.json").read_text()
        assert "$" not in (folder / "README.md").read_text()


def as_microsoft_leaves_it(folder: Path, *, config_of: str) -> Path:
    """The folder as ``rtd_task.py`` and ``trainer.py`` write it: no ``model_type``, parameters in an ordered dict."""
    values = json.loads((folder / "model_config.json").read_text())
    for name in ("model_type", "architectures", "enhanced_mask_decoder", "key_bias", "legacy"):
        del values[name]
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / config_of).write_text(json.dumps(values))
    parameters = OrderedDict((name, torch.nn.Parameter(tensor)) for name, tensor in tensors.items())
    torch.save(parameters, folder / "pytorch.model-000123.bin")
    return folder


def test_folders_of_microsofts_own_training_are_read(tmp_path: Path, spm: Path) -> None:
    model, config = make_run(tmp_path / "run", spm)
    folders = [
        as_microsoft_leaves_it(f, config_of="model_config.json") for f in export_both(tmp_path / "run", tmp_path)
    ]
    import_parts(folders[0], tmp_path / "back", generator=folders[1])
    back, expected = load_weights(tmp_path / "back"), exported_weights(model)
    assert back.config == config and back.tokenizer is None
    assert [name for name in expected if not torch.equal(expected[name], back.weights[name])] == []
    shutil.copyfile(folders[0] / "pytorch.model-000123.bin", folders[0] / "pytorch.model-000456.bin")
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints, pytorch\.model-000123\.bin to .*456\.bin; leave"):
        read_discriminator(folders[0])


def test_a_sum_that_is_one_step_old_is_computed_afresh(tmp_path: Path, spm: Path) -> None:
    model, _ = make_run(tmp_path / "run", spm)
    discriminator, generator = export_both(tmp_path / "run", tmp_path)
    rewrite(discriminator, lambda t: t | {f"{HF_TABLE}.weight": t[f"{HF_TABLE}.weight"] + 1e-3})
    lines = import_parts(discriminator, tmp_path / "back", generator=generator)
    assert torch.equal(load_weights(tmp_path / "back").weights[DELTA], weights_of(model)[DELTA])
    stale = [line for line in lines if "computed afresh" in line.reason]
    assert [(line.action, line.theirs) for line in stale] == [("dropped", f"discriminator: {TABLE}.weight")]
    rewrite(discriminator, lambda t: {name: tensor for name, tensor in t.items() if name != f"{HF_TABLE}.weight"})
    import_parts(discriminator, tmp_path / "without", generator=generator)
    assert torch.equal(load_weights(tmp_path / "without").weights[DELTA], weights_of(model)[DELTA])
    rewrite(generator, lambda t: t | {f"{HF_TABLE}.weight": t[f"{HF_TABLE}.weight"].flip(0)})
    rewrite(discriminator, lambda t: t | {f"{HF_TABLE}.weight": torch.ones(1008, 24)})
    with pytest.raises(CheckpointError, match=r"is not the generator's plus its difference \(off by .* of different"):
        import_parts(discriminator, tmp_path / "wrong", generator=generator)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_new_generator_is_drawn_around_the_discriminators_table_and_said(
    sharing: str, tmp_path: Path, spm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, config = make_run(tmp_path / "run", spm, num_hidden_layers=4)
    discriminator, _ = export_both(tmp_path / "run", tmp_path)
    lines = import_parts(discriminator, tmp_path / "start", generator=None, sharing=sharing, seed=9)
    found, expected = load_weights(tmp_path / "start"), exported_weights(model)
    total = expected[f"generator.{TABLE}.weight"] + expected[DELTA]
    assert found.config == config and found.objective.rtd.generator(config).num_hidden_layers == 2
    assert torch.equal(found.weights[f"generator.{TABLE}.weight"], total)
    assert torch.equal(found.encoder_model().weights[f"{TABLE}.weight"], total)
    assert sharing != "gdes" or not found.weights[DELTA].any()
    created = {line.ours for line in lines if line.action == "created"}
    assert created == {n for n in found.weights if n.startswith("generator.") and n != f"generator.{TABLE}.weight"}
    assert f"{len(created)} tensors NOT FROM A FILE" in caplog.text and "see import_report.json" in caplog.text
    fresh = WholeModel(list_layers(config, found.objective))
    initialize(fresh, seed=9, std=config.initializer_range)
    assert all(torch.equal(found.weights[name], fresh.get_parameter(name)) for name in created)
    assert ("dropped", f"discriminator: {TABLE}._weight") in [(line.action, line.theirs) for line in lines]
    same = [name for name in expected if name.startswith("discriminator.") and not name.endswith(".delta")]
    assert all(torch.equal(found.weights[name], expected[name]) for name in same)


def test_a_missing_head_is_drawn_only_when_allowed(tmp_path: Path, spm: Path) -> None:
    make_run(tmp_path / "run", spm)
    discriminator, generator = export_both(tmp_path / "run", tmp_path)
    rewrite(discriminator, lambda t: {n: x for n, x in t.items() if not n.startswith("mask_predictions.")})
    with pytest.raises(CheckpointError, match=r"have no discriminator\.rtd_head\..*add --allow-new"):
        import_parts(discriminator, tmp_path / "start", generator=generator)
    lines = import_parts(discriminator, tmp_path / "start", generator=generator, allow_new=True)
    assert len([line for line in lines if line.action == "created"]) == 6
    rewrite(discriminator, lambda t: t | {"mask_predictions.dense.bias": torch.ones(24)})
    with pytest.raises(CheckpointError, match=r"5 of \d+ tensors do not fit.*first rtd_head\.classifier\.bias"):
        import_parts(discriminator, tmp_path / "half", generator=generator, allow_new=True)


def test_the_published_files_left_overs_are_reported(tmp_path: Path, spm: Path) -> None:
    """deberta-v3-base: a prediction head and absolute positions beside the discriminator; an older misspelt head."""
    model, _ = make_run(tmp_path / "run", spm)
    discriminator, generator = export_both(tmp_path / "run", tmp_path)
    more = {
        "deberta.embeddings.position_embeddings.weight": torch.ones(32, 24),
        "deberta.embeddings.position_embeddings._weight": torch.zeros(32, 24),
        "lm_predictions.lm_head.bias": torch.ones(1008),
    }
    rewrite(discriminator, lambda t: {n.replace("classifier", "classifer"): x for n, x in t.items()} | more)
    lines = import_parts(discriminator, tmp_path / "back", generator=generator)
    back, expected = load_weights(tmp_path / "back").weights, exported_weights(model)
    assert all(torch.equal(back[name], expected[name]) for name in expected)
    reasons = {line.theirs: line.reason for line in lines if line.action == "dropped"}
    assert reasons["discriminator: lm_predictions.lm_head.bias"] == "predicts tokens, which is the generator's task"
    assert "absolute positions" in reasons["discriminator: embeddings.position_embeddings.weight"]
    assert "absolute positions" in reasons["discriminator: embeddings.position_embeddings.delta"]
    written = json.loads((tmp_path / "back" / "import_report.json").read_text())
    assert [ReportLine(**line) for line in written] == lines


def test_parts_of_different_models_are_refused(tmp_path: Path, spm: Path) -> None:
    make_run(tmp_path / "run", spm)
    discriminator, generator = export_both(tmp_path / "run", tmp_path)
    make_run(tmp_path / "other run", spm, position_buckets=4)
    _, other = export_both(tmp_path / "other run", tmp_path / "other")
    with pytest.raises(
        CheckpointError, match=r"not discriminator and generator of one model: position_buckets is 6 and 4"
    ):
        import_parts(discriminator, tmp_path / "out", generator=other)
    with pytest.raises(CheckpointError, match="have two different word tables, --sharing es keeps one"):
        import_parts(discriminator, tmp_path / "out", generator=generator, sharing="es")
    shutil.copyfile(train_vocabulary(tmp_path / "other.model"), generator / "spm.model")
    with pytest.raises(CheckpointError, match="differ: generator and discriminator need one vocabulary"):
        import_parts(discriminator, tmp_path / "out", generator=generator)
    with pytest.raises(
        CheckpointError, match=r"no generator of this shape: .*num_hidden_layers >= 2, found 1; add --no"
    ):
        import_parts(discriminator, tmp_path / "out", generator=None, mask_decoder=True)
    rewrite(discriminator, lambda t: {n: x for n, x in t.items() if n != f"{HF_TABLE}.weight"})
    with pytest.raises(
        CheckpointError, match=r"no whole table; give the generator it was trained with \(--generator\)"
    ):
        import_parts(discriminator, tmp_path / "out", generator=None)
    rewrite(discriminator, lambda t: t | {f"{HF_TABLE}._weight": torch.ones(3, 24)})
    with pytest.raises(CheckpointError, match=r"word_embeddings\.delta has shape \(3, 24\), its table \(1008, 24\)"):
        read_discriminator(discriminator)
    assert not (tmp_path / "out").exists()


def test_a_model_without_discriminator_exports_none(tmp_path: Path, spm: Path) -> None:
    config = small_config()
    write_checkpoint(tmp_path / "run", small_model(config), config, spm, step=1)
    with pytest.raises(CheckpointError, match=r"has no discriminator \(objective mlm\); export without --model"):
        export_checkpoint(tmp_path / "run", tmp_path / "out", kind=ModelKind.DISCRIMINATOR)


def test_input_positions_are_shared_like_words(tmp_path: Path, spm: Path) -> None:
    model, _ = make_run(tmp_path / "run", spm, position_biased_input=True, **NO_MASK_DECODER)
    discriminator, generator = export_both(tmp_path / "run", tmp_path)
    import_parts(discriminator, tmp_path / "back", generator=generator)
    back, expected = load_weights(tmp_path / "back").weights, exported_weights(model)
    assert "discriminator.embeddings.position_embeddings.delta" in expected
    assert back.keys() == expected.keys() and all(torch.equal(back[name], expected[name]) for name in expected)
