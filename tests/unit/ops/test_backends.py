"""The table of attention backends: whoever must know a backend knows every one, and the settings that name them."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import pytest
import torch

from megadeberta.config.training import TrainingConfig
from megadeberta.errors import ConfigError
from megadeberta.layers.encoder import EncoderLayer
from megadeberta.layers.kept import workspace
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.model.attention import DisentangledSelfAttention
from megadeberta.model.attention_backend import select_attention, select_residual_norm
from megadeberta.model.residual import ResidualNorm
from megadeberta.ops import residual_norm
from megadeberta.ops.attention import backends, interface
from megadeberta.ops.attention.backends import (
    BACKENDS,
    REFERENCE,
    Backend,
    backends_to_try,
    planned_backend,
    reason_without_triton,
    register_backend,
    sure_backend,
    untested_triton,
)
from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.reference import reference_attention
from megadeberta.parallel.tensor.linear import SequenceParallelNorm
from megadeberta.preflight.validate import validate_run
from tests.models import run_config
from tests.unit.ops.cases import Case, largest_error

ROOT = Path(__file__).parents[3]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _other(*content: torch.Tensor, **options: object) -> torch.Tensor:
    return reference_attention(*content, **options)


# What every place that must know a backend says of each: a new line of the table goes through these.


@pytest.mark.parametrize("name", BACKENDS)
def test_every_implementation_takes_the_arguments_of_the_reference(name: str) -> None:
    wanted = inspect.signature(reference_attention).parameters
    found = inspect.signature(BACKENDS[name].load()).parameters
    assert list(found)[: len(wanted)] == list(wanted)
    more = list(found)[len(wanted) :]
    assert all(found[option].default is not inspect.Parameter.empty for option in more)


@pytest.mark.parametrize("rows", [None, 5])
@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_equals_the_reference(name: str, rows: int | None) -> None:
    case = Case(length=20, mask="padding", dropout=0.1, rows=rows)
    error, where = largest_error(case, backend=name, dtype=torch.float32)
    assert error <= 1e-6, where  # fp32: a few units in the last place of sums of some ten products


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_has_a_row_in_the_documentation(name: str) -> None:
    rows = [
        line for line in (ROOT / "docs" / "kernels.md").read_text().splitlines() if line.startswith(f"| `{name}` |")
    ]
    assert len(rows) == 1
    assert BACKENDS[name].summary in rows[0]
    assert f"`{BACKENDS[name].residual_norm}`" in rows[0]


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_counts_its_memory(name: str) -> None:
    model = run_config().model
    small, large = (MicroBatch(sequences, 64, 16, "bf16", name) for sequences in (1, 4))
    layer = EncoderLayer("layer.0", model)
    assert 0 < layer.kept_bytes(small) < layer.kept_bytes(large)
    assert 0 < workspace(model, small) < workspace(model, large)


def test_the_reference_keeps_most() -> None:
    layer = EncoderLayer("layer.0", run_config().model)
    kept = {name: layer.kept_bytes(MicroBatch(4, 64, 16, "fp32", name)) for name in BACKENDS}
    assert max(kept, key=kept.get) == REFERENCE  # what is planned where the outcome of a trial is not known


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_goes_with_a_residual_norm_that_exists(name: str) -> None:
    assert BACKENDS[name].residual_norm in residual_norm.IMPLEMENTATIONS


def test_the_recipe_knows_every_residual_norm() -> None:
    assert set(get_args(TrainingConfig.model_fields["residual_norm"].annotation)) == {
        "auto",
        *residual_norm.IMPLEMENTATIONS,
    }


# The setting.


def test_an_unknown_backend_is_refused_with_the_nearest_one_and_all_others() -> None:
    config = run_config(training={"attention": "cpu-leen"})
    with pytest.raises(ConfigError, match=r"^small.json: .*'cpu-leen' is no attention .*mean 'cpu-lean'\?") as caught:
        validate_run(config, world_size=1, source="small.json")
    for backend in BACKENDS.values():
        assert f"{backend.name} ({backend.summary})" in str(caught.value)


@pytest.mark.parametrize("name", ["auto", *BACKENDS])
def test_every_backend_is_a_valid_setting(name: str) -> None:
    validate_run(run_config(training={"attention": name}), world_size=1, source="small.json")


def test_a_model_without_the_backend_is_refused_too() -> None:
    with pytest.raises(ConfigError, match="'fast' is no attention backend"):
        select_attention(torch.nn.Module(), "fast", CPU)
    with pytest.raises(ConfigError, match="'fast' is no attention backend"):
        planned_backend("fast", on_gpu=True)


def test_auto_is_the_tiles_on_a_cpu_and_the_reference_on_a_gpu_unless_the_kernels_pass_a_trial() -> None:
    assert (sure_backend("cpu").name, backends_to_try("cpu")) == ("cpu", [])
    assert sure_backend("cuda").name == "reference"
    assert [each.name for each in backends_to_try("cuda")] == ["gluon", "triton"]
    assert [planned_backend("auto", on_gpu=on_gpu) for on_gpu in (False, True)] == ["cpu", "reference"]
    assert planned_backend("triton", on_gpu=True) == "triton"


# Registration.


def test_a_name_is_taken_once() -> None:
    with patch.dict(BACKENDS):
        other = Backend("other", "one more", _other)
        register_backend(other)
        register_backend(Backend("other", "one more", _other))  # the same again, as when a module is imported twice
        assert BACKENDS["other"] is not None
        with pytest.raises(ConfigError, match=r"attention backend 'cpu' exists: .*cpu_attention .*another name"):
            register_backend(Backend("cpu", "another one", _other))
        with pytest.raises(ConfigError, match=r"attention backend 'auto' exists"):
            register_backend(Backend("auto", "another one", _other))


def test_a_backend_that_takes_no_free_pairs_leaves_them_to_the_reference() -> None:
    def refuse(*_: torch.Tensor, **options: object) -> torch.Tensor:
        raise AssertionError("not its kind of mask")

    query = torch.randn(1, 2, 5, 8)
    zeros, pairs = torch.zeros(1, 5, dtype=torch.int32), torch.eye(5, dtype=torch.bool).unsqueeze(0)
    with patch.dict(BACKENDS):
        register_backend(Backend("no pairs", "for this test", refuse, takes_pairs=False))
        mask = AttentionMask(zeros, zeros + 5, pairs=pairs)
        found = interface.disentangled_attention(query, query, query, mask=mask, backend="no pairs")
        torch.testing.assert_close(found, query)  # each sees itself only
        with pytest.raises(AssertionError, match="not its kind"):
            interface.disentangled_attention(query, query, query, backend="no pairs")


@pytest.mark.parametrize("name", BACKENDS)
def test_torch_compile_imports_a_backend_that_was_not_called_before(name: str) -> None:
    content = [torch.randn(1, 1, 16, 32) for _ in range(3)]
    expected = interface.disentangled_attention(*content)
    torch.compiler.reset()
    attend = torch.compile(interface.disentangled_attention, backend="aot_eager", fullgraph=True)
    with patch.dict(interface._LOADED, clear=True):
        torch.testing.assert_close(attend(*content, backend=name), expected)


def test_triton_is_imported_when_its_kernels_first_run() -> None:
    code = (
        "import sys, torch; from megadeberta.ops.attention.interface import disentangled_attention as attend; "
        "tensor = torch.ones(1, 1, 2, 8); attend(tensor, tensor, tensor); "
        "print('megadeberta.ops.attention.triton_kernels' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# What goes beside it.


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = DisentangledSelfAttention(run_config().model)
        self.norm = ResidualNorm(64, 1e-7)


@pytest.mark.parametrize(
    ("setting", "attention", "taken"),
    [
        ("auto", "cpu-lean", "cpu"),
        ("auto", "reference", "torch"),
        ("torch", "cpu", "torch"),
        ("cpu", "reference", "cpu"),
    ],
)
def test_the_residual_norm_goes_with_the_attention_unless_it_is_named(setting: str, attention: str, taken: str) -> None:
    block = _Block()
    select_attention(block, attention, CPU)
    assert (block.attention.backend, block.norm.implementation) == (attention, "auto")
    line = select_residual_norm(block, setting, CPU, attention=attention)
    assert (line, block.norm.implementation) == (f"residual norm {setting}: {taken}", taken)


def test_norms_that_are_shared_by_tokens_stay_with_torch_unless_another_is_named() -> None:
    block = _Block()
    block.shared = SequenceParallelNorm(ResidualNorm(64, 1e-7), group=None)
    assert select_residual_norm(block, "auto", CPU, attention="cpu") == "residual norm auto: cpu and torch"
    assert (block.norm.implementation, block.shared.implementation) == ("cpu", "torch")
    assert select_residual_norm(block, "cpu", CPU, attention="reference") == "residual norm cpu: cpu"
    assert block.shared.implementation == "cpu"


def test_a_residual_norm_that_does_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"training\.residual_norm=cpu: it runs on a CPU only.*cuda; use torch"):
        select_residual_norm(_Block(), "cpu", CUDA, attention="reference")
    with pytest.raises(ConfigError, match=r"training\.residual_norm=triton: .*; use torch"):
        select_residual_norm(_Block(), "triton", CPU, attention="cpu")
    with pytest.raises(ConfigError, match=r"residual_norm=auto, which is triton beside attention triton: "):
        select_residual_norm(_Block(), "auto", CPU, attention="triton")


# Versions of Triton


def _with_triton(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    monkeypatch.setattr(backends.metadata, "version", lambda name: version)


@pytest.mark.parametrize(
    ("version", "is_tested"), [("3.6.0", True), ("3.9.1", True), ("3.10.0", False), ("4.0", False)]
)
def test_a_newer_triton_is_tried_and_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, version: str, is_tested: bool
) -> None:
    _with_triton(monkeypatch, version)
    assert reason_without_triton("cuda") == ""
    line = untested_triton()
    assert (line == "") is is_tested
    if not is_tested:
        number = ".".join(version.split(".")[:2])
        assert line.startswith(f"Triton {number} is untested with these kernels (3.6 up to, not including, 3.10 are)")


def test_an_older_triton_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_triton(monkeypatch, "3.5.1")
    assert reason_without_triton("cuda") == "Triton 3.5 is too old; 3.6 or newer (pip install 'megadeberta[gpu]')"
    assert untested_triton() == ""


def test_the_extra_installs_the_tested_versions() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    low, high = (".".join(map(str, version)) for version in (backends.TRITON_FROM, backends.TRITON_BELOW))
    assert extras["gpu"] == [f"triton>={low},<{high}"]
