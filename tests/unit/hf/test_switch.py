"""Switching a model's attention: what changes, what does not, what undoes it, what is refused with nothing changed."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, BertConfig, BertModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from megadeberta.errors import ConfigError
from megadeberta.hf import attention, backend, switch, use_eager_attention, use_fast_attention
from megadeberta.ops.attention import interface
from megadeberta.ops.attention.backends import BACKENDS, Backend
from megadeberta.ops.attention.reference import reference_attention
from tests.unit.hf.small_models import CASES, build, distance, padded, results


def _classes(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("case", CASES)
def test_it_is_undone_without_a_trace(case: str) -> None:
    model = build(case)
    classes, names = _classes(model), [set(vars(module)) for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert use_fast_attention(use_fast_attention(model)) is model
    switched = [type(module).__name__ for module in model.modules() if isinstance(module, attention.FastAttention)]
    assert len(switched) == 2 and _classes(model) != classes
    assert list(model.state_dict()) == list(state)
    assert use_eager_attention(use_eager_attention(model)) is model
    assert _classes(model) == classes
    assert [set(vars(module)) for module in model.modules()] == names


def test_saved_files_are_those_of_eager_and_load_into_it(tmp_path: Path) -> None:
    model, inputs = build("v3", torch.float32), padded(12)
    model.save_pretrained(tmp_path / "eager")
    use_fast_attention(model).save_pretrained(tmp_path / "fast")
    for path in (tmp_path / "eager").iterdir():
        assert (tmp_path / "fast" / path.name).read_bytes() == path.read_bytes()
    loaded = use_fast_attention(AutoModelForMaskedLM.from_pretrained(tmp_path / "fast"))
    assert distance(results(loaded, inputs)[0], results(model, inputs)[0]) == 0


def test_a_model_inside_another_is_found_and_the_backend_can_change() -> None:
    holder = nn.ModuleDict({"encoder": build("v1").base_model, "head": nn.Linear(48, 2)})
    use_fast_attention(holder, backend="cpu-lean")
    (encoder,) = (module for module in holder.modules() if isinstance(module, attention.FastEncoder))
    assert encoder.choice.name == encoder.layer[1].attention.self.choice.name == "cpu-lean"
    use_fast_attention(holder)
    assert encoder.choice.name == encoder.layer[1].attention.self.choice.name == "cpu"


def test_same_seed_same_dropout_and_every_layer_and_call_its_own() -> None:
    model, inputs = use_fast_attention(build("v3", dropout=0.3)), padded(20)

    def logits(seed: int | None = None) -> torch.Tensor:
        if seed is not None:
            torch.manual_seed(seed)
        return model(**inputs).logits.detach()

    first, second = logits(7), logits()
    assert torch.equal(logits(7), first) and torch.equal(logits(), second)
    assert not torch.equal(first, second) and not torch.equal(logits(8), first)
    seeds = []
    for layer in model.base_model.encoder.layer:
        attend = layer.attention.self
        draw = attend._draw(torch.zeros(3, 4, 20, 12))
        seeds.append(int(draw.seed))
    assert len(set(seeds)) == 2
    model.eval()
    assert distance([logits()], [use_eager_attention(model)(**inputs).logits.detach()]) < 1e-13


def test_dropout_has_its_rate_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    model = use_fast_attention(build("v3", dropout=0.1, num_hidden_layers=1))
    attend = model.base_model.encoder.layer[0].attention.self
    with torch.no_grad():
        attend.value_proj.weight.zero_()
        attend.value_proj.bias.fill_(1.0)
    hidden = torch.randn(64, 40, 48, dtype=torch.float64)
    distances, table = model.base_model.encoder.get_rel_pos(hidden), model.base_model.encoder.get_rel_embedding()
    itself = torch.eye(40, dtype=torch.bool)[None, None]  # one weight a row: the context tells whether it was kept
    context, _ = attend(hidden, itself, relative_pos=distances, rel_embeddings=table)
    weights = context.detach().unflatten(-1, (4, 12))[..., 0]  # of 64 x 40 x 4
    rate, scale = 26 / 256, 256 / 230
    assert set(weights.unique().tolist()) == {0.0, scale}
    deviation = (rate * (1 - rate) / weights.numel()) ** 0.5
    assert abs(float((weights == 0).double().mean()) - rate) < 4 * deviation


def test_checkpointing_draws_the_same_dropout_again() -> None:
    model, inputs = use_fast_attention(build("v3", dropout=0.2)), padded(15)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(results(model, inputs)[1])
        model.gradient_checkpointing_enable()
    assert distance(found[1], found[0]) < 1e-13


def test_dropout_that_256_steps_cannot_express_runs_eager_with_a_warning() -> None:
    model = use_fast_attention(build("v3", dropout=0.001))
    with pytest.warns(UserWarning, match=r"attention dropout 0\.001"):
        model(**padded(8))


@pytest.mark.parametrize(
    ("case", "changes", "problem"),
    [
        ("v1", {"talking_head": True}, "talking heads"),
        ("v1", {"pos_att_type": "c2p|p2c|p2p"}, r"pos_att_type=c2p\|p2c\|p2p"),
    ],
)
def test_models_that_the_op_cannot_compute_are_refused_and_left_alone(
    case: str, changes: dict[str, object], problem: str
) -> None:
    model = build(case, **changes)
    classes = _classes(model)
    with pytest.raises(ConfigError, match=problem):
        use_fast_attention(model)
    assert _classes(model) == classes


def test_other_models_and_other_attention_are_refused_by_name() -> None:
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9))
    with pytest.raises(ConfigError, match="BertModel holds no DeBERTa encoder"):
        use_fast_attention(bert)

    class Other(DisentangledSelfAttention):
        pass

    model = build("v3")
    model.base_model.encoder.layer[1].attention.self.__class__ = Other
    with pytest.raises(ConfigError, match=r"Other is neither transformers' attention nor megadeberta's"):
        use_fast_attention(model)
    assert not any(isinstance(module, attention.FastAttention | attention.FastEncoder) for module in model.modules())


@pytest.mark.parametrize("change", [use_fast_attention, use_eager_attention])
def test_a_forward_that_a_hook_replaced_is_refused(change: object) -> None:
    model = build("v3")
    if change is use_eager_attention:
        use_fast_attention(model)
    attend = model.base_model.encoder.layer[0].attention.self
    attend.forward = attend.forward
    with pytest.raises(ConfigError, match="replaced in the instance, as hooks of accelerate do"):
        change(model)


def test_backends_that_do_not_exist_or_do_not_run_here_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("v3")
    with pytest.raises(ConfigError, match="attention backend 'flash' does not exist; known: auto, reference, cpu"):
        use_fast_attention(model, backend="flash")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="attention backend triton: it needs a GPU"):
        use_fast_attention(model, backend="triton")
    assert not any(isinstance(module, attention.FastEncoder) for module in model.modules())


def test_transformers_that_is_missing_or_has_another_deberta_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("v3")
    with monkeypatch.context() as patch:
        patch.setattr(attention.FastAttentionV1, "EAGER", nn.Linear)
        with pytest.raises(ConfigError, match=r"has another DeBERTa .*Linear takes input"):
            use_fast_attention(model)
    monkeypatch.setattr(switch, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="transformers is not installed"):
        use_fast_attention(model)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log of choices that try a backend, as on a GPU, with another one of the CPU in the kernels' place."""
    monkeypatch.setattr(backend, "backends_to_try", lambda device_type: [BACKENDS["cpu-lean"]])
    caplog.set_level("INFO", logger="megadeberta.hf.backend")
    return caplog


@pytest.mark.parametrize("case", CASES)
def test_auto_tries_a_call_of_the_models_shape(case: str, trials: pytest.LogCaptureFixture) -> None:
    model = use_fast_attention(build(case, torch.float32, dropout=0.1))
    chosen = model.base_model.encoder.choice.name
    (line,) = trials.messages
    assert line.startswith(f"attention auto: {chosen} on cpu; cpu-lean: right here, in ")


def test_a_trial_runs_inside_inference_and_takes_no_backend_that_is_wrong_or_fails(
    trials: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("v3", torch.float32)

    def wrong(query: torch.Tensor, *content: torch.Tensor, **options: object) -> torch.Tensor:
        return reference_attention(query * 1.01, *content, **options)

    def broken(*content: torch.Tensor, **options: object) -> torch.Tensor:
        raise RuntimeError("no such instruction")

    for implementation, finding in (
        (wrong, "the output is "),
        (broken, "failed with RuntimeError: no such instruction"),
    ):
        monkeypatch.setattr(backend, "backends_to_try", lambda device_type: [BACKENDS["odd"]])
        monkeypatch.setitem(BACKENDS, "odd", Backend("odd", "a test's", implementation))
        interface._LOADED.pop("odd", None)
        trials.clear()
        with torch.inference_mode():
            use_fast_attention(model)
        assert model.base_model.encoder.choice.name == "cpu"
        assert f"attention auto: cpu on cpu; odd: {finding}" in trials.messages[0]


def test_a_model_that_moves_to_another_device_chooses_again(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {name: tensor.to("meta") for name, tensor in padded(5).items()}
    model = use_fast_attention(build("v3")).to("meta")
    encoder = model.base_model.encoder
    model(**inputs)
    assert (encoder.choice.device_type, encoder.choice.name) == ("meta", "reference")
    explicit = use_fast_attention(build("v3"), backend="cpu").to("meta")
    with pytest.raises(ConfigError, match="attention backend cpu: it runs on a CPU only"):
        explicit(**inputs)


def test_only_the_module_that_is_loaded_on_use_imports_transformers() -> None:
    folder = Path(switch.__file__).parent
    importers = set()
    for path in folder.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
                roots = {name.split(".")[0] for name in names}
                assert roots <= {"megadeberta", "torch", "transformers", *sys.stdlib_module_names}, path
                importers |= {
                    path.name for name in names if name.startswith(("transformers", "megadeberta.hf.attention"))
                }
    assert importers == {"attention.py"}
