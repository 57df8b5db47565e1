"""The learning study: its plan is one that the package takes, its reference computes what ours does, its page follows
from its results."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import page as page_module
from learning.page import PAGE, page
from learning.plan import FULL, RANDOM, THEIRS, Plan, read_plan
from learning.results import read_results
from learning.statistics import difference, estimate
from learning.theirs import mean_loss
from learning.theirs import train as train_theirs
from scipy import stats

from megadeberta.preflight.run import load_recipe
from tests.models import masked_batch, random_model, tiny_v3


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan()


def test_every_arm_is_planned_with_five_seeds_and_is_a_recipe(plan: Plan, tmp_path: Path) -> None:
    seeds: dict[str, set[int]] = {}
    for run in plan.runs():
        seeds.setdefault(run.arm.name, set()).add(run.seed)
    assert seeds.keys() == plan.arms.keys()
    assert all(len(of_arm) >= 5 for of_arm in seeds.values())
    assert len(list(plan.runs())) >= 40
    first = {run.arm.name: run for run in reversed(list(plan.runs()))}
    recipes = {name: load_recipe(run.write_recipe(tmp_path / run.name, tmp_path)) for name, run in first.items()}
    assert {recipe.training.steps for name, recipe in recipes.items() if name != RANDOM} == {4000}
    assert all(recipe.data.valid == tmp_path / "valid" for recipe in recipes.values())
    assert not recipes[THEIRS].model.enhanced_mask_decoder
    assert recipes["no-c2p"].model.pos_att_type == ("p2c",)
    assert recipes["rtd-nes"].objective.rtd.embedding_sharing == "nes"


def test_the_weights_before_the_first_step_are_those_after_the_only_step_of_that_arm(plan: Plan) -> None:
    """A step at a rate of 1e-30 changes no number of single precision."""
    run = next(run for run in plan.runs() if run.arm.name == RANDOM)
    weights = torch.tensor([0.08, -1e-3, 1.0])
    assert torch.equal(weights - run.recipe["optimizer"]["lr"] * torch.tensor([1e3, -1e3, 1e3]), weights)


def test_an_interval_of_paired_differences_is_that_of_a_paired_t_test() -> None:
    ours, theirs = {1: 5.0, 2: 5.3, 3: 5.1, 4: 9.9}, {1: 5.2, 2: 5.4, 3: 5.5, 7: 0.0}
    found = difference(ours, theirs)
    assert found is not None and found.seeds == 3
    expected = stats.ttest_rel([5.0, 5.3, 5.1], [5.2, 5.4, 5.5]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.sign == 0
    assert difference(ours, {9: 1.0}) is None
    assert estimate([1.0]).sign == 0


@pytest.mark.parametrize("packed", [False, True])
def test_the_reference_has_the_loss_of_our_model(packed: bool) -> None:
    """Of equal weights and batches: the reference then differs from ours in nothing but its code."""
    from step_models import build_theirs, copy_weights

    config = tiny_v3(enhanced_mask_decoder=False)
    theirs, ours = build_theirs(config).double().eval(), random_model(config).double()
    copy_weights(theirs, ours, config)
    batch = masked_batch(config)
    if packed:
        places = torch.arange(batch["input_ids"].size(1))
        batch["document_starts"] = (places // 5 * 5).expand_as(batch["input_ids"]).contiguous()
    with torch.no_grad():
        total, count = ours(**batch)[0]["mlm_loss"]
        assert float(mean_loss(theirs, [batch])) == pytest.approx(float(total / count), abs=1e-9)


def test_the_reference_trains_on_our_batches_and_is_saved_for_transformers(
    prepared: Path, plan: Plan, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, DebertaV2ForMaskedLM

    run = next(run for run in plan.runs() if run.arm.name == THEIRS)
    training = {"steps": 3, "eval_interval": 2, "eval_sequences": 4}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    recipe: dict[str, Any] = {
        **run.recipe,
        "model": {**run.recipe["model"], **small},
        "training": training,
        "schedule": {"name": "linear_shift", "warmup_steps": 1},
    }
    found = train_theirs(dataclasses.replace(run, recipe=recipe), prepared, tmp_path / "theirs")
    assert [point["step"] for point in found["curve"]] == [2, 3]
    model = DebertaV2ForMaskedLM.from_pretrained(tmp_path / "theirs")
    ids = AutoTokenizer.from_pretrained(tmp_path / "theirs")("the people of the states", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, ids.size(1), 4096)


def _result(arm: str, seed: int, loss: float) -> dict[str, Any]:
    sets = {
        "probe": dict.fromkeys(page_module.SETS, 0.6),
        "tuned": {name: {"tuned": 0.7 - loss / 100, "tuned_seconds": 2.0} for name in page_module.SETS},
    }
    blimp = {"pairs": 3350, "accuracy": 0.55 + seed / 1000, "phenomena": dict.fromkeys("abcdef", 0.5)}
    times = {"cpu_seconds": 60.0, "scoring_cpu_seconds": 30.0}
    found = {"arm": arm, "seed": seed, "curve": [{"step": 2, "valid_mlm_loss": loss}], "blimp": blimp, **sets}
    return {**found, **times, "commit": "abc", "machine": "a core", "versions": "torch", "date": "2026-11-30"}


def test_the_page_says_which_orders_show_and_what_is_excluded_where_none_does(plan: Plan) -> None:
    losses = {FULL: (5.0, 5.1, 5.2), "no-emd": (5.3, 5.41, 5.5), "no-c2p": (4.9, 5.1, 5.4)}
    results = {arm: {seed: _result(arm, seed, loss) for seed, loss in enumerate(of, 1)} for arm, of in losses.items()}
    text = page(plan, results)
    assert "without the mask decoder (EMD), validation loss: +0.303 ± 0.014: worse." in text
    assert "without content to position, validation loss: +0.033 ± 0.379: no order shows" in text
    assert "a difference beyond 0.413 is excluded" in text
    assert "Done: 9 of " in text
    assert "0.552 ± 0.002 on 3,350 pairs (over 3 seeds), above chance" in text


def test_the_page_in_docs_is_the_one_that_follows_from_the_results(plan: Plan) -> None:
    assert PAGE.read_text() == page(plan, read_results(plan)), "run `python benchmarks/learning_study.py page`"
