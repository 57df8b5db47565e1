"""What an export is worth on labelled text, beside the same model with random weights: one line.

    python docs/examples/probe_with_transformers.py runs/quickstart/export corpora/wikitext2/trec.csv

A linear probe: the model stays as it is, and a ridge regression on what it makes of each question says which of the six
kinds of answers of TREC-6 (Li and Roth 2002) is asked for. Nothing of megadeberta is imported.

Shapes: B batch · L length · N layers · D hidden size · T texts · K kinds.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

TRAINING_ROWS, TEST_ROWS = 1000, 500
"""The first and the last of the file; the last are the official test questions."""
ROWS_AT_ONCE = 100
RIDGE = 0.1
"""Of the squared weights, times the texts: features have unit variance."""


def read_questions(path: Path) -> tuple[list[str], Tensor]:
    """Texts, and the kind of each ``[T]``."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:TRAINING_ROWS] + rows[-TEST_ROWS:]
    return [row["text"] for row in rows], torch.tensor([int(row["label-coarse"]) for row in rows])


@torch.no_grad()
def features(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """The mean over a text's tokens of every layer's hidden states and of the embeddings, ``[T, (N + 1) * D]``."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # texts of a batch are about as long
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), ROWS_AT_ONCE):
        numbers = order[start : start + ROWS_AT_ONCE]
        chosen = [texts[number] for number in numbers]
        batch = tokenizer(chosen, padding=True, truncation=True, max_length=64, return_tensors="pt")
        states = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True).hidden_states
        mask = batch.attention_mask[..., None]  # [B, L, 1]
        means = torch.cat([(layer * mask).sum(1) / mask.sum(1) for layer in states], dim=-1)
        found |= dict(zip(numbers, means, strict=True))
    return torch.stack([found[number] for number in range(len(texts))])


def probe(inputs: Tensor, kinds: Tensor) -> float:
    """Accuracy on the test rows of ridge regression on ``inputs [T, F]``, fitted to the training rows."""
    inputs = inputs.double()
    known, asked = inputs[:-TEST_ROWS], inputs[-TEST_ROWS:]
    mean, deviation = known.mean(0), known.std(0).clamp(min=1e-6)
    known, asked = (known - mean) / deviation, (asked - mean) / deviation
    wanted = torch.nn.functional.one_hot(kinds[:-TEST_ROWS]).double()  # [T, K]
    penalty = RIDGE * len(known) * torch.eye(known.size(1), dtype=known.dtype)
    weights = torch.linalg.solve(known.T @ known + penalty, known.T @ (wanted - wanted.mean(0)))
    guesses = (asked @ weights + wanted.mean(0)).argmax(1)
    return float((guesses == kinds[-TEST_ROWS:]).double().mean())


def main() -> None:
    if len(sys.argv) != 3 or not (Path(sys.argv[1]) / "config.json").exists() or not Path(sys.argv[2]).exists():
        sys.exit(f"usage: python {sys.argv[0]} EXPORT TREC_CSV (of `convert export` and of `fetch wikitext2`)")
    export, texts_of = Path(sys.argv[1]), Path(sys.argv[2])
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # the backbone has no use for the head, and would say so
    texts, kinds = read_questions(texts_of)
    tokenizer = AutoTokenizer.from_pretrained(export)
    torch.manual_seed(1)
    models = {
        "export": AutoModel.from_pretrained(export),
        "random weights": AutoModel.from_config(AutoConfig.from_pretrained(export)),
    }
    scores = {name: probe(features(model.eval(), tokenizer, texts), kinds) for name, model in models.items()}
    shown = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    print(f"linear probe on TREC-6, {TEST_ROWS} questions of 6 kinds: accuracy of {shown}")


if __name__ == "__main__":
    main()
