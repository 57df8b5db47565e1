"""The terms that models compute: named (sum, count) pairs over a micro batch, whose mean is a loss or a metric.

Packing, steps, logs, plots, reports, evaluation and model cards read this table; nothing else knows a term's name.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megadeberta.errors import ConfigError


@dataclass(frozen=True)
class Term:
    """One named quantity; a loss if it has ``count_targets``, else a metric that no weight is given to."""

    name: str
    """In metrics.jsonl and in TensorBoard; of validation with ``valid_`` before it."""
    label: str | None = None
    """In the lines of the log; None = not shown there."""
    title: str = ""
    """Of a loss, over its curve."""
    unit: str = ""
    """Of a loss: what one count is."""
    count_targets: Callable[[Mapping[str, Any]], Any] | None = None
    """Of a loss: batch, by the names of its fields -> scalar tensor, the targets that its sum is divided by. Counted on
    the batch before the step, so that every rank knows the global count."""
    predicts_tokens: bool = False
    """A cross-entropy over the vocabulary: comparable with that of word frequencies, and has a perplexity."""
    told_apart: str = ""
    """Of a loss over two classes: the metric that is the fraction of one of them. Its entropy is the loss of a model
    that knows this fraction and nothing of the tokens."""
    meaning: str = ""
    """Of a metric that the log shows: what it is, in the legend."""
    beside: str = ""
    """Of a metric that may count nothing while its loss has targets, as the precision of no call does: that loss. The
    metric is NaN there instead of absent."""

    @property
    def is_loss(self) -> bool:
        """Whether its sum has a gradient."""
        return self.count_targets is not None

    @property
    def baseline_title(self) -> str:
        """Of a loss: what its baseline is; empty where it has none."""
        if self.predicts_tokens:
            return "unigram cross-entropy"
        return f"entropy of the {self.told_apart.removesuffix('_rate')} fraction" if self.told_apart else ""

    @property
    def targets_name(self) -> str:
        """What the count of a loss is called in metrics.jsonl: ``mlm_targets`` for ``mlm_loss``."""
        return f"{self.name.removesuffix('_loss')}_targets"


def register_term(entry: Term) -> Term:
    """Add a term; a module of ``plugins`` calls it for an objective of its own.

    Raises:
        ConfigError: another term has the name.
    """
    known = TERMS.setdefault(entry.name, entry)
    if (known.label, known.title, known.unit) != (entry.label, entry.title, entry.unit):
        raise ConfigError(f"loss term {entry.name!r} is registered twice with different settings; choose another name")
    TERMS[entry.name] = entry
    return entry


def term(name: str) -> Term:
    """The term of this name.

    Raises:
        ConfigError: nobody registered it.
    """
    if name not in TERMS:
        raise ConfigError(f"unknown loss term {name!r}: known are {', '.join(TERMS)}; add it to layers/terms.py")
    return TERMS[name]


def baselines(means: Mapping[str, float | None], unigram: float | None) -> dict[str, float]:
    """By loss term of ``means``: the loss, in nats, of a model that has seen no token around the target.

    Args:
        means: terms of a step or of a validation, by name.
        unigram: cross-entropy of the validation text under its word frequencies; None = not known.
    """
    found: dict[str, float] = {}
    for name in means:
        entry = TERMS.get(name)
        if entry is None:
            continue
        if entry.predicts_tokens and unigram is not None:
            found[name] = unigram
        fraction = means.get(entry.told_apart)
        if fraction is not None and not math.isnan(fraction):
            found[name] = _entropy(fraction)
    return found


def legend(names: Iterable[str]) -> str:
    """What the labels of these terms mean in a line of the log."""
    parts = []
    for entry in (TERMS[name] for name in names if name in TERMS and TERMS[name].label):
        baseline = f" (in brackets: {entry.baseline_title})" if entry.baseline_title else ""
        parts.append(f"{entry.label} {f'{entry.title} in {entry.unit}{baseline}' if entry.is_loss else entry.meaning}")
    return ", ".join(dict.fromkeys(parts))


def _entropy(fraction: float) -> float:
    """Of two classes, in nats."""
    return -sum(p * math.log(p) for p in (fraction, 1 - fraction) if p > 0)


def _masked_targets(batch: Mapping[str, Any]) -> Any:
    is_target = batch["masked_labels"] != 0
    return is_target.sum() if "prefix_lengths" not in batch else (is_target & _reads_both_ways(batch)).sum()


def _next_token_targets(batch: Mapping[str, Any]) -> Any:
    return ((batch["masked_labels"] != 0) & ~_reads_both_ways(batch)).sum()


def _reads_both_ways(batch: Mapping[str, Any]) -> Any:
    """``[B, 1]``: whether a sequence is masked, not read from left to right."""
    return (batch["prefix_lengths"] >= batch["input_ids"].shape[1])[:, None]


def _real_tokens(batch: Mapping[str, Any]) -> Any:
    return batch["attention_mask"].sum()


TERMS: dict[str, Term] = {
    entry.name: entry
    for entry in (
        Term("mlm_loss", "mlm", "MLM loss", "nats per masked token", _masked_targets, predicts_tokens=True),
        Term("mlm_accuracy", "acc", meaning="fraction of the targets predicted right"),
        Term("ar_loss", "ar", "next-token loss", "nats per token", _next_token_targets, predicts_tokens=True),
        Term("ar_accuracy", "acc", meaning="fraction of the targets predicted right"),
        Term("rtd_loss", "rtd", "RTD loss", "nats per token", _real_tokens, told_apart="replaced_rate"),
        Term("rtd_accuracy"),
        Term("rtd_precision", "prec", meaning="fraction of the tokens called replaced that are", beside="rtd_loss"),
        Term("rtd_recall", "rec", meaning="fraction of the replaced tokens that are found", beside="rtd_loss"),
        Term("masked_rate"),
        Term("sampled_rate"),
        Term("replaced_rate"),
    )
}
"""By name. Register others with ``register_term``."""
