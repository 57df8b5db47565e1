"""The figure of docs/learning.md: validation curves, and BLiMP of every arm."""

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from learning.page import PAGE
from learning.plan import Plan
from learning.results import Results, blimp, curve, mean_of

PICTURE = PAGE.parent / "images" / "learning.png"


def draw(plan: Plan, results: Results) -> None:
    """Curves on the left, a band from the best to the worst seed; on the right BLiMP with its intervals."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    masked_alike = [
        arm for arm in results if plan.arms[arm].group in ("base", "ablation", "reference") and arm != "random"
    ]
    for arm in masked_alike:
        curves = [curve(result) for result in results[arm].values()]
        steps = sorted(set.intersection(*(set(one) for one in curves)))
        values = [[one[step] for one in curves] for step in steps]
        (line,) = left.plot(
            steps, [sum(of) / len(of) for of in values], label=f"{plan.arms[arm].title} ({len(curves)})"
        )
        left.fill_between(
            steps, [min(of) for of in values], [max(of) for of in values], color=line.get_color(), alpha=0.15
        )
    left.set(xlabel="optimizer step", ylabel="validation loss of masked tokens (nats)")
    left.legend(fontsize="small")
    scored = [(plan.arms[arm].title, found) for arm in results if (found := mean_of(results, arm, blimp)) is not None]
    for place, (_, found) in enumerate(reversed(scored)):
        right.errorbar(found.mean, place, xerr=found.half or 0.0, fmt="o", capsize=3)
    right.set_yticks(range(len(scored)), [title for title, _ in reversed(scored)])
    right.axvline(0.5, color="grey", linestyle=":")
    right.set(xlabel="BLiMP accuracy, 95 % interval over seeds")
    figure.savefig(PICTURE, dpi=90)
    pyplot.close(figure)
