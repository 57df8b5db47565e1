"""The class that exports carry takes and returns what transformers' own does, and is what trust_remote_code gives."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, DebertaV2ForMaskedLM, pipeline

from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.modeling_megadeberta import DebertaV2ForMaskedLMWithMaskDecoder
from megadeberta.model.whole import WholeModel
from tests.unit.convert.small_models import (
    NO_MASK_DECODER,
    padded_batch,
    small_config,
    small_model,
    write_weights_folder,
)

CLASS_NAME = "DebertaV2ForMaskedLMWithMaskDecoder"
# fp32, values of order one, three layers: rounding of two orders of the same sums.
WITHIN = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def ours() -> WholeModel:
    return small_model(small_config())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ours: WholeModel, spm: Path) -> Path:
    root = tmp_path_factory.mktemp("decoder")
    export_checkpoint(write_weights_folder(root / "source", ours, small_config(), spm), root / "out")
    return root / "out"


@pytest.fixture
def model(folder: Path) -> nn.Module:
    return DebertaV2ForMaskedLMWithMaskDecoder.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return padded_batch(small_config())


@pytest.fixture(autouse=True)
def _own_module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.mark.parametrize("use_pipeline", [False, True])
def test_trust_gives_the_mask_decoder_and_its_absence_the_stock_class(
    use_pipeline: bool, folder: Path, ours: WholeModel, batch: tuple[Tensor, Tensor]
) -> None:
    def load(**trust: bool) -> nn.Module:
        if use_pipeline:
            return pipeline("fill-mask", model=str(folder), **trust).model
        return AutoModelForMaskedLM.from_pretrained(folder, **trust).eval()

    ids, mask = batch
    trusted, stock = load(trust_remote_code=True), load()
    assert type(trusted).__name__ == CLASS_NAME and type(stock) is DebertaV2ForMaskedLM
    expected = ours.mlm_logits(ids, mask)
    for loaded, is_equal in ((trusted, True), (stock, False)):
        found = loaded(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(found[mask.bool()], expected[mask.bool()], **WITHIN) is is_equal
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "DebertaV2Model"


def test_a_trusted_model_saves_a_folder_that_can_be_trusted_again(folder: Path, tmp_path: Path) -> None:
    loaded = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    loaded.save_pretrained(tmp_path / "again")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    assert type(again).__name__ == CLASS_NAME
    ids = torch.tensor([[1, 20, 30, 40, 2]])
    assert torch.equal(loaded(ids).logits, again(ids).logits)


def test_a_model_without_mask_decoder_asks_for_no_trust(tmp_path: Path, spm: Path) -> None:
    config = small_config(**NO_MASK_DECODER)
    export_checkpoint(write_weights_folder(tmp_path / "source", small_model(config), config, spm), tmp_path / "out")
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
    assert "trust_remote_code" not in (tmp_path / "out" / "README.md").read_text()


def test_outputs_have_the_form_of_the_stock_class(model: nn.Module, folder: Path, batch: tuple[Tensor, Tensor]) -> None:
    ids, mask = batch
    stock = DebertaV2ForMaskedLM.from_pretrained(folder).eval()
    labels = ids.masked_fill(mask == 0, -100)
    for options in (
        {},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"output_attentions": True, "output_hidden_states": True, "labels": labels},
    ):
        for return_dict in (True, False, None):
            found, expected = (m(ids, mask, return_dict=return_dict, **options) for m in (model, stock))
            assert type(found) is type(expected)
            if return_dict is False:
                assert len(found) == len(expected)
                found, expected = ({str(i): part for i, part in enumerate(out)} for out in (found, expected))
            assert found.keys() == expected.keys()
            for name in found:
                assert _shapes(found[name]) == _shapes(expected[name]), name
    hidden, expected = (m(ids, mask, output_hidden_states=True).hidden_states for m in (model, stock))
    assert all(torch.equal(a[mask.bool()], b[mask.bool()]) for a, b in zip(hidden, expected, strict=True))


def _shapes(value: Tensor | tuple[Tensor, ...]) -> list[torch.Size]:
    return [value.shape] if isinstance(value, Tensor) else [tensor.shape for tensor in value]


def test_embeddings_can_be_given_for_ids(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    ids, mask = batch
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(ids, mask).logits, model(inputs_embeds=embeds, attention_mask=mask).logits)
    assert torch.equal(model(ids).logits, model(inputs_embeds=embeds).logits)
    with pytest.raises(ValueError, match="both input_ids and inputs_embeds"):
        model(ids, inputs_embeds=embeds)


def test_positions_do_not_count_the_padding_on_either_side(model: nn.Module, ours: WholeModel) -> None:
    ids, mask = padded_batch(small_config())
    expected = ours.mlm_logits(ids, mask)
    for row in range(3):
        length = int(mask[row].sum())
        left, left_mask = (torch.roll(x[row : row + 1], x.size(1) - length, 1) for x in (ids, mask))
        found = model(left, left_mask).logits[0, -length:]
        torch.testing.assert_close(found, expected[row, :length], **WITHIN)


def test_positions_can_be_given(model: nn.Module) -> None:
    ids = torch.tensor([[1, 20, 30, 40, 2]])
    default = model(ids).logits
    assert torch.equal(model(ids, position_ids=torch.arange(5)[None]).logits, default)
    shifted = model(ids, position_ids=torch.arange(3, 8)[None]).logits
    assert (shifted - default).abs().max() > 1e-3
    # Tokens with positions of their own: the same as where they stand at these places behind others that are masked.
    padded = torch.tensor([[0, 0, 0, 1, 20, 30, 40, 2]])
    mask = (padded != 0).long()
    found = model(padded, mask, position_ids=torch.arange(8)[None]).logits[:, 3:]
    torch.testing.assert_close(found, shifted, **WITHIN)


@pytest.mark.parametrize(("size", "options"), [(1020, {}), (1000, {}), (1010, {"pad_to_multiple_of": 16})])
def test_the_vocabulary_can_be_resized(
    size: int, options: dict, model: nn.Module, batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    ids, mask = batch[0].clamp(max=999), batch[1]
    with torch.no_grad():
        before = model(ids, mask).logits
    table = model.resize_token_embeddings(size, mean_resizing=False, **options)
    rows = table.num_embeddings
    assert rows == model.config.vocab_size == (1024 if options else size)
    after = model(ids, mask).logits.detach()
    kept = min(rows, before.size(-1))
    assert after.size(-1) == rows
    torch.testing.assert_close(after[..., :kept], before[..., :kept], **WITHIN)
    loss = model(ids, mask, labels=torch.full_like(ids, rows - 1)).loss
    loss.backward()
    assert model.lm_predictions.lm_head.bias.grad[rows - 1] != 0
    model.save_pretrained(tmp_path / "resized")
    loaded, report = DebertaV2ForMaskedLMWithMaskDecoder.from_pretrained(tmp_path / "resized", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(loaded.eval()(ids, mask).logits, after)


def test_checkpointed_activations_give_the_same_gradients(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    ids, mask = batch
    labels = ids.masked_fill(mask == 0, -100)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(ids, mask, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expected = gradients()
    model.gradient_checkpointing_enable()
    model.train()
    found = gradients()
    assert found.keys() == expected.keys() and "deberta.embeddings.position_embeddings.weight" in found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6)
