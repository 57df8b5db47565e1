"""The results of the runs, and the numbers that tables and figure take from them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from learning.plan import HERE, Plan
from learning.statistics import Estimate, estimate

SETS = {"movies": "movie reviews", "trec-6": "TREC-6", "sms-spam": "SMS spam"}
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""By arm, then by seed, what ``learning_study.py run`` wrote."""
Number = Callable[[Mapping[str, Any]], float | None]
"""From a result to one number, None where it has none."""


def read_results(plan: Plan) -> Results:
    """Those of the plan's runs that there are."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in plan.runs():
        if run.result.is_file():
            found.setdefault(run.arm.name, {})[run.seed] = json.loads(run.result.read_text())
    return found


def read_baselines() -> dict[str, dict[str, float]]:
    """Accuracies that need no model of ours: TF-IDF with logistic regression, and the most frequent label."""
    found: dict[str, dict[str, float]] = json.loads((HERE / "baselines.json").read_text())
    return found


def by_seed(results: Results, arm: str, number: Number) -> dict[int, float]:
    """A number of every run of an arm that has it."""
    values = {seed: number(result) for seed, result in results.get(arm, {}).items()}
    return {seed: value for seed, value in values.items() if value is not None}


def mean_of(results: Results, arm: str, number: Number) -> Estimate | None:
    """Its mean over the seeds; None where no run has it."""
    values = by_seed(results, arm, number)
    return estimate(list(values.values())) if values else None


def final_loss(result: Mapping[str, Any]) -> float | None:
    """Validation loss of masked tokens after the last step."""
    found: float | None = result["curve"][-1].get("valid_mlm_loss")
    return found


def blimp(result: Mapping[str, Any]) -> float | None:
    """Accuracy over all pairs."""
    return float(result["blimp"]["accuracy"]) if result["blimp"] else None


def probe(name: str) -> Number:
    """Of a labelled set."""
    return lambda result: float(result["probe"][name])


def tuned(name: str) -> Number:
    """Of a labelled set; only some arms are fine-tuned."""
    return lambda result: float(result["tuned"][name]["tuned"]) if "tuned" in result else None


def over_sets(of: Callable[[str], Number]) -> Number:
    """Mean over the three labelled sets."""

    def found(result: Mapping[str, Any]) -> float | None:
        values = [value for name in SETS if (value := of(name)(result)) is not None]
        return sum(values) / len(values) if values else None

    return found


def curve(result: Mapping[str, Any]) -> dict[int, float]:
    """Step -> validation loss of masked tokens."""
    return {point["step"]: point["valid_mlm_loss"] for point in result["curve"] if "valid_mlm_loss" in point}
