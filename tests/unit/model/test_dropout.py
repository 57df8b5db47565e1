"""Dropout in the whole model: a function of the seed, the layer's name and the sample's number, of nothing else."""

import pytest
import torch
from torch import Tensor

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.model.dropout import AttentionDropout, Draws, HiddenDropout, set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from tests.models import masked_batch, tiny_v2

CONFIG = tiny_v2(num_hidden_layers=4, dropout=0.3, initializer_range=0.3)
BATCH = masked_batch(CONFIG, step=5)


def _model(objective: str = "mlm", *, seed: int = 1) -> WholeModel:
    model = WholeModel(list_layers(CONFIG, ObjectiveConfig(name=objective)))
    initialize(model, seed=1, std=CONFIG.initializer_range)
    set_sites(model.named_modules(), seed=seed)
    return model.double()


def _losses(model: WholeModel, batch: dict[str, Tensor]) -> dict[str, float]:
    return {name: total.item() for name, (total, _) in model(**batch)[0].items() if name.endswith("loss")}


@pytest.mark.parametrize("objective", ["mlm", "rtd"])
def test_samples_lose_the_same_elements_however_the_batch_is_cut(objective: str) -> None:
    model = _model(objective)
    whole = _losses(model, BATCH)
    order = torch.tensor([2, 0, 3, 1])
    rows = [{name: tensor[i : i + 1] for name, tensor in BATCH.items()} for i in order]
    torch.manual_seed(99)
    parts = [_losses(model, row) for row in rows]
    for name, total in whole.items():
        # The samples of the generator are the same too, or the discriminator's loss would be another.
        assert sum(part[name] for part in parts) == pytest.approx(total, rel=1e-9)


def test_draws_differ_between_seeds_steps_samples_and_passes() -> None:
    model = _model()
    same_tokens = {name: tensor[:1].expand(4, -1) if tensor.dim() > 1 else tensor for name, tensor in BATCH.items()}
    base = _losses(model, BATCH)["mlm_loss"]
    assert _losses(model, BATCH)["mlm_loss"] == base
    assert _losses(_model(seed=2), BATCH)["mlm_loss"] != base
    assert _losses(model, BATCH | {"sample_numbers": (6 << 32) + torch.arange(4)})["mlm_loss"] != base
    singles = [_losses(model, {n: t[i : i + 1] for n, t in same_tokens.items()})["mlm_loss"] for i in range(4)]
    assert len(set(singles)) == 4
    draws = Draws.of(BATCH["sample_numbers"], 12)
    first, second = (draws.at(BATCH["masked_positions"], stream=n) for n in (0, 1))
    assert (first.rows != second.rows).all() and first.step != second.step


def test_every_site_has_a_key_of_its_own() -> None:
    modules = [m for m in _model("rtd").modules() if isinstance(m, HiddenDropout | AttentionDropout)]
    assert len(modules) > 20 and len({module.site for module in modules}) == len(modules)


def test_evaluation_draws_nothing() -> None:
    model = _model().eval()
    base = _losses(model, BATCH)
    assert _losses(model, {name: tensor for name, tensor in BATCH.items() if name != "sample_numbers"}) == base


def test_dropout_without_sample_numbers_is_refused() -> None:
    batch = {name: tensor for name, tensor in BATCH.items() if name != "sample_numbers"}
    with pytest.raises(ValueError, match=r"needs sample_numbers \[B\].*or call eval\(\) first"):
        _model()(**batch)
