"""Published v3 models come in by the name of their folder, file or repository, with the generator beside them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.formats.places import find_generator
from megadeberta.errors import CheckpointError, ConfigError
from megadeberta.model.whole import WholeModel
from megadeberta.weights.hub import find_model
from megadeberta.weights.source import load_weights
from tests.unit.convert.published import COMMIT, REPO, serving, write_published_folder
from tests.unit.convert.small_models import small_config, small_model, weights_of, write_checkpoint

RUNNER = CliRunner(env={"COLUMNS": "200"})
OBJECTIVE = ObjectiveConfig(name="rtd", rtd={"generator_layers": 2})


@pytest.fixture(scope="module")
def model() -> WholeModel:
    return small_model(small_config(), objective=OBJECTIVE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: WholeModel, spm: Path) -> Path:
    root = tmp_path_factory.mktemp("published")
    objective = OBJECTIVE.model_dump(mode="json")
    write_checkpoint(root / "run", model, small_config(), spm, step=5, objective=objective)
    return write_published_folder(root / "run", root / "deberta-v3-tiny", root)


def _serve_at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """As HF_ENDPOINT does, which was read when the package was loaded."""
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were fetched from a hub that holds the folder; its cache is empty."""
    with serving(folder) as (address, fetched):
        _serve_at(monkeypatch, address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield fetched


def _import(*arguments: object) -> str:
    result = RUNNER.invoke(app, ["convert", "import", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _both_parts(folder: Path, model: WholeModel) -> None:
    found, expected = load_weights(folder), weights_of(model)
    assert found.objective == OBJECTIVE and found.config == small_config()
    assert found.weights.keys() == expected.keys() and found.tokenizer is not None
    for name, tensor in expected.items():
        if name.endswith("relative.embedding.weight"):
            tensor[0] = tensor[1]
        # The file has the sum of the tables: the difference comes back with the rounding of two sums.
        torch.testing.assert_close(found.weights[name], tensor, rtol=0, atol=1e-6 if name.endswith(".delta") else 0)


def test_the_generator_beside_the_discriminator_is_found(folder: Path, model: WholeModel, tmp_path: Path) -> None:
    _import(folder, tmp_path / "out")
    _both_parts(tmp_path / "out", model)
    _import(folder, tmp_path / "same", "--generator", folder)
    _both_parts(tmp_path / "same", model)
    _import(folder / "pytorch_model.bin", tmp_path / "files", "--generator", folder / "pytorch_model.generator.bin")
    _both_parts(tmp_path / "files", model)


def test_one_file_is_one_model(folder: Path, model: WholeModel, tmp_path: Path) -> None:
    _import(folder / "pytorch_model.generator.bin", tmp_path / "out")
    found = load_weights(tmp_path / "out")
    assert found.config.num_hidden_layers == 2 and found.objective.name == "mlm" and found.tokenizer is not None
    name = "layer.0.feed_forward.up.weight"
    assert torch.equal(found.weights[name], weights_of(model)[f"generator.{name}"])
    _import(folder, tmp_path / "alone", "--no-generator", "--allow-new", "--no-mask-decoder")
    assert load_weights(tmp_path / "alone").config.num_hidden_layers == 3


def test_a_generator_that_is_the_discriminator_is_refused(folder: Path, tmp_path: Path) -> None:
    single = shutil.copytree(folder, tmp_path / "single", ignore=shutil.ignore_patterns("*generator*"))
    with pytest.raises(CheckpointError, match=r"given as discriminator and as generator.*--new-generator"):
        _import(single, tmp_path / "out", "--generator", single)
    copied = shutil.copytree(folder, tmp_path / "copied", ignore=shutil.ignore_patterns("*generator*"))
    for name, source in (
        ("pytorch_model.generator.bin", "pytorch_model.bin"),
        ("generator_config.json", "config.json"),
    ):
        shutil.copyfile(copied / source, copied / name)
    tensors = torch.load(copied / "pytorch_model.generator.bin", weights_only=True)
    for name, tensor in torch.load(folder / "pytorch_model.generator.bin", weights_only=True).items():
        if name.startswith("lm_predictions."):
            tensors[name] = tensor
    torch.save(tensors, copied / "pytorch_model.generator.bin")
    with pytest.raises(CheckpointError, match=r"generator's layers are those of the discriminator"):
        _import(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_configuration_or_head_is_said(folder: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("generator_config.json"))
    with pytest.raises(CheckpointError, match=r"generator_config\.json: is missing"):
        _import(bare, tmp_path / "out")
    assert find_generator(bare, None) == bare / "pytorch_model.generator.bin"
    headless = shutil.copytree(folder, tmp_path / "headless")
    tensors = torch.load(headless / "pytorch_model.bin", weights_only=True)
    torch.save({n: t for n, t in tensors.items() if not n.startswith("mask_")}, headless / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"have no discriminator\.rtd_head.*add --allow-new"):
        _import(headless, tmp_path / "out")
    shown = _import(headless, tmp_path / "out", "--allow-new")
    assert "DRAWN" in shown and "discriminator.rtd_head" in shown


def test_a_file_of_no_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: is no file of weights; give a folder"):
        _import(folder / "config.json", tmp_path / "out")


def test_only_the_needed_files_of_a_repository_are_fetched(
    hub: list[str], folder: Path, model: WholeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _import(REPO, tmp_path / "out")
    _both_parts(tmp_path / "out", model)
    assert sorted(hub) == sorted(path.name for path in folder.iterdir() if path.suffix not in (".h5", ".ot"))
    assert find_model(Path(f"{REPO}@main")).name == COMMIT, "in the cache, so nothing is fetched again"
    assert len(hub) == 6
    _serve_at(monkeypatch, "http://127.0.0.1:9")
    assert find_model(Path(f"{REPO}@{COMMIT}")).name == COMMIT, "without a network the cache is enough"


def test_what_is_here_is_never_asked_for_there(hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(REPO).mkdir(parents=True)
    assert find_model(Path(REPO)) == Path(REPO) and not hub


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/other", r"owner/other: no such folder here, and no such model on the hub.*hf download owner/other"),
        (f"{REPO}@v9", r"the hub has no revision 'v9'"),
        ("no-such-folder", r"no-such-folder: no such folder or file; give one, or a model of the hub as OWNER/MODEL"),
        ("../owner/model", "no such folder or file"),
        ("/owner/model", "no such folder or file"),
    ],
)
def test_a_name_of_nothing_is_one_line(
    name: str, message: str, hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        find_model(Path(name))


def test_without_a_network_the_command_to_use_elsewhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    _serve_at(monkeypatch, "http://127.0.0.1:9")
    expected = (
        r"microsoft/x: no such folder here, and the hub cannot be reached \(.*`hf download microsoft/x --local-dir x`"
    )
    with pytest.raises(CheckpointError, match=expected):
        find_model(Path("microsoft/x"))


def test_options_about_the_generator_exclude_each_other(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exclude each other: choose one"):
        _import(folder, tmp_path / "out", "--new-generator", "--no-generator")
    assert json.loads((folder / "generator_config.json").read_text())["num_hidden_layers"] == 2


def test_a_wrong_name_is_said_before_torch_is_loaded(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from megadeberta.convert.cli import app\n"
        f"CliRunner().invoke(app, ['import', {str(tmp_path / 'nowhere')!r}, 'out'])\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
