"""The switch between implementations of attention: equal training, less memory, and what it refuses.

Shapes: B batch · L length · D hidden size.
"""

import math

import pytest
import torch

from benchmarks.stopwatch import KeptTensors
from megadeberta.config.model import ModelConfig
from megadeberta.errors import ConfigError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model import kernel_trial
from megadeberta.model.attention import DisentangledSelfAttention, QueryStream
from megadeberta.model.attention_backend import choose_attention, select_attention, select_residual_norm
from megadeberta.model.carry import Carry, RelativePositions
from megadeberta.model.dropout import Draws, set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.kernel_trial import Trial, try_backend
from megadeberta.model.layer import EncoderLayer
from megadeberta.model.whole import WholeModel
from megadeberta.ops.attention import backends
from megadeberta.ops.attention.mask import padding_mask
from megadeberta.ops.attention.relative_position import rows_by_distance
from tests.data_fixtures import SOTU
from tests.models import tiny_v3

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _select(model: torch.nn.Module, backend: str) -> None:
    """The backend and the residual norm that goes with it."""
    select_attention(model, backend, CPU)
    select_residual_norm(model, "auto", CPU, attention=backend)


def _losses(backend: str, *, steps: int, dropout: float) -> list[float]:
    """Masked language modelling of bytes with a small model."""
    config = tiny_v3(
        vocab_size=260,
        hidden_size=48,
        num_attention_heads=3,
        intermediate_size=96,
        position_buckets=16,
        max_position_embeddings=64,
        dropout=dropout,
    )
    model = WholeModel(token_model_layers(config))
    initialize(model, seed=1, std=0.02)
    _select(model, backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.tensor(list(SOTU.read_bytes()[: steps * 4 * 64])).view(steps, 4, 64) + 4
    generator = torch.Generator().manual_seed(2)
    set_sites(model.named_modules(), seed=3)
    losses = []
    for step, clean in enumerate(data):
        positions = torch.rand(4, 64, generator=generator).topk(10).indices.sort().values
        masked, numbers = clean.scatter(1, positions, 3), (step << 32) + torch.arange(4)
        terms, _ = model(masked, torch.ones_like(clean), positions, clean.gather(1, positions), numbers)
        optimizer.zero_grad()
        loss_sum, count = terms["mlm_loss"]
        (loss_sum / count).backward()
        optimizer.step()
        losses.append((loss_sum / count).item())
    return losses


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_training_gives_the_same_curve_by_the_cpu_path_and_by_the_reference(dropout: float) -> None:
    reference = _losses("reference", steps=60, dropout=dropout)
    assert reference[-1] < 0.8 * reference[0]
    # fp32 rounding differs by about 1e-7 a step and grows along the trajectory.
    for backend in ("auto", "cpu-lean"):
        assert _losses(backend, steps=60, dropout=dropout) == pytest.approx(reference, rel=1e-4)


def _kept_bytes(backend: str, *, layers: int, batch: int, length: int) -> tuple[int, set[tuple[int, ...]]]:
    """Bytes that v3-base layers keep for their backward pass, parameters left out, and the shapes of what they keep."""
    config = ModelConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    stack = torch.nn.Sequential(*(EncoderLayer(config) for _ in range(layers)))
    _select(stack, backend)
    rows = rows_by_distance(length, config.position_buckets, config.relative_span)
    table = torch.randn(int(rows[-1] - rows[0]) + 1, config.hidden_size, requires_grad=True)
    carry = Carry(
        torch.zeros(batch, length, dtype=torch.int64),
        torch.ones(batch, length, dtype=torch.bool),
        relative=RelativePositions(table, rows - rows[0]),
        hidden=torch.randn(batch, length, config.hidden_size, requires_grad=True),
    )
    with KeptTensors() as kept:
        last = stack(carry)
        return kept.bytes() - last.hidden.nbytes, kept.shapes()


def test_a_lean_layer_keeps_40_kib_a_token_and_no_score_matrix() -> None:
    batch, length = 2, 512
    one, shapes = _kept_bytes("cpu-lean", layers=1, batch=batch, length=length)
    two, _ = _kept_bytes("cpu-lean", layers=2, batch=batch, length=length)
    # The difference: what is kept once for all layers, such as the relative table, is in both.
    assert (two - one) / (batch * length) <= 40 * 1024
    assert not [shape for shape in shapes if shape[-2:] == (length, length)]
    _, shapes = _kept_bytes("cpu", layers=1, batch=1, length=128)
    assert [shape for shape in shapes if shape[-2:] == (128, 128)], "what the fast mode keeps is of that shape"


def _choice(switch: str, device: torch.device, outcome: Trial | None = None, **options: object) -> tuple[str, str]:
    def trial(candidate: str, rival: str) -> Trial:
        assert outcome is not None, "no trial is needed"
        assert (candidate, rival) == ("triton", "reference")
        return outcome

    choice = choose_attention(switch, device, trial, **options)
    return choice.backend, choice.line


def test_the_log_says_which_implementation_was_taken_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _choice("auto", CPU) == ("cpu", "attention auto: cpu on cpu")
    assert _choice("reference", CUDA) == ("reference", "attention reference: reference on cuda")
    assert _choice("triton", CUDA) == ("triton", "attention triton: triton on cuda")
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    assert _choice("auto", CUDA) == (
        "reference",
        "attention auto: reference on cuda; triton: Triton is not installed (pip install 'megadeberta[gpu]')",
    )


@pytest.mark.parametrize(
    ("outcome", "taken", "reason"),
    [
        (Trial(0.25), "triton", "triton is right here and takes 0.25 of the time of reference"),
        (Trial(1.3), "reference", "triton is right here and takes 1.30 of the time of reference"),
        (Trial(math.inf, "failed"), "reference", "triton: failed"),
    ],
)
def test_auto_on_a_gpu_takes_the_kernels_where_they_are_right_and_faster(
    monkeypatch: pytest.MonkeyPatch, outcome: Trial, taken: str, reason: str
) -> None:
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    assert _choice("auto", CUDA, outcome) == (taken, f"attention auto: {taken} on cuda; {reason}")


def test_a_rank_where_the_kernels_are_wrong_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    backend, line = _choice("auto", CUDA, Trial(0.25), agree=lambda share: math.inf)
    assert (backend, line.split("; ")[1]) == ("reference", "triton: not right on another rank")


def _trial(*, spoil: float = 0.0, fail: bool = False) -> Trial:
    """With the CPU path in the kernels' place."""

    def select(module: torch.nn.Module, backend: str) -> None:
        if backend == "triton" and fail:
            raise RuntimeError("out of shared memory\nand more")
        _select(module, "cpu" if backend == "triton" else backend)
        if backend == "triton":
            with torch.no_grad():
                module.self_attention.dense.weight.mul_(1 + spoil)

    config = tiny_v3(hidden_size=32, position_buckets=8, max_position_embeddings=64)
    return try_backend(config, select, "triton", "reference", length=40, dtype=torch.bfloat16, device=CPU)


def test_the_trial_passes_rounding_and_finds_an_error_of_five_percent() -> None:
    good = _trial()
    assert 0 < good.ratio < math.inf
    assert not good.finding
    bad = _trial(spoil=0.05)
    assert bad.ratio == math.inf
    assert "away from the reference" in bad.finding


def test_kernels_that_do_not_compile_leave_the_reference() -> None:
    failed = _trial(fail=True)
    assert failed == Trial(math.inf, "failed with RuntimeError: out of shared memory")


def test_the_real_kernels_pass_their_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(kernel_trial, "_REPEATS", 1)
    config = tiny_v3(hidden_size=64, position_buckets=8, max_position_embeddings=64)
    found = try_backend(config, _select, "triton", "reference", length=24, dtype=torch.float32, device=CPU)
    assert not found.finding


def test_triton_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    with pytest.raises(ConfigError, match=r"training\.attention=triton: .*not installed.*megadeberta\[gpu\]"):
        select_attention(torch.nn.Module(), "triton", CUDA)


def test_triton_on_a_cpu_names_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"training\.attention=triton: it needs a GPU.*TRITON_INTERPRET=1"):
        select_attention(torch.nn.Module(), "triton", CPU)


@pytest.mark.parametrize("backend", ["cpu", "cpu-lean"])
def test_the_cpu_path_is_refused_on_a_gpu(backend: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.attention={backend}: it runs on a CPU.*cuda.*auto"):
        select_attention(torch.nn.Module(), backend, CUDA)


@pytest.mark.parametrize("share_att_key", [True, False])
def test_kernels_give_the_gradients_of_all_projections_of_hidden_states_and_table(
    monkeypatch: pytest.MonkeyPatch, share_att_key: bool
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    config = tiny_v3(
        hidden_size=64, position_buckets=8, max_position_embeddings=64, share_att_key=share_att_key, dropout=0.1
    )
    torch.manual_seed(0)
    attention = DisentangledSelfAttention(config)
    set_sites(attention.named_modules(), seed=1)
    rows = rows_by_distance(21, config.position_buckets, config.relative_span)
    shape, table = (2, 21, 64), (int(rows[-1] - rows[0]) + 1, 64)
    inputs = {"hidden": torch.randn(shape), "table": torch.randn(table), "upstream": torch.randn(shape)}

    def gradients(backend: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        attention.to(dtype).backend = backend
        hidden, table, upstream = (tensor.to(dtype).requires_grad_() for tensor in inputs.values())
        draws = Draws.of(torch.arange(2), 21)
        keys = attention.project_keys(hidden, RelativePositions(table, rows - rows[0]), draws, with_query=True)
        mask = padding_mask(torch.arange(21) < torch.tensor([[21], [15]]))
        context = attention(QueryStream(hidden, mask, draws), keys)
        leaves = {"hidden": hidden, "table": table, **dict(attention.named_parameters())}
        found = torch.autograd.grad(context, list(leaves.values()), upstream)
        return {name: gradient.double() for name, gradient in zip(leaves, found, strict=True)}

    found, right = gradients("triton", torch.float32), gradients("reference", torch.float64)
    assert ("pos_key_proj.weight" in right) != share_att_key
    for name, gradient in right.items():
        # A key's bias moves all scores of a row alike: its gradient comes from the position terms and is small.
        size = max(float(gradient.norm()), 0.1 * gradient.numel() ** 0.5)
        assert float((found[name] - gradient).norm()) <= 1e-6 * size, name
