"""Scores on sequences of a shard, masked as in the validation of a run.

Shapes: B batch · L length · Q target rows a sample · V vocabulary.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from megadeberta.batch import attention_rules
from megadeberta.config.waiting import counted
from megadeberta.layers.terms import baselines
from megadeberta.model.whole import WholeModel

Scores = dict[str, float]


@torch.no_grad()
def score_by_mask_kind(model: WholeModel, batches: Iterable[Mapping[str, Tensor]], *, mask_id: int) -> Scores:
    """Loss and accuracy of masked tokens: of all, and of those shown as [MASK], as a random piece, or unchanged.

    Sequences read left to right are left out; a kind that does not occur has no scores.
    """
    sums: dict[str, Tensor] = {}
    for batch in counted(batches):
        positions, labels = batch["masked_positions"], batch["masked_labels"]
        rules = attention_rules(batch)
        logits = model.mlm_logits(batch["input_ids"], batch["attention_mask"], positions, **rules).float()
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        correct = logits.argmax(-1) == labels
        shown = batch["input_ids"].gather(1, positions)
        is_target = labels != 0
        if "prefix_lengths" in batch:
            is_target &= (batch["prefix_lengths"] >= batch["input_ids"].size(1)).unsqueeze(-1)
        kinds = {"": is_target, " [MASK]": shown == mask_id, " kept": shown == labels}
        kinds[" random"] = ~(kinds[" [MASK]"] | kinds[" kept"])
        for kind, chosen in kinds.items():
            chosen = chosen & is_target
            found = torch.stack([losses[chosen].double().sum(), correct[chosen].double().sum(), chosen.double().sum()])
            sums[kind] = sums[kind] + found if kind in sums else found
    scores: Scores = {}
    for kind, (loss, right, count) in ((kind, pair.tolist()) for kind, pair in sums.items()):
        if count:
            scores |= {f"mlm_loss{kind}": loss / count, f"mlm_perplexity{kind}": perplexity(loss / count)}
            scores |= {f"mlm_accuracy{kind}": right / count, f"mlm_targets{kind}": count}
    return scores


@torch.no_grad()
def score_terms(model: WholeModel, batches: Iterable[Mapping[str, Tensor]]) -> Scores:
    """Every term that the model computes in training; F1 for replaced tokens, perplexity for next tokens.

    Where no token is called replaced, precision is NaN. Beside the RTD loss and accuracy are those of a model that
    knows the fraction of replaced tokens and calls none replaced.
    """
    sums: dict[str, Tensor] = {}
    for batch in counted(batches):
        terms, _ = model(**batch)
        for name, (total, count) in terms.items():
            pair = torch.stack([total.double(), count.double()])
            sums[name] = sums[name] + pair if name in sums else pair
    scores = {name: float(pair[0] / pair[1]) for name, pair in sums.items() if pair[1] > 0}
    if "rtd_loss" in sums:
        (found, called), (_, replaced) = sums["rtd_precision"].tolist(), sums["rtd_recall"].tolist()
        scores |= {"rtd_precision": found / called if called else math.nan}
        scores |= {f"{name}_baseline": value for name, value in baselines(scores, None).items()}
        scores |= {"rtd_accuracy_baseline": 1 - scores["replaced_rate"]}
        scores["rtd_f1"] = 2 * found / (called + replaced) if called + replaced else 0.0
    if "ar_loss" in scores:
        scores["ar_perplexity"] = perplexity(scores["ar_loss"])
    return scores


def perplexity(loss: float) -> float:
    """``exp`` of nats per token."""
    return float(torch.tensor(loss, dtype=torch.float64).exp())
