"""The recipes of ds_configs/clusters: they run on the cluster they name, and fit its memory."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.config.load import load_run_config
from megadeberta.ops.attention.backends import planned_backend
from megadeberta.plan.layout import Layout
from megadeberta.plan.memory import fullest, memory_of_stages
from megadeberta.plan.stages import Recipe
from megadeberta.preflight.validate import validate_run

FOLDER = Path(__file__).parents[3] / "ds_configs" / "clusters"
GIB = 2**30
DGX2 = (16, 32)  # GPUs of a node, GiB of a GPU
MODERN = (8, 80)
# name: nodes, (GPUs, GiB), parameters
CLUSTERS = {
    "deberta-base-1-dgx2": (1, DGX2, 139_637_337),
    "deberta-base-4-dgx2": (4, DGX2, 139_637_337),
    "deberta-large-4-dgx2": (4, DGX2, 406_789_209),
    "deberta-large-6-dgx2": (6, DGX2, 406_789_209),
    "deberta-v2-xlarge-6-dgx2": (6, DGX2, 887_871_588),
    "deberta-v2-xxlarge-16-dgx2": (16, DGX2, 1_567_828_068),
    "deberta-base-1x8": (1, MODERN, 139_637_337),
    "deberta-base-8x8": (8, MODERN, 139_637_337),
    "deberta-large-1x8": (1, MODERN, 406_789_209),
    "deberta-large-8x8": (8, MODERN, 406_789_209),
    "deberta-v2-xlarge-1x8": (1, MODERN, 887_871_588),
    "deberta-v2-xlarge-8x8": (8, MODERN, 887_871_588),
    "deberta-v2-xxlarge-1x8": (1, MODERN, 1_567_828_068),
    "deberta-v2-xxlarge-8x8": (8, MODERN, 1_567_828_068),
}


def test_every_cluster_recipe_is_in_this_table() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CLUSTERS)


@pytest.mark.parametrize("name", CLUSTERS)
def test_recipe_trains_table_8_on_its_cluster_within_its_memory(name: str) -> None:
    nodes, (gpus, memory), _ = CLUSTERS[name]
    path = FOLDER / f"{name}.json"
    config = load_run_config(path)
    algebra, topology = validate_run(config, world_size=nodes * gpus, source=str(path))
    assert (config.name, algebra.global_batch, config.data.sequence_length) == (name, 2048, 512)
    assert str(config.training.output_dir) == f"runs/{name}"
    layout = Layout.of_run(config, algebra, topology)
    attention = planned_backend(config.training.attention, on_gpu=True)
    needed = fullest(memory_of_stages(Recipe(config), layout, attention)).device
    # What `plan` reserves by itself: 1 GiB and 6 %.
    assert needed <= (0.94 * memory - 1) * GIB


@pytest.mark.parametrize("name", CLUSTERS)
def test_precision_is_one_that_the_gpus_have(name: str) -> None:
    config = load_run_config(FOLDER / f"{name}.json")
    is_v100 = CLUSTERS[name][1] is DGX2
    assert config.engine.precision == ("fp16" if is_v100 else "bf16")
    if is_v100:  # Triton needs a newer device
        assert (config.training.attention, config.training.logits) == ("reference", "torch")


@pytest.mark.parametrize("name", CLUSTERS)
def test_recipe_says_only_what_its_parent_does_not(name: str) -> None:
    values = json.loads((FOLDER / f"{name}.json").read_text())
    assert values["extends"].startswith("../")
    assert set(values) <= {"extends", "name", "description", "training", "parallel", "deepspeed"}


@pytest.mark.parametrize("name", ["deberta-base-4-dgx2", "deberta-large-6-dgx2", "deberta-v2-xxlarge-16-dgx2"])
def test_dry_run_shows_parameters_layout_and_memory(name: str) -> None:
    nodes, (gpus, _), parameters = CLUSTERS[name]
    arguments = ["train", str(FOLDER / f"{name}.json"), "--dry-run", "--show-recipe", "--ranks", str(nodes * gpus)]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert f"{parameters:,} parameters" in text
    stages = 3 if "large-6-" in name else 1
    assert f"{nodes * gpus} ranks = tensor 1 x pipeline {stages} x data {nodes * gpus // stages}" in text
    assert "GiB a rank: parameters" in text
    assert ("mask_decoder, mlm_head" in text) == (stages == 3)  # the stages of a pipeline are listed
    # What no recipe says is in the one that is shown.
    assert '"grad_accum_dtype": "fp32"' in text
    assert '"communication_data_type": "fp32"' in text
    assert f'"overlap_comm": {"true" if stages == 1 else "false"}' in text
