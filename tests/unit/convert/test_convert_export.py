"""An export is whole, is loaded by transformers without a remark, and computes what our model computes."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from megadeberta.config.model import ModelConfig
from megadeberta.convert import export as export_module
from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.families import family_of
from megadeberta.convert.formats.family import ModelKind
from megadeberta.convert.formats.names import LEGACY_MLM_HEAD, MLM_HEAD
from megadeberta.convert.reload_check import check_export
from megadeberta.errors import CheckpointError, ConfigError, DataError, StorageError
from megadeberta.model.whole import WholeModel
from megadeberta.ops.attention.distance_rows import table_row
from tests.data_fixtures import NUM_PIECES, train_vocabulary
from tests.unit.convert.small_models import (
    CASES,
    NO_MASK_DECODER,
    V1,
    padded_batch,
    small_config,
    small_model,
    write_checkpoint,
    write_weights_folder,
)

# fp32, values of order one, three layers: rounding of two orders of the same sums.
WITHIN = {"rtol": 0, "atol": 1e-5}
MakeFolder = Callable[..., tuple[Path, WholeModel, ModelConfig]]


@pytest.fixture
def make_source(tmp_path: Path, spm: Path) -> MakeFolder:
    def make(**changes: object) -> tuple[Path, WholeModel, ModelConfig]:
        config = small_config(**changes)
        model = small_model(config)
        return write_weights_folder(tmp_path / "source", model, config, spm), model, config

    return make


def _load(loader: type, folder: Path) -> nn.Module:
    """Load and insist that transformers has nothing to report, but that its encoder draws what no model of ours has."""
    model, report = loader.from_pretrained(folder, output_loading_info=True)
    drawn = family_of(model.config.to_dict(), (), "").newly_drawn
    report["missing_keys"] = [name for name in report["missing_keys"] if not name.startswith(drawn)]
    assert {kind: names for kind, names in report.items() if names} == {}
    return model.eval()


def _run(model: nn.Module, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = padded_batch(config)
    with torch.no_grad():
        return ids, mask, model(input_ids=ids, attention_mask=mask)[0]


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_the_export_whole_and_computes_our_backbone(
    case: str, make_source: MakeFolder, tmp_path: Path
) -> None:
    source, model, config = make_source(**CASES[case])
    for kind in (ModelKind.MLM, ModelKind.BACKBONE):
        export_checkpoint(source, tmp_path / kind, kind=kind)
    ids, mask, expected = _run(_load(AutoModel, tmp_path / "backbone"), config)
    ours = model.encode(ids, mask)
    torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()], **WITHIN)
    inner = _load(AutoModelForMaskedLM, tmp_path / "mlm").base_model
    torch.testing.assert_close(ours[mask.bool()], _run(inner, config)[2][mask.bool()], **WITHIN)


@pytest.mark.parametrize("case", [case for case, changes in CASES.items() if "enhanced_mask_decoder" in changes])
def test_transformers_gives_our_logits_without_a_mask_decoder(
    case: str, make_source: MakeFolder, tmp_path: Path
) -> None:
    source, model, config = make_source(**CASES[case])
    export_checkpoint(source, tmp_path / "out")
    ids, mask, logits = _run(_load(AutoModelForMaskedLM, tmp_path / "out"), config)
    torch.testing.assert_close(model.mlm_logits(ids, mask)[mask.bool()], logits[mask.bool()], **WITHIN)


@pytest.mark.parametrize("changes", [{}, {"conv_kernel_size": 3, "share_att_key": False}, {"pos_att_type": "c2p"}])
def test_the_opt_in_file_of_the_export_gives_our_mask_decoder_logits_through_transformers(
    changes: dict, make_source: MakeFolder, tmp_path: Path
) -> None:
    source, model, config = make_source(**changes)
    export_checkpoint(source, tmp_path / "out")
    opt_in = _import_file(tmp_path / "out" / "modeling_megadeberta.py")
    loaded = _load(opt_in.DebertaV2ForMaskedLMWithMaskDecoder, tmp_path / "out")
    ids, mask, logits = _run(loaded, config)
    torch.testing.assert_close(model.mlm_logits(ids, mask)[mask.bool()], logits[mask.bool()], **WITHIN)
    stock = _run(_load(AutoModelForMaskedLM, tmp_path / "out"), config)[2]
    assert (stock - logits)[mask.bool()].abs().max() > 0.1, "without the decoder the logits are other ones"


def test_the_opt_in_class_has_a_loss_and_keeps_the_position_table_when_saved(
    make_source: MakeFolder, tmp_path: Path
) -> None:
    source, model, config = make_source()
    export_checkpoint(source, tmp_path / "out")
    opt_in = _import_file(tmp_path / "out" / "modeling_megadeberta.py").DebertaV2ForMaskedLMWithMaskDecoder
    loaded = _load(opt_in, tmp_path / "out")
    ids, mask = padded_batch(config)
    labels = torch.full_like(ids, -100)
    labels[0, 3], labels[1, 2] = 17, 40
    loss = loaded(ids, mask, labels=labels).loss
    loss_sum, count = model(ids, mask, torch.tensor([[3], [2], [0]]), torch.tensor([[17], [40], [0]]))[0]["mlm_loss"]
    assert loss.item() == pytest.approx((loss_sum / count).item(), abs=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    table = safetensors.torch.load_file(tmp_path / "again" / "model.safetensors")
    assert "deberta.embeddings.position_embeddings.weight" in table
    with pytest.raises(ValueError, match="33 tokens, but the model has absolute positions for 32"):
        loaded(torch.ones(1, 33, dtype=torch.long))


def test_the_opt_in_class_refuses_a_model_without_mask_decoder(make_source: MakeFolder, tmp_path: Path) -> None:
    source, _, _ = make_source(**CASES["input positions and token types"])
    export_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out" / "modeling_megadeberta.py").exists()
    spec = importlib.util.find_spec("megadeberta.convert.formats.modeling_megadeberta")
    opt_in = _import_file(Path(spec.origin))
    with pytest.raises(ValueError, match="absolute positions at the input and no mask decoder"):
        opt_in.DebertaV2ForMaskedLMWithMaskDecoder(AutoConfig.from_pretrained(tmp_path / "out"))


def test_legacy_and_new_head_give_the_same_logits(make_source: MakeFolder, tmp_path: Path) -> None:
    source, model, config = make_source(**NO_MASK_DECODER)
    export_checkpoint(source, tmp_path / "out")
    ids, mask, new = _run(_load(AutoModelForMaskedLM, tmp_path / "out"), config)
    renamed = {MLM_HEAD[ours]: theirs for ours, theirs in LEGACY_MLM_HEAD.items()}
    folder = shutil.copytree(tmp_path / "out", tmp_path / "legacy")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors = {renamed.get(name, name): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"legacy": True}))
    legacy = _run(_load(AutoModelForMaskedLM, tmp_path / "legacy"), config)[2]
    assert torch.equal(new, legacy)
    torch.testing.assert_close(model.mlm_logits(ids, mask)[mask.bool()], legacy[mask.bool()], **WITHIN)


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_those_that_transformers_would_save(
    case: str, make_source: MakeFolder, tmp_path: Path
) -> None:
    source, _, config = make_source(**CASES[case])
    export_checkpoint(source, tmp_path / "out")
    _load(AutoModelForMaskedLM, tmp_path / "out").save_pretrained(tmp_path / "saved")
    found, saved = (_shapes(tmp_path / folder / "model.safetensors") for folder in ("out", "saved"))
    if config.enhanced_mask_decoder:
        table = found.pop("deberta.embeddings.position_embeddings.weight")
        assert table == (config.max_position_embeddings, config.hidden_size)
    assert found == saved


def test_configuration_survives_transformers(make_source: MakeFolder, tmp_path: Path) -> None:
    source, _, _ = make_source()
    export_checkpoint(source, tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.model_type == "deberta-v2" and config.architectures == ["DebertaV2ForMaskedLM"]
    assert config.relative_attention is True
    assert config.position_buckets == 6 and config.max_relative_positions == 16
    assert config.pos_att_type == ["p2c", "c2p"]
    assert config.norm_rel_ebd == "layer_norm" and config.share_att_key is True
    assert config.legacy is False and config.position_biased_input is False
    carried = "modeling_megadeberta.DebertaV2ForMaskedLMWithMaskDecoder"
    assert config.auto_map == {"AutoModelForMaskedLM": carried}


@pytest.mark.parametrize("length", [20, 32])
def test_beyond_the_longest_distance_transformers_computes_what_we_do(
    length: int, make_source: MakeFolder, tmp_path: Path
) -> None:
    source, model, config = make_source(**NO_MASK_DECODER)
    assert config.relative_span == 16
    export_checkpoint(source, tmp_path / "out")
    table = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")["deberta.encoder.rel_embeddings.weight"]
    assert torch.equal(table[0], table[1])
    loaded = _load(AutoModelForMaskedLM, tmp_path / "out")
    ids, mask = padded_batch(config, length=length)
    with torch.no_grad():
        ours, theirs = model.mlm_logits(ids, mask), loaded(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], **WITHIN)
        loaded.deberta.encoder.rel_embeddings.weight[0] = model.get_parameter("relative.embedding.weight")[0]
        untouched = loaded(input_ids=ids, attention_mask=mask).logits
    assert (untouched - ours)[mask.bool()].abs().max() > 1e-3, "the row is read: without the rule outputs differ"


@pytest.mark.parametrize(("buckets", "span"), [(5, 16), (7, 9), (3, 12), (16, 13), (31, 20), (6, 16)])
def test_rows_that_no_distance_reads_are_copies_and_outputs_equal_at_any_length(
    buckets: int, span: int, make_source: MakeFolder, tmp_path: Path
) -> None:
    changes = NO_MASK_DECODER | {"position_buckets": buckets, "max_relative_positions": span}
    source, model, config = make_source(**changes, max_position_embeddings=60)
    export_checkpoint(source, tmp_path / "out")
    loaded = _load(AutoModelForMaskedLM, tmp_path / "out")
    for length in (span, span + 1, 60):
        ids, mask = padded_batch(config, length=length)
        with torch.no_grad():
            ours, theirs = model.mlm_logits(ids, mask), loaded(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], **WITHIN)
    table = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")["deberta.encoder.rel_embeddings.weight"]
    read = {table_row(d, num_buckets=buckets, max_distance=span) for d in range(1 - span, span)}
    original = model.get_parameter("relative.embedding.weight")
    for row in range(2 * buckets):
        nearest = {other for other in read if abs(other - row) == min(abs(r - row) for r in read)}
        assert any(torch.equal(table[row], original[other]) for other in nearest), row


def test_a_linear_table_is_exported_as_it_is(make_source: MakeFolder, tmp_path: Path) -> None:
    source, model, _ = make_source(**V1)
    export_checkpoint(source, tmp_path / "out")
    table = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")["deberta.encoder.rel_embeddings.weight"]
    assert torch.equal(table, model.get_parameter("relative.embedding.weight"))


def test_the_folder_holds_what_its_readers_need(tmp_path: Path, spm: Path) -> None:
    config = small_config()
    write_checkpoint(tmp_path / "run", small_model(config), config, spm, step=400)
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"step": 390, "loss": 3.25}\n{"step": 400, "loss": 3.125, "valid_loss": 3.5}\n{"step": 401, "loss": 9.0}\n'
    )
    findings = export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert [finding.what for finding in findings] == [
        "exported",
        "weights on disk",
        "DebertaV2Model states",
        "DebertaV2ForMaskedLMWithMaskDecoder logits",
        "AutoTokenizer (TokenizersBackend)",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_megadeberta.py",
        "spm.model",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "out" / "spm.model").read_bytes() == spm.read_bytes()
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "# tiny",
        "400 of 1,000",
        "shards/train",
        "| training loss | 3.1250 |",
        "| validation loss | 3.5000 |",
    ):
        assert part in card
    assert "use_fast_attention(model)" in card
    assert "enhanced mask decoder" in card and "trust_remote_code=True" in card and "$" not in card
    assert AutoTokenizer.from_pretrained(tmp_path / "out").mask_token_id == NUM_PIECES


def test_a_failing_check_leaves_nothing(
    make_source: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, _ = make_source()
    real = export_module.export_tensors
    name = "deberta.encoder.layer.1.attention.self.query_proj.weight"
    damages = {
        "is not what .* holds": lambda tensors: tensors | {name: tensors[name].flip(0)},
        "1 tensors have no place in the model": lambda tensors: tensors | {"deberta.encoder.extra": torch.ones(1)},
        "do not fit the model configuration": lambda tensors: {n: t for n, t in tensors.items() if n != name},
    }
    before = sorted(tmp_path.iterdir())
    for message, damage in damages.items():
        monkeypatch.setattr(export_module, "export_tensors", lambda *a, d=damage: d(real(*a)))
        with pytest.raises(CheckpointError, match=message):
            export_checkpoint(source, tmp_path / "out")
        assert sorted(tmp_path.iterdir()) == before


def test_check_finds_what_was_changed_after_the_export(make_source: MakeFolder, tmp_path: Path) -> None:
    source, _, _ = make_source()
    out = tmp_path / "out"
    export_checkpoint(source, out)
    assert len(check_export(out)) == 3
    changes = {
        "config.json": ('"legacy": false', '"legacy": true', "transformers reports 6 missing keys"),
        "modeling_megadeberta.py": ("PASSES = 2", "PASSES = 1", "is not this megadeberta's"),
        "tokenizer.json": ('"type": "NFC"', '"type": "NFD"', "AutoTokenizer and spm.model give different ids"),
    }
    for name, (old, new, message) in changes.items():
        content = (out / name).read_text()
        assert old in content
        (out / name).write_text(content.replace(old, new))
        with pytest.raises(CheckpointError, match=message):
            check_export(out)
        (out / name).write_text(content)
    assert len(check_export(out)) == 3


def test_check_finds_outputs_that_differ(
    make_source: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, _ = make_source()
    export_checkpoint(source, tmp_path / "out")
    monkeypatch.setattr("megadeberta.model.mask_decoder.PASSES", 1)
    with pytest.raises(CheckpointError, match=r"WithMaskDecoder logits differ from ours by .*, more than"):
        check_export(tmp_path / "out")


def test_check_finds_a_tokenizer_of_other_pieces(make_source: MakeFolder, tmp_path: Path) -> None:
    source, _, _ = make_source()
    export_checkpoint(source, tmp_path / "out")
    other = train_vocabulary(tmp_path / "other.model", vocab_size=NUM_PIECES - 1)
    shutil.copyfile(other, tmp_path / "out" / "spm.model")
    with pytest.raises(CheckpointError, match=r"give different ids for|\[MASK\] is"):
        check_export(tmp_path / "out")


def test_an_existing_folder_is_replaced_only_when_asked_and_only_an_export(
    make_source: MakeFolder, tmp_path: Path
) -> None:
    source, _, _ = make_source()
    out = tmp_path / "out"
    out.mkdir()
    export_checkpoint(source, out)  # empty: fine
    with pytest.raises(ConfigError, match=r"exists and is not empty.*--overwrite"):
        export_checkpoint(source, out)
    (out / "note.txt").write_text("old")
    export_checkpoint(source, out, overwrite=True)
    assert not (out / "note.txt").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds no config\.json.*does not delete it"):
        export_checkpoint(source, precious, overwrite=True)
    assert (precious / "thesis.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="is not a folder"):
        export_checkpoint(source, precious / "thesis.txt", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "precious", "source"]


def test_an_export_never_goes_into_a_checkpoint(tmp_path: Path, spm: Path) -> None:
    config = small_config()
    step = write_checkpoint(tmp_path / "run", small_model(config), config, spm, step=1)
    with pytest.raises(ConfigError, match="inside the checkpoint"):
        export_checkpoint(step, step / "export")


def test_a_full_or_forbidden_disk_is_one_clear_error(
    make_source: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, _ = make_source()

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "write_tokenizer", no_space)
    with pytest.raises(StorageError, match=r"cannot write .*No space left on device"):
        export_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp-*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"out cannot be a folder: .*/file is a file; choose another name"):
        export_checkpoint(source, tmp_path / "file" / "out")


def test_weights_without_their_tokenizer_are_refused(make_source: MakeFolder, tmp_path: Path) -> None:
    source, _, _ = make_source(vocab_size=NUM_PIECES)
    with pytest.raises(CheckpointError, match=rf"needs {NUM_PIECES + 1} rows with \[MASK\], the word table has"):
        export_checkpoint(source, tmp_path / "out")
    (source / "spm.model").write_bytes(b"garbage")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        export_checkpoint(source, tmp_path / "out")
    (source / "spm.model").unlink()
    with pytest.raises(CheckpointError, match=r"spm\.model: is missing"):
        export_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _import_file(path: Path) -> object:
    """Import a module from where it lies, as a user of the export does."""
    spec = importlib.util.spec_from_file_location("opt_in_of_a_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in safetensors.torch.load_file(path).items()}
