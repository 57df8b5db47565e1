"""The fast attention gives the outputs and gradients of transformers' eager one, in every model that it takes."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from megadeberta.convert.formats.modeling_megadeberta import DebertaV2ForMaskedLMWithMaskDecoder
from megadeberta.hf import use_eager_attention, use_fast_attention
from megadeberta.ops.attention import triton_plan
from tests.unit.hf.small_models import CASES, LONGEST, both, build, distance, padded, results

ROUNDING = 1e-13  # of float64, through two layers and back


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_eager(case: str) -> None:
    model = build(case)
    longest = LONGEST if model.config.position_biased_input else LONGEST + 15
    for length in (5, longest):
        apart = both(model, padded(length), use_eager_attention, use_fast_attention)
        assert max(apart) < ROUNDING, f"{length} tokens"


@pytest.mark.parametrize("case", ["v3", "v2 with convolution", "v1"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_lower_precision_stays_within_the_bars(case: str, dtype: torch.dtype, bound: float) -> None:
    # A small model of a usual scale: with the large weights of the other tests eager alone is further from the truth.
    model = build(case).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.5
    assert max(both(model, padded(21), use_eager_attention, use_fast_attention)) < bound


@pytest.mark.parametrize("backend", ["reference", "cpu", "cpu-lean", "triton"])
def test_every_backend_gives_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_plan, "BLOCK", 32)  # the interpreter's time is the size of the tiles
    model = build("v3", torch.float32, num_hidden_layers=1, hidden_size=32, num_attention_heads=2)
    apart = both(model, padded(9), use_eager_attention, partial(use_fast_attention, backend=backend))
    assert max(apart) < 1e-5


@pytest.mark.parametrize("case", ["v3", "v1"])
def test_masks_of_other_shapes_give_what_eager_gives(case: str) -> None:
    model = build(case)
    encoder = model.base_model.encoder
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(3, 11, 48, dtype=torch.float64, generator=generator)
    pairs = torch.rand(3, 11, 11, generator=generator) > 0.4
    pairs[0, 3] = False  # a row that sees nothing
    keys = torch.arange(11) < torch.tensor([[[[11]]], [[[7]]], [[[0]]]])  # a sequence without any token, too
    for mask in (pairs, pairs.unsqueeze(1), pairs[:1].unsqueeze(1), keys, keys.float(), torch.ones(3, 11)):
        found = [switch(model) and encoder(hidden, mask).last_hidden_state for switch in SWITCHES]
        torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_no_mask_and_embedded_inputs_give_what_eager_gives() -> None:
    model = build("v3")
    embedded = torch.randn(2, 13, 48, dtype=torch.float64)
    found = [switch(model)(inputs_embeds=embedded).logits for switch in SWITCHES]
    torch.testing.assert_close(*found, rtol=0, atol=1e-11)


@pytest.mark.parametrize("case", ["v3", "v1"])
def test_calls_that_ask_for_the_weights_run_eager_and_warn_once(case: str) -> None:
    model, inputs = build(case), padded(9)
    expected = use_eager_attention(model)(**inputs, output_attentions=True)
    use_fast_attention(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        found = [model(**inputs, output_attentions=True) for _ in range(2)]
    assert len(caught) == 1 and "output_attentions=True" in str(caught[0].message)
    torch.testing.assert_close(found[1].logits, expected.logits, rtol=0, atol=0)
    for weights, wanted in zip(found[1].attentions, expected.attentions, strict=True):
        torch.testing.assert_close(weights, wanted, rtol=0, atol=0)


def test_a_mask_per_head_and_positions_of_the_caller_run_eager_with_a_warning_that_names_them() -> None:
    model = build("v2, c2p alone")  # with p2c eager takes no fewer queries than keys
    encoder = model.base_model.encoder
    hidden = torch.randn(2, 7, 32, dtype=torch.float64)
    per_head = torch.rand(2, 4, 7, 7) > 0.3
    reversed_positions = torch.arange(7)[None, None, :] - torch.arange(7)[None, :, None]
    calls = {
        r"attention mask has the shape \[2, 4, 7, 7\]": lambda: encoder(hidden, per_head),
        "relative positions are the caller's": lambda: encoder(
            hidden, torch.ones(2, 7), relative_pos=reversed_positions
        ),
        "query states have another shape": lambda: encoder(hidden, torch.ones(2, 1, 5, 7), query_states=hidden[:, :5]),
    }
    for reason, call in calls.items():
        expected = use_eager_attention(model) and call().last_hidden_state
        use_fast_attention(model)
        with pytest.warns(UserWarning, match=reason):
            found = call().last_hidden_state
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_mask_decoder_of_an_export_takes_it_too() -> None:
    config = build("v3").config
    torch.manual_seed(0)
    model = DebertaV2ForMaskedLMWithMaskDecoder(config).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no call of eager
        assert max(both(model, padded(14), use_eager_attention, use_fast_attention)) < ROUNDING


def test_adapters_in_the_place_of_projections_are_called() -> None:
    class Adapter(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.down, self.up = inner, nn.Linear(48, 3), nn.Linear(3, 48)

        def forward(self, hidden: Tensor) -> Tensor:
            return self.inner(hidden) + self.up(self.down(hidden))

    model = build("v3")
    for layer in model.base_model.encoder.layer:
        layer.attention.self.query_proj = Adapter(layer.attention.self.query_proj).double()
        layer.attention.self.value_proj = Adapter(layer.attention.self.value_proj).double()
    assert max(both(model, padded(12), use_eager_attention, use_fast_attention)) < ROUNDING


def test_autocast_gives_what_eager_gives_within_the_bar() -> None:
    model = build("v3", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        apart = both(model, padded(20), use_eager_attention, use_fast_attention)
    assert max(apart) < 2e-2


def test_autocast_works_for_v1_where_eager_of_transformers_5_does_not() -> None:
    model, inputs = build("v1", torch.float32), padded(20)
    expected = use_eager_attention(model)(**inputs).logits
    use_fast_attention(model)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = results(model, inputs)
    assert found[0].dtype == torch.bfloat16
    assert distance(found, [expected.detach()]) < 3e-2  # all of bfloat16, not of the attention alone


def test_torch_compile_takes_the_encoder_as_one_graph_with_dropout() -> None:
    torch.compiler.reset()
    encoder = use_fast_attention(build("v3", num_hidden_layers=1, dropout=0.1)).base_model.encoder
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    hidden = torch.randn(3, 9, 48, dtype=torch.float64, requires_grad=True)
    found = []
    for each in (encoder, compiled):
        torch.manual_seed(3)
        output = each(hidden, padded(9)["attention_mask"]).last_hidden_state
        found.append([output.detach(), *torch.autograd.grad(output.cos().sum(), [hidden, *encoder.parameters()])])
    assert distance(found[1], found[0]) < ROUNDING


def test_copies_have_it_and_are_independent() -> None:
    model = use_fast_attention(build("v3"))
    twin: PreTrainedModel = copy.deepcopy(model)
    use_eager_attention(model)
    assert type(twin.base_model.encoder.layer[0].attention.self).__name__ == "FastAttentionV2"
    assert distance(results(twin, padded(8))[1], results(model, padded(8))[1]) < ROUNDING


SWITCHES = (use_eager_attention, use_fast_attention)
