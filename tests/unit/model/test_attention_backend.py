"""The switch between implementations of attention: equal training, less memory, and what it refuses.

Shapes: B batch · L length · D hidden size.
"""

import pytest
import torch
from stopwatch import KeptTensors

from megadeberta.config.model import ModelConfig
from megadeberta.errors import ConfigError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.attention import DisentangledSelfAttention, QueryStream
from megadeberta.model.attention_backend import select_attention, select_residual_norm
from megadeberta.model.carry import Carry, RelativePositions
from megadeberta.model.dropout import Draws, set_sites
from megadeberta.model.initialize import initialize
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


def test_triton_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    with pytest.raises(ConfigError, match=r"training\.attention=triton: .*not installed.*megadeberta\[gpu\]"):
        select_attention(torch.nn.Module(), "triton", CUDA)


def test_triton_on_a_cpu_names_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"training\.attention=triton: it needs a GPU.*TRITON_INTERPRET=1"):
        select_attention(torch.nn.Module(), "triton", CPU)


def test_the_mask_decoder_may_have_a_backend_of_its_own() -> None:
    model = WholeModel(token_model_layers(tiny_v3()))
    select_attention(model, "cpu", CPU, rows="reference")
    found = {name: module.backend for name, module in model.named_modules() if hasattr(module, "backend")}
    assert set(found.values()) == {"cpu", "reference"}
    assert {name for name in found if found[name] == "reference"} == {name for name in found if "mask_decoder" in name}


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
