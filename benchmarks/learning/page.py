"""docs/learning.md as it follows from the results; tests/unit/test_learning_study.py holds the two together."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean

from learning.labelled import PROBE_DRAWS, TUNED_DRAWS
from learning.plan import FULL, HERE, RANDOM, THEIRS, Plan
from learning.results import (
    SETS,
    Number,
    Results,
    blimp,
    by_seed,
    curve,
    final_loss,
    mean_of,
    over_sets,
    probe,
    read_baselines,
    tuned,
)
from learning.statistics import Estimate, difference, estimate

PAGE = HERE.parents[1] / "docs" / "learning.md"
_HEAD = """# The learning study

Do these models learn as the papers say, at a size where a run takes minutes on one core? This page is written by
`python benchmarks/learning_study.py page` from the results in `benchmarks/learning/results`, one file per run, and
`benchmarks/learning/plan.json`, which holds every setting. `± x` is half of the 95 % interval of the mean over the
seeds (Student's t); differences are paired by seed. Where an interval holds zero, the order does not show at this size.
"""
_FIGURE = "![validation loss of masked tokens, mean and range over seeds](images/learning.png)\n"
_TABLES = {
    "ablation": ("Without parts of the model", "paper, Table 4", "no-emd no-c2p no-p2c no-c2p-p2c"),
    "objective": ("Masked or replaced tokens", "v3 paper, Table 2", "rtd-nes rtd-es rtd-gdes"),
    "masking": ("Spans or tokens", "paper, section 5", "span"),
    "optimizer": ("AdamW or Muon", "Jordan et al. 2024", "muon"),
    "direction": ("Masked, left to right, or both", "paper, Table 10", "ar mlm-ar"),
}
_SAME_TASK = ("ablation", "optimizer")
"""Groups whose runs predict the same tokens, so that their validation losses compare."""
_MEASURES: Mapping[str, tuple[Number, int, bool]] = {
    "validation loss": (final_loss, 3, False),
    "BLiMP": (blimp, 3, True),
    "fine-tuned, mean of three sets": (over_sets(tuned), 3, True),
    "probe, mean of three sets": (over_sets(probe), 3, True),
}
"""Name -> the number, its digits, and whether more is better."""


def page(plan: Plan, results: Results) -> str:
    """The whole page."""
    parts = [_HEAD, _pilot(), _what_ran(plan, results)]
    if FULL in results:
        parts += [_worth(plan, results), _minimal_pairs(results), _reference(results), _FIGURE]
        parts += [_group(plan, results, name) for name in _TABLES]
        parts.append(_sift(results))
    return "\n".join(part for part in parts if part)


def _what_ran(plan: Plan, results: Results) -> str:
    whole = list(plan.runs())
    done = sum(run.seed in results.get(run.arm.name, {}) for run in whole)
    model, training, data = (plan.recipe[name] for name in ("model", "training", "data"))
    text = (
        f"## What was run\n\nDone: {done} of {len(whole)} planned runs. Each trains {model['num_hidden_layers']} "
        f"layers of width {model['hidden_size']} for {training['steps']:,} steps of "
        f"{plan.recipe['deepspeed']['train_batch_size']} sequences of {data['sequence_length']} tokens, "
        f"{whole[0].tokens / 1e6:.2f}M tokens in all. The text is short: exchanges of film dialogues, sentences of "
        "Tatoeba, of product reviews, editorials and tweets, and four times, without labels, the training texts of "
        "the labelled sets (5.1M tokens, lower case, 4 000 vocabulary entries, each text a document of its own). "
        f"Validation text is {training['eval_sequences']} sequences of the first five. A model is scored by BLiMP "
        f"(50 pairs of each of 67 paradigms) and by a linear probe (the mean of {PROBE_DRAWS} draws of training "
        f"rows), some also by fine-tuning (the mean of {TUNED_DRAWS} draws), on three labelled sets: {_sets(plan)}.\n"
    )
    return text + (_cost(results, left=len(whole) - done) if done else "")


def _sets(plan: Plan) -> str:
    of_sets = plan.tune["sets"].items()
    return ", ".join(f"{SETS[name]} with {of_set['rows']} training rows" for name, of_set in of_sets)


def _cost(results: Results, *, left: int) -> str:
    """What the runs took, and what those that are left will."""
    found = [result for seeds in results.values() for result in seeds.values()]
    trained = [result for result in found if result["arm"] != RANDOM]
    if not trained:
        return ""
    minutes = [(result["cpu_seconds"] + result["scoring_cpu_seconds"]) / 60 for result in trained]
    commits = ", ".join(f"`{commit}`" for commit in sorted({result["commit"] for result in found}))
    where = ", ".join(found[0][name] for name in ("machine", "versions", "date"))
    text = (
        f"A run and its scores took {mean(minutes):.1f} CPU minutes of one core on average, on a machine that "
        f"had other work (commit {commits}; {where})."
    )
    hours = left * mean(minutes) / 60
    return text + (f" At their mean the {left} others take {hours:.1f} hours.\n" if left else "\n")


def _pilot() -> str:
    """The sweep that chose the settings."""
    lines = []
    for run in json.loads((HERE / "pilot.json").read_text()):
        cost = "" if run["cpu_minutes"] is None else f", {run['cpu_minutes']} CPU minutes a run"
        lines.append(f"- {run['what']}: {run['tokens'] / 1e6:.2f}M tokens{cost}. {run['found']}")
    head = (
        "## The sweep before it\n\n3 layers of width 128, commits `23a94d2` to `77034b6`, two cores of an AMD EPYC "
        "or an Intel Xeon with two to three runs at once, 2026-11-30. One seed where no number of "
        "seeds is given.\n"
    )
    return "\n".join([head, *lines]) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([_row(head), "|" + "---|" * len(head), *(_row(row) for row in rows)]) + "\n"


def _shown(found: Estimate | None, digits: int = 3, *, signed: bool = False) -> str:
    return "" if found is None else found.show(digits, signed=signed)


def _worth(plan: Plan, results: Results) -> str:
    baselines = read_baselines()
    rows = [["most frequent label", "", *(f"{baselines['most frequent'][name]:.3f}" for name in SETS)]]
    rows.append(["TF-IDF, logistic regression", "", *(f"{baselines['tf-idf'][name]:.3f}" for name in SETS)])
    arms = [arm for arm in (RANDOM, FULL, "rtd-gdes", THEIRS) if arm in results]
    for way, title in ((probe, "linear probe"), (tuned, "fine-tuned")):
        for arm in arms:
            means = [_shown(mean_of(results, arm, way(name))) for name in SETS]
            rows.append([f"{title}: {plan.arms[arm].title}", str(len(results[arm])), *means])
    text = ["## Worth more than random weights\n", _table(["accuracy on the test rows", "seeds", *SETS.values()], rows)]
    for arm in [arm for arm in arms if arm != RANDOM and RANDOM in results]:
        for way, title in ((probe, "probe"), (tuned, "fine-tuned")):
            text.append(f"- {plan.arms[arm].title}, {title}, over random weights: {_gains(results, arm, way)}.")
    return "\n".join(text) + "\n"


def _gains(results: Results, arm: str, way: Callable[[str], Number]) -> str:
    found = []
    for name, title in SETS.items():
        of_arm, of_random = (by_seed(results, one, way(name)) for one in (arm, RANDOM))
        found.append(f"{_shown(difference(of_arm, of_random), signed=True)} on {title}")
    return ", ".join(found)


def _minimal_pairs(results: Results) -> str:
    found = mean_of(results, FULL, blimp)
    if found is None:
        return ""
    first = next(iter(results[FULL].values()))["blimp"]
    of_pairs = 1.96 * (found.mean * (1 - found.mean) / first["pairs"]) ** 0.5
    half, what = (of_pairs, "of independent pairs") if found.half is None else (found.half, f"over {found.seeds} seeds")
    above = "above" if found.mean - half > 0.5 else "not shown to be above"
    best = sorted(first["phenomena"], key=lambda name: -_phenomenon(results, name))
    named = ", ".join(f"{name.replace('_', ' ')} {_phenomenon(results, name):.3f}" for name in (*best[:3], *best[-3:]))
    return (
        f"## BLiMP\n\nThe full model: {found.mean:.3f} ± {half:.3f} on {first['pairs']:,} pairs ({what}), {above} "
        f"chance, 0.5. Three best and three worst phenomena: {named}.\n"
    )


def _phenomenon(results: Results, name: str) -> float:
    return estimate([result["blimp"]["phenomena"][name] for result in results[FULL].values()]).mean


def _reference(results: Results) -> str:
    if THEIRS not in results:
        return ""
    rows = []
    for arm, title in ((FULL, "the full model"), ("no-emd", "the model of the reference, without the mask decoder")):
        if arm not in results:
            continue
        ours, theirs = ({seed: curve(result) for seed, result in results[one].items()} for one in (arm, THEIRS))
        steps = sorted(set.intersection(*(set(of) for of in (*ours.values(), *theirs.values()))))
        for step in steps[1::2]:
            values = ({seed: of[step] for seed, of in one.items()} for one in (ours, theirs))
            rows.append([title, str(step), _shown(difference(*values), signed=True)])
    return (
        "## Against transformers' own model\n\nThe same batches, masks, tokens, schedule and AdamW; weights are drawn "
        "by transformers from the same distribution. Below zero, ours is better.\n\n"
        + _table(["ours", "step", "validation loss, ours less theirs"], rows)
    )


def _group(plan: Plan, results: Results, group: str) -> str:
    title, source, names = _TABLES[group]
    arms = [name for name in names.split() if name in results]
    if not arms:
        return f"## {title}\n\n({source}) No run of it is done yet.\n"
    head, rows, claims = ["arm", "seeds", *_MEASURES], [], []
    for arm in (FULL, *arms):
        means = [_shown(mean_of(results, arm, number), digits) for number, digits, _ in _MEASURES.values()]
        rows.append([plan.arms[arm].title, str(len(results[arm])), *means])
    for arm in arms:
        for measure, (number, digits, more_is_better) in _MEASURES.items():
            found = difference(by_seed(results, arm, number), by_seed(results, FULL, number))
            if found is not None and (measure != "validation loss" or group in _SAME_TASK):
                claims.append(f"- {plan.arms[arm].title}, {measure}: {_claim(found, digits, more_is_better)}")
    return f"## {title}\n\n({source})\n\n{_table(head, rows)}\nAgainst the full model:\n\n" + "\n".join(claims) + "\n"


def _claim(found: Estimate, digits: int, more_is_better: bool) -> str:
    shown = found.show(digits, signed=True)
    if found.half is None:
        return f"{shown}, one seed: no interval."
    if found.sign == 0:
        largest = max(abs(found.low), abs(found.high))
        return f"{shown}: no order shows; a difference beyond {largest:.{digits}f} is excluded."
    return f"{shown}: {'better' if (found.sign > 0) == more_is_better else 'worse'}."


def _sift(results: Results) -> str:
    found = {seed: result for seed, result in results[FULL].items() if "sift" in result}
    if not found:
        return ""
    rows = []
    for name in next(iter(found.values()))["sift"]:
        plain = {seed: result["tuned"][name] for seed, result in found.items()}
        with_it = {seed: result["sift"][name] for seed, result in found.items()}
        gain = difference(*({seed: one["tuned"] for seed, one in of.items()} for of in (with_it, plain)))
        times = [with_it[seed]["tuned_seconds"] / plain[seed]["tuned_seconds"] for seed in found]
        rows.append([SETS[name], str(len(found)), _shown(gain, signed=True), f"{estimate(times).mean:.2f}"])
    head = ["set", "seeds", "accuracy with SiFT less without", "CPU time, times that without"]
    return (
        "## SiFT\n\nThe full model fine-tuned with `--sift`, everything else the same; its settings are "
        "microsoft/DeBERTa's.\n\n" + _table(head, rows)
    )
