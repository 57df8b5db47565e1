"""All ten published configurations: names, shapes and counts at full size, and outputs equal to transformers'."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from megadeberta.config.load import load_run_config
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig, RtdConfig
from megadeberta.convert.formats.config_json import from_config_json
from megadeberta.convert.formats.export_tensors import export_tensors
from megadeberta.convert.formats.families import choose_target, family_of
from megadeberta.convert.formats.family import ModelKind
from megadeberta.convert.formats.split_tensors import split_tensors, take_backbone
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.model.whole import WholeModel
from megadeberta.weights.shapes import discriminator_shapes
from tests.unit.model.published import NAMES, published_config, published_counts, published_shapes

RECIPES = Path(__file__).parents[3] / "ds_configs"
# fp32 through up to 48 layers of two implementations; outputs are of order one.
TOLERANCE = 2e-5


def our_config(values: dict[str, Any], *, mask_decoder: bool = False) -> ModelConfig:
    family = family_of(values, (), "published")
    return from_config_json(values, family, mask_decoder=mask_decoder, source="published")


def their_model(values: dict[str, Any]) -> nn.Module:
    """transformers' masked-language model, with Microsoft's head where it has one of that name."""
    family = transformers.DebertaConfig if values["model_type"] == "deberta" else transformers.DebertaV2Config
    return transformers.AutoModelForMaskedLM.from_config(family(**values, legacy=False)).eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_trains_the_published_configuration(name: str) -> None:
    recipe = load_run_config(RECIPES / f"{name}.json").model
    published = our_config(published_config(name), mask_decoder=True)
    # The recipes say 512 where the published files leave it to max_position_embeddings: the same, and stays so.
    assert recipe.max_relative_positions == published.relative_span == 512
    same = {"max_relative_positions": 512, "pos_att_type": recipe.pos_att_type, "conv_act": recipe.conv_act}
    assert recipe == published.model_copy(update=same)
    assert set(recipe.pos_att_type) == set(published.pos_att_type)  # the order has no effect
    assert not recipe.conv_kernel_size or published.conv_act == recipe.conv_act


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_counts_are_the_published_ones(name: str) -> None:
    values = published_config(name)
    config, (backbone, masked_lm) = our_config(values, mask_decoder=True), published_counts(name)
    with torch.device("meta"):
        weights = {n: torch.empty(shape) for n, shape in parameter_shapes(config, ObjectiveConfig()).items()}
        theirs = their_model(values)
    exported = _shapes(export_tensors(config, weights, choose_target(config, ModelKind.MLM)))
    wanted = published_shapes(values)
    # The mask decoder's absolute positions are in Microsoft's files; transformers ignores them.
    assert exported == wanted | {"deberta.embeddings.position_embeddings.weight": (512, config.hidden_size)}
    assert {n: tuple(p.shape) for n, p in theirs.named_parameters()} == wanted
    assert sum(map(_size, wanted.values())) == masked_lm
    assert sum(_size(shape) for n, shape in wanted.items() if n.startswith("deberta.")) == backbone
    bare = export_tensors(config, weights, choose_target(config, ModelKind.BACKBONE))
    assert _shapes(bare) == {n.removeprefix("deberta."): s for n, s in wanted.items() if n.startswith("deberta.")}


@pytest.mark.parametrize("name", [name for name in NAMES if "v3" in name])
def test_both_parts_of_a_v3_model_have_the_published_sizes(name: str) -> None:
    values = published_config(name)
    config = our_config(values, mask_decoder=True)
    hidden, (backbone, _) = config.hidden_size, published_counts(name)
    discriminator = discriminator_shapes(RtdConfig().discriminator(config))
    assert sum(map(_size, discriminator.values())) == backbone + hidden**2 + 4 * hidden + 1
    both = parameter_shapes(config, ObjectiveConfig(name="rtd"))
    half = values | {"num_hidden_layers": config.num_hidden_layers // 2}
    generator = sum(map(_size, published_shapes(half).values())) + 512 * hidden
    assert sum(_size(shape) for n, shape in both.items() if n.startswith("generator.")) == generator
    # E_delta is as large as the table that it is the difference from.
    assert sum(map(_size, both.values())) == generator + sum(map(_size, discriminator.values()))


@pytest.mark.parametrize("name", NAMES)
def test_two_layers_of_every_published_model_compute_what_transformers_does(name: str) -> None:
    _compare_outputs(published_config(name) | {"num_hidden_layers": 2, "vocab_size": 600})


@pytest.mark.campaign
@pytest.mark.parametrize("name", NAMES)
def test_every_published_model_in_full_computes_what_transformers_does(name: str) -> None:
    _compare_outputs(published_config(name))


def _compare_outputs(values: dict[str, Any]) -> None:
    """Random weights in every tensor of transformers' model; ours takes them over and must compute the same."""
    config = our_config(values)
    theirs = their_model(values)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 1:  # biases and LayerNorms are zeros and ones after transformers' initialisation
                parameter += torch.empty_like(parameter).normal_(0, 0.02, generator=generator)
    tensors, family = dict(theirs.named_parameters()), family_of(values, (), "published")
    split = split_tensors(tensors, family, config)
    taken, dropped = take_backbone(config, split, family)
    assert not dropped and not split.dropped
    with torch.device("meta"):
        ours = WholeModel(token_model_layers(config)).eval()
    ours.load_state_dict(taken | split.mlm_head, strict=False, assign=True)
    ours.get_submodule("mlm_head.decoder").weight = ours.get_parameter("embeddings.word_embeddings.weight")
    assert not any(parameter.is_meta for parameter in ours.parameters())
    ids = torch.randint(4, config.vocab_size, (2, 20), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    ids *= mask
    with torch.no_grad():
        states = theirs.deberta(input_ids=ids, attention_mask=mask)[0]
        _close(ours.encode(ids, mask), states, mask)
        _close(ours.mlm_logits(ids, mask), theirs(input_ids=ids, attention_mask=mask).logits, mask)
    del ours, theirs, split, taken, tensors
    gc.collect()


def _close(ours: Tensor, theirs: Tensor, mask: Tensor) -> None:
    real = mask.bool()
    assert theirs[real].abs().max() > 0.5
    torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=TOLERANCE)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
