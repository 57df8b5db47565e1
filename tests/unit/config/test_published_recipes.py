"""The recipes of the published models: they load, and their sizes are the published ones, to the parameter."""

import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.config.load import load_run_config
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.blend_history import SourceFacts, fractions_of
from megadeberta.layers.catalogue import backbone_layers
from megadeberta.layers.objectives import list_layers
from megadeberta.layers.shapes import count_parameters, parameter_shapes, shapes_of
from megadeberta.model.whole import WholeModel
from megadeberta.ops.attention.backends import planned_backend
from megadeberta.plan.layout import Layout
from megadeberta.plan.memory import fullest, memory_of_stages
from megadeberta.plan.stages import Recipe
from megadeberta.preflight.blend import planned_blend
from megadeberta.preflight.validate import validate_run
from tests.models import INPUT_POSITIONS, V1, V2, tiny_rtd, tiny_v3

RECIPES = Path(__file__).parents[3] / "ds_configs"
# Backbone with the word table, as transformers counts it.
BACKBONES = {
    "deberta-base": 138_601_728,
    "deberta-large": 405_163_008,
    "deberta-xlarge": 757_804_032,
    "deberta-v2-xlarge": 884_593_152,
    "deberta-v2-xxlarge": 1_564_549_632,
    "deberta-v3-xsmall": 70_682_112,
    "deberta-v3-small": 141_304_320,
    "deberta-v3-base": 183_831_552,
    "deberta-v3-large": 434_012_160,
    "mdeberta-v3-base": 278_218_752,
}
MASKED_LM = {
    "deberta-base": 139_244_121,
    "deberta-large": 406_264_921,
    "deberta-xlarge": 758_905_945,
    "deberta-v2-xlarge": 887_085_156,
    "deberta-v2-xxlarge": 1_567_041_636,
    "deberta-v3-xsmall": 70_958_820,
    "deberta-v3-small": 142_024_548,
    "deberta-v3-base": 184_551_780,
    "deberta-v3-large": 435_191_908,
    "mdeberta-v3-base": 279_061_880,
}
GENERATORS = {  # backbone alone
    "deberta-v3-xsmall": 60_035_328,
    "deberta-v3-small": 120_040_704,
    "deberta-v3-base": 141_304_320,
    "deberta-v3-large": 282_857_472,
}
# name: learning rate, batch, steps, second beta
PAPER = {
    "deberta-base": (2e-4, 2048, 1_000_000, 0.999),
    "deberta-base-ablation": (1e-4, 256, 1_000_000, 0.999),
    "deberta-large": (2e-4, 2048, 1_000_000, 0.999),
    "deberta-v2-xxlarge": (1.5e-4, 2048, 1_000_000, 0.999),
    "deberta-v3-small": (5e-4, 8192, 500_000, 0.98),
    "deberta-v3-base": (5e-4, 8192, 500_000, 0.98),
    "deberta-v3-large": (3e-4, 8192, 500_000, 0.98),
}


def _count_backbone(model: ModelConfig) -> int:
    """The encoder, as transformers' model without a head has it: the last layer is one of the encoder's there."""
    encoder = model.model_copy(update={"enhanced_mask_decoder": False})
    return sum(math.prod(shape) for shape in shapes_of(backbone_layers(encoder)).values())


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_has_the_published_number_of_parameters(name: str) -> None:
    config = load_run_config(RECIPES / f"{name}.json")
    assert config.name == name
    assert config.training.output_dir == Path("runs") / name
    assert _count_backbone(config.model) == BACKBONES[name]
    assert config.model.max_relative_positions == 512  # stored, so that a longer model keeps its buckets
    positions = 512 * config.model.hidden_size
    masked_lm = count_parameters(config.model, ObjectiveConfig())["model"]
    assert masked_lm - positions == MASKED_LM[name]


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_is_the_published_one(name: str) -> None:
    config = load_run_config(RECIPES / f"{name}.json")
    generator = config.objective.rtd.generator(config.model)
    assert generator.num_hidden_layers == config.model.num_hidden_layers // 2
    assert _count_backbone(generator) == GENERATORS[name]


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_those_of_the_paper(name: str) -> None:
    config = load_run_config(RECIPES / f"{name}.json")
    found = (config.optimizer.lr, config.engine.global_batch, config.training.steps, config.optimizer.beta2)
    assert found == PAPER[name]
    assert (config.schedule.warmup_steps, config.data.sequence_length) == (10_000, 512)
    assert config.deepspeed["gradient_clipping"] == 1.0
    if "v3" in name:
        assert config.objective.rtd.loss_weight == 50


def test_the_multilingual_blend_gives_a_small_language_its_part() -> None:
    config = load_run_config(RECIPES / "mdeberta-v3-base-blend.json")
    data = config.data
    tokens = dict.fromkeys(data.train_prefixes, 10**7) | {"en": 10**11}
    facts = {name: SourceFacts(name, count, count // 510) for name, count in tokens.items()}
    (segment,) = planned_blend(config, facts)
    fractions = fractions_of(segment)
    assert fractions["en"] / fractions["sw"] == pytest.approx(10_000**0.3, rel=0.01)
    assert set(data.valid_prefixes) <= set(data.train_prefixes)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_recipe_is_valid_on_eight_ranks_and_fits_80_gib(path: Path) -> None:
    config = load_run_config(path)
    world = 8 if config.engine.global_batch % 64 == 0 and "on one GPU" not in config.description else 1
    layout = Layout.of_run(config, *validate_run(config, world_size=world, source=str(path)))
    memory = fullest(memory_of_stages(Recipe(config), layout, planned_backend(config.training.attention, on_gpu=True)))
    assert memory.device < 75 * 2**30


SHAPES = {
    "v3": {},
    "v1": V1,
    "v2": V2 | {"conv_groups": 2},
    "c2p alone, separate": {"share_att_key": False, "pos_att_type": ("c2p",)},
    "input positions": INPUT_POSITIONS | {"type_vocab_size": 3},
    "narrow": {"embedding_size": 8, "enhanced_mask_decoder": False},
    "absolute only": {"relative_attention": False},
}
OBJECTIVES = {"mlm": ObjectiveConfig()} | {sharing: tiny_rtd(sharing) for sharing in ("gdes", "es", "nes")}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("goal", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_counted_parameters_are_those_of_the_model(shape: dict[str, object], goal: ObjectiveConfig) -> None:
    model = tiny_v3(**shape)
    with torch.device("meta"):
        built = WholeModel(list_layers(model, goal))
    found = {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}
    assert list(parameter_shapes(model, goal).items()) == list(found.items())
    counts = count_parameters(model, goal)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in built.parameters())
    assert list(counts) == (["generator", "discriminator"] if goal.name == "rtd" else ["model"])


def test_dry_run_without_data_prints_size_batch_and_memory_and_says_what_is_missing() -> None:
    done = CliRunner().invoke(app, ["train", str(RECIPES / "deberta-v3-large.json"), "--dry-run"])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    config = load_run_config(RECIPES / "deberta-v3-large.json")
    counts = count_parameters(config.model, config.objective)
    sizes = f"{counts['generator']:,} generator + {counts['discriminator']:,} discriminator"
    assert f"{sum(counts.values()):,} parameters = {sizes}" in text
    assert "8192 sequences of 512 tokens per step = 16 micro batch x 512 accumulation x 1 data-parallel ranks" in text
    assert "GiB a rank: parameters" in text
    assert "data corpora/pretrain/train and the like do not exist yet, so nothing was checked against it" in text
