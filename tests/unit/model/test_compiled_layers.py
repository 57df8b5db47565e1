"""Layers compiled by torch.compile train as plain ones, and nothing outside training sees them."""

from typing import Any

import pytest
import torch

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.errors import ConfigError
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.model import compiled_layers
from megadeberta.model.compiled_layers import select_compile
from megadeberta.model.dropout import set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.layer import EncoderLayer
from megadeberta.model.whole import WholeModel
from tests.models import full_batch, masked_batch, tiny_rtd, tiny_v2, tiny_v3

CPU = torch.device("cpu")
MODELS: dict[str, tuple[ModelConfig, ObjectiveConfig]] = {
    "mlm": (tiny_v3(dropout=0.1), ObjectiveConfig()),
    "rtd": (tiny_v3(dropout=0.1), tiny_rtd("gdes")),
}


def _model(name: str) -> WholeModel:
    model = WholeModel(list_layers(*MODELS[name])).train()
    initialize(model, seed=1, std=0.1)
    set_sites(model.named_modules(), seed=3)
    return model


def _train(model: WholeModel, name: str, steps: int = 4) -> list[float]:
    config, objective = MODELS[name]
    weights = objective_of(objective).loss_weights(objective)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.01), []
    for step in range(steps):
        optimizer.zero_grad()
        terms, _ = model(**masked_batch(config, step=step))
        loss = sum((terms[term][0] * weight / 10 for term, weight in weights.items()), torch.zeros(()))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", MODELS)
def test_compiled_layers_give_the_losses_of_plain_ones_with_dropout(name: str) -> None:
    torch.compiler.reset()
    model = _model(name)
    line = select_compile(model, "layers", CPU)
    assert line is not None and line.startswith("compile layers: ")
    assert _train(model, name) == pytest.approx(_train(_model(name), name), rel=1e-6)


def test_all_layers_of_a_kind_share_a_program_and_padding_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    programs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        programs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled_layers, "BACKEND", backend)
    config = tiny_v2(dropout=0.1, num_hidden_layers=5)
    model = WholeModel(list_layers(config, ObjectiveConfig())).train()
    initialize(model, seed=1, std=0.1)
    set_sites(model.named_modules(), seed=3)
    select_compile(model, "layers", CPU)
    programs.clear()  # that of the trial
    for step in range(2):
        model(**masked_batch(config, step=step))
    assert len(programs) == 1
    bare = full_batch(config)
    del bare["attention_mask"]
    model(**bare)
    assert len(programs) == 2


def test_names_of_parameters_and_modules_stay() -> None:
    plain, compiled = _model("rtd"), _model("rtd")
    select_compile(compiled, "layers", CPU)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in compiled.named_modules()] == [name for name, _ in plain.named_modules()]


def test_only_training_runs_what_was_compiled_and_the_mask_decoder_never() -> None:
    model = _model("mlm")
    select_compile(model, "layers", CPU)
    layers = [module for module in model.modules() if isinstance(module, EncoderLayer)]
    assert [layer.compiled is None for layer in layers] == [False] * (len(layers) - 1) + [True]

    def fail(*_: object) -> Any:
        raise AssertionError("a compiled layer ran")

    for layer in layers[:-1]:
        layer.compiled = fail
    batch = masked_batch(MODELS["mlm"][0])
    with torch.no_grad():
        model(**batch)
    model.eval()(**batch)
    with pytest.raises(AssertionError, match="a compiled layer ran"):
        model.train()(**batch)


def test_where_torch_cannot_compile_the_run_ends_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_graph: object, _inputs: object) -> Any:
        raise RuntimeError("No working C++ compiler found")

    torch.compiler.reset()
    monkeypatch.setattr(compiled_layers, "BACKEND", broken)
    message = (
        r"compile=layers: torch.compile failed with RuntimeError: No working C\+\+.*apt install g\+\+.*compile=none"
    )
    with pytest.raises(ConfigError, match=message):
        select_compile(_model("mlm"), "layers", CPU)
    monkeypatch.setattr(compiled_layers, "BACKEND", "eager")
    with pytest.raises(ConfigError, match="does not work on another rank"):
        select_compile(_model("mlm"), "layers", CPU, agree=lambda _: 1.0)
    assert select_compile(_model("mlm"), "none", CPU) is None
