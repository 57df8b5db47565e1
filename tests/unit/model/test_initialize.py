"""Initial values are a function of seed, name and row, whatever else is drawn."""

import pytest
import torch

from megadeberta.layers.catalogue import backbone_layers, token_model_layers
from megadeberta.layers.cuts import shard_slice
from megadeberta.model.initialize import ROW_BLOCK, draw_rows, fill_parameter, give_storage, initialize
from megadeberta.model.whole import WholeModel
from tests.models import tiny_v3

WORD_TABLE = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize("width", [1, 5, 16])
@pytest.mark.parametrize("rows", [1, 3, 17, ROW_BLOCK - 1])
def test_a_row_is_the_same_however_many_rows_are_drawn(rows: int, width: int) -> None:
    whole = draw_rows("name", 2, (ROW_BLOCK, width), seed=9, std=0.02)
    assert torch.equal(draw_rows("name", 2, (rows, width), seed=9, std=0.02), whole[:rows])


def test_a_longer_vocabulary_has_the_same_first_rows() -> None:
    tables = []
    for vocab_size in (70, 101, 200):
        model = WholeModel(token_model_layers(tiny_v3(vocab_size=vocab_size)))
        initialize(model, seed=3, std=0.02)
        tables.append(model.get_parameter(WORD_TABLE)[:70])
    assert torch.equal(tables[0], tables[1]) and torch.equal(tables[0], tables[2])


def test_a_parameter_has_the_same_values_in_a_model_with_other_parts() -> None:
    models = [WholeModel(specs(tiny_v3())) for specs in (backbone_layers, token_model_layers)]
    for model in models:
        torch.rand(5)  # the global generator has no part in it
        initialize(model, seed=3, std=0.02)
    for name, parameter in models[0].named_parameters():
        assert torch.equal(parameter, models[1].get_parameter(name)), name


def test_seeds_names_and_blocks_give_different_values() -> None:
    draws = [
        draw_rows(name, block, (ROW_BLOCK, 4), seed=seed, std=1.0)
        for name in ("a", "b")
        for block in (0, 1)
        for seed in (1, 2)
    ]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)


def test_matrices_are_normal_norms_are_one_and_biases_zero() -> None:
    model = WholeModel(token_model_layers(tiny_v3(vocab_size=4000, conv_kernel_size=3)))
    initialize(model, seed=1, std=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("layer_norm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            # Standard deviation of n draws: relative error 1 / sqrt(2 n), five of them.
            error = 5 / (2 * parameter.numel()) ** 0.5
            assert parameter.std().item() == pytest.approx(0.05, rel=error), name
            assert abs(parameter.mean().item()) < 5 * 0.05 / parameter.numel() ** 0.5, name
    assert model.get_parameter(WORD_TABLE)[0].abs().max() > 0, "the padding row is drawn too"


@pytest.mark.parametrize("tensor", [2, 3])
def test_a_shard_has_the_values_of_its_part_of_the_whole_parameter(tensor: int) -> None:
    model = WholeModel(token_model_layers(tiny_v3(vocab_size=203, hidden_size=48, num_attention_heads=6)))
    initialize(model, seed=3, std=0.02)
    checked = set()
    for name, whole in model.named_parameters():
        for rank in range(tensor):
            part = shard_slice(name, whole.shape, tensor=tensor, rank=rank)
            if part is None:
                continue
            mine = torch.nn.Parameter(torch.full(part.local_shape, torch.nan))
            mine.shard = part
            fill_parameter(name, mine, seed=3, std=0.02)
            assert torch.equal(mine, whole.narrow(part.dim, part.start, part.stop - part.start)), name
            checked.add((part.dim, whole.dim()))
    assert checked == {(0, 2), (1, 2), (0, 1)}


def test_a_model_from_the_meta_device_keeps_its_ties_and_gets_one_parameter_at_a_time() -> None:
    specs = token_model_layers(tiny_v3())
    plain = WholeModel(specs)
    initialize(plain, seed=3, std=0.02)
    with torch.device("meta"):
        model = WholeModel(specs)
    names = []

    def fill(name: str, parameter: torch.nn.Parameter) -> None:
        names.append(name)
        assert sum(not p.is_meta for p in model.parameters()) == len(names) - 1
        fill_parameter(name, parameter, seed=3, std=0.02)

    give_storage(model, fill)
    assert names == [name for name, _ in plain.named_parameters()]
    assert model.mlm_head.decoder.weight is model.get_parameter(WORD_TABLE)
    for name, parameter in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
