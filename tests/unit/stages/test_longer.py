"""Weights for longer sequences: at the trained length nothing changes, beyond it only trained rows are read."""

import pytest
import torch

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.model.whole import WholeModel
from megadeberta.stages.longer import lengthen, repeat_positions, trained_rows
from megadeberta.stages.longer_model import longer_model
from tests.models import VARIANTS, masked_batch, random_model, tiny_rtd, tiny_v3

TRAINED, LENGTH = 12, 30


def _lengthened(model: WholeModel, config: ModelConfig, trained: int = TRAINED) -> WholeModel:
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    lengthen(weights, config, ObjectiveConfig(), trained=trained, length=LENGTH)
    longer = WholeModel(list_layers(longer_model(config, LENGTH), ObjectiveConfig())).double().eval()
    longer.load_state_dict(weights, strict=False)  # a tied weight is its owner's
    return longer


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_the_trained_length_the_loss_is_what_it_was(variant: str) -> None:
    config = tiny_v3(**VARIANTS[variant])
    model = random_model(config)
    longer = _lengthened(model, config)
    batch = masked_batch(config, samples=3)
    with torch.no_grad():
        before, after = (each(**batch)[0]["mlm_loss"] for each in (model, longer))
        far, _ = longer(**masked_batch(config, samples=2, length=LENGTH))
    assert torch.equal(before[0], after[0])
    assert far["mlm_loss"][0].isfinite()


@pytest.mark.parametrize("variant", ["v3", "linear distances", "v1"])
def test_no_row_that_was_never_trained_is_read(variant: str) -> None:
    config = tiny_v3(**VARIANTS[variant])
    batch = masked_batch(config, samples=2, length=LENGTH)
    losses = []
    for value in (3.0, -5.0):
        model = random_model(config)
        with torch.no_grad():
            # Row 0 is read by no distance below the span: a sequence of 12 tokens leaves it as it was drawn.
            model.get_parameter("relative.embedding.weight")[0] = value
            losses.append(_lengthened(model, config)(**batch)[0]["mlm_loss"][0])
    assert torch.equal(*losses)


def test_tables_that_are_larger_than_the_trained_length_are_filled_from_it() -> None:
    config = tiny_v3(max_position_embeddings=40, position_buckets=-1)
    assert trained_rows(config, TRAINED) == [29] * 29 + list(range(29, 52)) + [51] * 28
    table = torch.arange(40.0).unsqueeze(1)
    found = repeat_positions(table, trained=6, rows=40).flatten().tolist()
    assert found[:12] == [0, 1, 2, 3, 4, 5, 2, 3, 4, 1, 2, 3]
    assert set(found[6:]) == {1, 2, 3, 4}


def test_distances_keep_their_rows() -> None:
    config = tiny_v3()
    assert longer_model(config, LENGTH).relative_span == config.relative_span == 12
    assert trained_rows(config, TRAINED) == [1, *range(1, 12)]


def test_differences_from_the_generators_table_are_repeated_as_it_is() -> None:
    config = tiny_v3(position_biased_input=True, enhanced_mask_decoder=False)
    objective = tiny_rtd("gdes")
    model = WholeModel(list_layers(config, objective))
    weights = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    base, delta = (f"{part}.embeddings.position_embeddings" for part in ("generator", "discriminator"))
    whole = weights[f"{base}.weight"] + weights[f"{delta}.delta"]
    notes = lengthen(weights, config, objective, trained=TRAINED, length=LENGTH)
    assert {f"{base}.weight", f"{delta}.delta"} <= notes.keys()
    longer = weights[f"{base}.weight"] + weights[f"{delta}.delta"]
    assert torch.equal(longer, repeat_positions(whole, trained=TRAINED, rows=LENGTH))
