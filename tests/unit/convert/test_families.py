"""Every family is in every place that must know it, and no other place knows one."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import transformers

import megadeberta.convert
from megadeberta.convert import cli, formats
from megadeberta.convert.formats import modeling_megadeberta
from megadeberta.convert.formats.config_json import from_config_json, to_config_json
from megadeberta.convert.formats.export_tensors import export_tensors
from megadeberta.convert.formats.families import FAMILIES, choose_target, family_of
from megadeberta.convert.formats.family import ExportTarget, Family, FileFormat, ModelKind
from megadeberta.convert.formats.split_tensors import split_tensors, take_backbone
from megadeberta.errors import CheckpointError
from megadeberta.layers import mask_decoder
from tests.unit.convert.small_models import CASES, V1, small_config, small_model, weights_of

CONVERT = Path(megadeberta.convert.__file__).parent
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)


def _adapter_files() -> dict[str, Path]:
    """Class name -> file of every family that this package defines."""
    modules = [importlib.import_module(f"{formats.__name__}.{m.name}") for m in pkgutil.iter_modules(formats.__path__)]
    classes = {c for module in modules for _, c in inspect.getmembers(module, inspect.isclass)}
    families = [c for c in classes if issubclass(c, Family) and c is not Family]
    return {family.__name__: Path(inspect.getfile(family)) for family in families}


def test_every_family_of_this_package_is_registered_once() -> None:
    registered = [type(family).__name__ for family in FAMILIES]
    assert sorted(registered) == sorted(_adapter_files())
    assert len({family.model_type for family in FAMILIES}) == len(FAMILIES)


def test_only_the_adapter_of_a_family_names_its_model_type() -> None:
    types = {family.model_type for family in FAMILIES}
    adapters = set(_adapter_files().values())
    named = [
        f"{path.relative_to(CONVERT)}:{node.lineno}: {node.value}"
        for path in CONVERT.rglob("*.py")
        if path not in adapters
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in types
    ]
    assert named == []


def test_only_the_registry_imports_the_adapters() -> None:
    adapters = set(_adapter_files().values())
    modules = {f"{formats.__name__}.{path.stem}" for path in adapters}
    users = {
        path.name
        for path in CONVERT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in modules
    }
    assert users == {"families.py"}


@EVERY_FAMILY
def test_a_case_of_the_export_and_import_tests_is_of_the_family(family: Family) -> None:
    targets = [choose_target(small_config(**changes), ModelKind.MLM) for changes in CASES.values()]
    assert [target for target in targets if target.family is family]


@EVERY_FAMILY
def test_transformers_has_the_classes_of_the_family(family: Family) -> None:
    settings = transformers.AutoConfig.for_model(family.model_type)
    for kind, auto_class in ((ModelKind.MLM, "AutoModelForMaskedLM"), (ModelKind.BACKBONE, "AutoModel")):
        found = getattr(transformers, auto_class)._model_mapping[type(settings)]
        assert found.__name__ == family.architecture(kind)
    assert family.architecture(ModelKind.DISCRIMINATOR) == family.architecture(ModelKind.BACKBONE)
    if family.opt_in is not None:
        extended = getattr(transformers, family.architecture(ModelKind.MLM))
        assert issubclass(family.opt_in.load_class(), extended)


@EVERY_FAMILY
@pytest.mark.parametrize("case", CASES)
def test_what_a_family_supports_comes_back_from_its_names_and_configuration(case: str, family: Family) -> None:
    config = small_config(**CASES[case])
    reason = family.supports(config)
    if reason is not None:
        assert reason.strip()
        return
    weights = weights_of(small_model(config))
    target = ExportTarget(family, ModelKind.MLM)
    tensors, values = export_tensors(config, weights, target), to_config_json(config, target)
    read = from_config_json(values, family, mask_decoder=config.enhanced_mask_decoder, source="")
    assert read == config or not config.relative_attention  # whose settings are not written where they do nothing
    split = split_tensors(tensors, family, config)
    taken, dropped = take_backbone(config, split, family)
    assert taken.keys() | split.mlm_head.keys() == weights.keys()
    assert set(dropped.values()) <= {"all zero: the model has no key biases"}
    assert {f"{family.prefixes[0]}{family.stored_name(name)}" for name in split.backbone} <= tensors.keys()


def test_a_model_goes_to_the_first_family_that_supports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    only_v1 = [family for family in FAMILIES if family.model_type == "deberta"]
    monkeypatch.setattr("megadeberta.convert.formats.families.FAMILIES", only_v1)
    assert choose_target(small_config(**V1), ModelKind.MLM).family is only_v1[0]
    for changes, reason in {
        "key_bias": "its keys have biases",
        "position_buckets": "its distances are in buckets",
        "norm_rel_ebd": "its relative table has a LayerNorm",
        "share_att_key": "position and content share projections",
    }.items():
        config = small_config(**{name: value for name, value in V1.items() if name != changes})
        with pytest.raises(CheckpointError, match=rf"no model family .* this model \(deberta: {reason}\)"):
            choose_target(config, ModelKind.MLM)
    with pytest.raises(
        CheckpointError, match=r"config\.json: model_type is 'deberta-v2'; only 'deberta' \(v1\) can be"
    ):
        family_of({"model_type": "deberta-v2"}, (), "config.json")
    with pytest.raises(CheckpointError, match="model_type is None; only"):
        family_of({}, ("encoder.layer.0.attention.self.query_proj.weight",), "config.json")


def test_the_command_offers_every_kind_and_format() -> None:
    hints = get_type_hints(cli.export_command)
    assert get_args(get_args(hints["model"])[0]) == tuple(ModelKind)
    assert get_args(hints["file_format"]) == tuple(FileFormat)


def test_the_file_that_exports_carry_runs_as_many_passes_as_the_model() -> None:
    """It stands alone in an export, so it cannot import the number."""
    assert modeling_megadeberta.PASSES == mask_decoder.PASSES
    tree = ast.parse(Path(modeling_megadeberta.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in imported} == {"torch", "transformers"}
