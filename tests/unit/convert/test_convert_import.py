"""Import takes what is in the file, says what became of every tensor, and refuses what it cannot vouch for."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.config_json import to_config_json
from megadeberta.convert.formats.deberta_v2 import DebertaV2
from megadeberta.convert.formats.export_tensors import export_tensors
from megadeberta.convert.formats.families import choose_target
from megadeberta.convert.formats.family import ExportTarget, FileFormat, ModelKind
from megadeberta.convert.formats.names import LEGACY_MLM_HEAD, MLM_HEAD
from megadeberta.convert.formats.read_folder import ReportLine, read_hf_folder
from megadeberta.convert.import_folder import import_folder
from megadeberta.errors import CheckpointError, ConfigError, DataError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.initialize import give_storage, initialize
from megadeberta.model.whole import WholeModel
from megadeberta.weights.initial import initial_values
from megadeberta.weights.source import ModelSource, load_weights
from tests.unit.convert.small_models import (
    CASES,
    NO_MASK_DECODER,
    V1,
    small_config,
    small_model,
    weights_of,
    write_weights_folder,
)

HF_TABLE = "deberta.embeddings.position_embeddings.weight"
OUR_TABLE = "mask_decoder.position_embeddings.weight"


def hf_folder(
    folder: Path, config: ModelConfig, *, target: ExportTarget | None = None
) -> tuple[Path, dict[str, Tensor]]:
    """A folder with random weights as another program would leave it: no keys of ours in config.json."""
    target = target or ExportTarget(DebertaV2(), ModelKind.MLM)
    folder.mkdir()
    values = to_config_json(config, target)
    del values["enhanced_mask_decoder"], values["key_bias"]
    (folder / "config.json").write_text(json.dumps(values))
    tensors = export_tensors(config, weights_of(small_model(config)), target)
    safetensors.torch.save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    return folder, tensors


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    path = folder / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_importing_an_export_gives_every_tensor_back_bit_for_bit(case: str, tmp_path: Path, spm: Path) -> None:
    config = small_config(**CASES[case])
    model = small_model(config)
    source = write_weights_folder(tmp_path / "source", model, config, spm)
    export_checkpoint(source, tmp_path / "out")
    lines = import_folder(tmp_path / "out", tmp_path / "back")
    back = load_weights(tmp_path / "back")
    expected = weights_of(model)
    if config.relative_attention and config.position_buckets > 0:  # the one documented change of an export
        expected["relative.embedding.weight"][0] = expected["relative.embedding.weight"][1]
    assert back.weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], back.weights[name])] == []
    assert back.tokenizer.read_bytes() == spm.read_bytes()
    assert {line.ours for line in lines if line.action == "taken"} == expected.keys()
    assert not [line for line in lines if line.action == "created"]
    started = WholeModel(token_model_layers(back.config))
    give_storage(started, initial_values({name: p.shape for name, p in started.named_parameters()}, tmp_path / "back"))
    assert torch.equal(started.get_parameter("mlm_head.dense.weight"), expected["mlm_head.dense.weight"])


def test_the_report_on_disk_has_a_line_for_every_tensor(tmp_path: Path) -> None:
    config = small_config()
    folder, tensors = hf_folder(tmp_path / "hf", config)
    rewrite(
        folder,
        lambda found: found | {"mask_predictions.dense.bias": torch.ones(24), "pooler.dense.bias": torch.ones(24)},
    )
    lines = import_folder(folder, tmp_path / "out")
    written = [ReportLine(**line) for line in json.loads((tmp_path / "out" / "import_report.json").read_text())]
    assert written == lines
    assert len([line for line in lines if line.action == "taken"]) == len(tensors)
    assert {(line.theirs, line.reason) for line in lines if line.action == "dropped"} == {
        ("mask_predictions.dense.bias", "the head for replaced token detection"),
        ("pooler.dense.bias", "the head of a fine-tuned model"),
    }


@pytest.mark.parametrize("prefix", ["deberta.", "bert.", ""])
def test_backbone_prefixes_of_all_code_bases_are_understood(prefix: str, tmp_path: Path) -> None:
    config = small_config()
    folder, _ = hf_folder(tmp_path / "hf", config)
    expected = read_hf_folder(folder).weights
    rewrite(folder, lambda found: {name.replace("deberta.", prefix, 1): t for name, t in found.items()})
    found = read_hf_folder(folder)
    assert found.config.enhanced_mask_decoder and found.weights.keys() == expected.keys()
    assert all(torch.equal(expected[name], found.weights[name]) for name in expected)


@pytest.mark.parametrize("changes", [NO_MASK_DECODER, NO_MASK_DECODER | {"embedding_size": 12}])
def test_the_legacy_head_is_the_same_head_under_other_names(changes: dict, tmp_path: Path) -> None:
    config = small_config(**changes)
    folder, _ = hf_folder(tmp_path / "hf", config)
    renamed = {MLM_HEAD[ours]: theirs for ours, theirs in LEGACY_MLM_HEAD.items()}
    rewrite(folder, lambda found: {renamed.get(name, name): tensor for name, tensor in found.items()})
    expected = weights_of(small_model(config))
    tied = {"cls.predictions.decoder.weight": expected["embeddings.word_embeddings.weight"]}
    tied["cls.predictions.decoder.bias"] = expected["mlm_head.decoder.bias"]
    rewrite(folder, lambda found: found | {name: tensor.clone() for name, tensor in tied.items()})
    found = read_hf_folder(folder)
    assert all(torch.equal(found.weights[n], expected[n]) for n in expected if n.startswith("mlm_head."))
    assert {line.theirs for line in found.lines if line.action == "dropped"} == tied.keys()
    rewrite(folder, lambda all_: all_ | {"cls.predictions.decoder.weight": all_["cls.predictions.decoder.weight"] + 1})
    with pytest.raises(CheckpointError, match="differs from the tensor that it is tied to"):
        read_hf_folder(folder)


def test_whether_there_is_a_mask_decoder_follows_from_the_position_table(tmp_path: Path) -> None:
    folder, _ = hf_folder(tmp_path / "hf", small_config())
    assert read_hf_folder(folder).config.enhanced_mask_decoder
    without = read_hf_folder(folder, mask_decoder=False)
    assert not without.config.enhanced_mask_decoder and not without.missing
    reason = "this model reads absolute positions neither at the input nor in a mask decoder"
    assert ("embeddings.position_embeddings.weight", reason) in {(line.theirs, line.reason) for line in without.lines}
    rewrite(folder, lambda found: {name: tensor for name, tensor in found.items() if name != HF_TABLE})
    plain = read_hf_folder(folder)
    assert not plain.config.enhanced_mask_decoder and not plain.missing


def test_what_the_file_lacks_is_drawn_only_when_asked_for_and_said_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config()
    folder, _ = hf_folder(tmp_path / "hf", config, target=ExportTarget(DebertaV2(), ModelKind.BACKBONE))
    with pytest.raises(CheckpointError, match=r"has no mlm_head\.decoder\.bias.*add --allow-new"):
        import_folder(folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"has no mask_decoder\.position_embeddings.*or --no-mask-decoder"):
        import_folder(folder, tmp_path / "out", mask_decoder=True)
    assert not (tmp_path / "out").exists()
    lines = import_folder(folder, tmp_path / "out", allow_new=True, mask_decoder=True, seed=5)
    created = {line.ours for line in lines if line.action == "created"}
    assert OUR_TABLE in created and len(created) == 6
    assert "6 tensors NOT FROM A FILE" in caplog.text and OUR_TABLE in caplog.text
    found = load_weights(tmp_path / "out")
    fresh = WholeModel(token_model_layers(found.config))
    initialize(fresh, seed=5, std=found.config.initializer_range)
    assert all(torch.equal(found.weights[name], fresh.get_parameter(name)) for name in created)
    assert not torch.equal(
        found.weights["layer.0.feed_forward.up.weight"], fresh.get_parameter("layer.0.feed_forward.up.weight")
    )


def test_half_precision_pickles_of_tensors_are_read(tmp_path: Path) -> None:
    folder, tensors = hf_folder(tmp_path / "hf", small_config())
    (folder / "model.safetensors").unlink()
    torch.save({name: tensor.half() for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    found = read_hf_folder(folder)
    assert {tensor.dtype for tensor in found.weights.values()} == {torch.float32}
    assert {line.reason for line in found.lines} == {"torch.float16"}
    word_table = tensors["deberta.embeddings.word_embeddings.weight"]
    assert torch.equal(found.weights["embeddings.word_embeddings.weight"], word_table.half().float())


def test_sharded_weights_are_read(tmp_path: Path) -> None:
    folder, tensors = hf_folder(tmp_path / "hf", small_config())
    expected = read_hf_folder(folder).weights
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        safetensors.torch.save_file({name: tensors[name].contiguous() for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    found = read_hf_folder(folder).weights
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for content, message in {
        json.dumps({"weight_map": {"a": "../../secret.safetensors"}}): "not plain names in its own folder",
        json.dumps({"weight_map": weight_map | {"extra": "model-1.safetensors"}}): "promises extra, which none",
        json.dumps({"weight_map": {"a": "model-3.safetensors"}}): r"model-3\.safetensors: is missing, and .* names it",
        "[]": "not an index of weights",
    }.items():
        index.write_text(content)
        with pytest.raises(CheckpointError, match=message):
            read_hf_folder(folder)


def _half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name] for name in sorted(tensors)[::2]}


DENSE = "deberta.encoder.layer.0.output.dense.weight"
BAD_TENSORS = {
    "half of the tensors": (_half, r"tensors do not fit the model configuration, first .*: expected .*, found none"),
    "half a head": (
        lambda tensors: {n: t for n, t in tensors.items() if n != "lm_predictions.lm_head.bias"},
        r"1 of \d+ tensors do not fit.*first mlm_head\.decoder\.bias: expected \(1008,\), found none",
    ),
    "a wrong shape": (
        lambda tensors: tensors | {DENSE: torch.zeros(3, 3)},
        r"first layer\.0\.feed_forward\.down\.weight: expected \(24, 40\), found \(3, 3\)",
    ),
    "NaN": (lambda tensors: tensors | {DENSE: tensors[DENSE] * float("nan")}, "1 of .* tensors hold NaN or infinity"),
    "infinity": (lambda tensors: tensors | {DENSE: tensors[DENSE] / 0}, "1 of .* tensors hold NaN or infinity"),
    "more layers than the configuration": (
        lambda tensors: tensors | {DENSE.replace("layer.0", "layer.3"): torch.zeros(24, 40)},
        r"1 tensors have no place .*first encoder\.layer\.3.*config\.json belongs to other weights",
    ),
    "one tensor under two prefixes": (
        lambda tensors: tensors | {DENSE.replace("deberta.", "bert."): torch.zeros(24, 40)},
        r"holds encoder\.layer\.0\.output\.dense\.weight twice",
    ),
    "only the discriminator's delta": (
        lambda tensors: {n.replace("word_embeddings.weight", "word_embeddings._weight"): t for n, t in tensors.items()},
        r"holds a discriminator's difference \(_weight\) but no word table.*--generator",
    ),
    "nothing": (lambda tensors: {}, "do not fit the model configuration"),
}


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_tensors_that_are_not_the_models_are_refused(what: str, tmp_path: Path) -> None:
    change, message = BAD_TENSORS[what]
    folder, _ = hf_folder(tmp_path / "hf", small_config())
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        import_folder(folder, tmp_path / "out", allow_new=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


class _RunsCode:
    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self._trace}",)


def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path: Path) -> None:
    folder, tensors = hf_folder(tmp_path / "hf", small_config())
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    code = _RunsCode(tmp_path / "trace")
    torch.save(dict(tensors) | {"x": code}, path)
    with pytest.raises(CheckpointError, match=r"asks for (posix|os)\.system, which is not a tensor; refused"):
        import_folder(folder, tmp_path / "out")
    path.write_bytes(pickle.dumps(code, protocol=2))
    with pytest.raises(CheckpointError, match=r"refused|damaged"):
        import_folder(folder, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hf"]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder, tensors = hf_folder(tmp_path / "hf", small_config())
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:7], b"", b"\xff" * 100, whole + b"x"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read .*damaged"):
            import_folder(folder, tmp_path / "out")
    path.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    whole = (folder / "pytorch_model.bin").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"\x80\x02garbage"):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: .*damaged"):
            import_folder(folder, tmp_path / "out")
    torch.save([torch.ones(1)], folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is not a dict of tensors by name"):
        import_folder(folder, tmp_path / "out")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"holds none of model\.safetensors"):
        import_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


BAD_CONFIGS = {
    "another architecture": ({"model_type": "gpt2"}, r"model_type is 'gpt2'; only .*'deberta' \(v1\)"),
    "a missing size": ({"hidden_size": None}, "hidden_size is missing"),
    "talking heads": ({"talking_head": True}, "talking_head=true is not supported"),
    "untied tables": ({"tie_word_embeddings": False}, "tie_word_embeddings=false is not supported"),
    "odd head size": ({"attention_head_size": 5}, "attention_head_size=5 times num_attention_heads=4"),
    "another activation": ({"hidden_act": "relu"}, "not a model that megadeberta has: hidden_act='relu'"),
    "position-to-position": ({"pos_att_type": "p2p"}, "not a model that megadeberta has: pos_att_type"),
    "heads that do not divide": (
        {"num_attention_heads": 7, "attention_head_size": None},
        r"model\.num_attention_heads=7 does not divide",
    ),
    "positions at the input and in a decoder": ({"position_biased_input": True}, "exclude each other"),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_configurations_of_other_models_are_refused(what: str, tmp_path: Path) -> None:
    changes, message = BAD_CONFIGS[what]
    folder, _ = hf_folder(tmp_path / "hf", small_config())
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        import_folder(folder, tmp_path / "out", mask_decoder=True)


def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path) -> None:
    folder, _ = hf_folder(tmp_path / "hf", small_config())
    for content, message in ((b"[]", "holds a list"), (b"{", "cannot be read as JSON"), (b"\xff", "cannot be read")):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            import_folder(folder, tmp_path / "out")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: is missing"):
        import_folder(folder, tmp_path / "out")


def test_a_v1_projection_of_another_shape_is_refused(tmp_path: Path) -> None:
    config = small_config(**V1)
    folder, _ = hf_folder(tmp_path / "hf", config, target=choose_target(config, ModelKind.MLM))
    name = "deberta.encoder.layer.0.attention.self.in_proj.weight"
    rewrite(folder, lambda tensors: tensors | {name: torch.zeros(70, 24)})
    with pytest.raises(CheckpointError, match=r"in_proj\.weight has shape \(70, 24\); the packed projection"):
        import_folder(folder, tmp_path / "out")


def test_an_import_never_replaces_what_it_did_not_write(tmp_path: Path) -> None:
    folder, _ = hf_folder(tmp_path / "hf", small_config())
    import_folder(folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        import_folder(folder, tmp_path / "out")
    import_folder(folder, tmp_path / "out", overwrite=True)
    with pytest.raises(ConfigError, match=r"holds no model\.json"):
        import_folder(folder, shutil.copytree(folder, tmp_path / "copy"), overwrite=True)


def test_an_absent_key_has_the_default_of_the_code_base_not_ours(tmp_path: Path) -> None:
    folder, _ = hf_folder(tmp_path / "hf", small_config())
    values = json.loads((folder / "config.json").read_text())
    for name in ("relative_attention", "position_buckets", "norm_rel_ebd", "share_att_key", "pos_att_type"):
        del values[name]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"have no place .*first encoder\.rel_embeddings"):
        read_hf_folder(folder)


def test_microsofts_release_of_v2_is_imported_as_folder_and_as_file(tmp_path: Path, spm: Path) -> None:
    """The archives hold ``pytorch.model.bin``, ``model_config.json`` without model_type, and ``spm.model``."""
    published, release = _release(tmp_path, spm)
    shutil.copyfile(spm, release / "spm.model")
    table = published.weights["relative.embedding.weight"]
    table[0] = table[1]  # the one documented change of an export
    for number, place in enumerate((release, release / "pytorch.model.bin")):
        import_folder(place, tmp_path / f"out-{number}")
        found = load_weights(tmp_path / f"out-{number}")
        assert found.weights.keys() == published.weights.keys()
        different = {n for n, tensor in found.weights.items() if not torch.equal(tensor, published.weights[n])}
        assert different == set()
        assert found.checked_tokenizer().read_bytes() == spm.read_bytes()


def test_microsofts_release_of_v1_is_refused_until_its_vocabulary_can_be_read(tmp_path: Path, spm: Path) -> None:
    _, release = _release(tmp_path, spm)
    (release / "bpe_encoder.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(
        DataError, match=r"bpe_encoder\.bin: is Microsoft's pickle .*vocab\.json merges\.txt --local-dir"
    ):
        import_folder(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.copyfile(spm, release / "spm.model")
    import_folder(release, tmp_path / "out")


def _release(tmp_path: Path, spm: Path) -> tuple[ModelSource, Path]:
    """A model of ours, and the same as Microsoft's archives hold it, without tokenizer."""
    config = small_config()
    source = write_weights_folder(tmp_path / "source", small_model(config), config, spm)
    export_checkpoint(source, tmp_path / "export", file_format=FileFormat.MICROSOFT)
    release = tmp_path / "release"
    release.mkdir()
    shutil.copyfile(tmp_path / "export" / "pytorch_model.bin", release / "pytorch.model.bin")
    values = json.loads((tmp_path / "export" / "model_config.json").read_text())
    values.pop("model_type", None)
    (release / "model_config.json").write_text(json.dumps(values))
    return load_weights(source), release
