"""The recipe that `megadeberta init` writes: a shipped one, fitted to a prepared corpus and to a machine.

| value | rule |
|---|---|
| vocabulary | that of the tokenizer, rounded up (``layers.vocabulary``) |
| length | the base's; where the documents are shorter on average, the power of two from 64 on that holds them |
| tokens | those of the base's own run, but not more than 40 epochs |
| batch | the base's, halved until the run has 10 000 steps, or 32 sequences are left |
| learning rate | times the square root of the ratio of the batches, as Adam's noise asks (Malladi et al. 2022) |
| warm-up | the base's, at most 6 % of the steps |
| layout | what `megadeberta plan` recommends for the GPUs; on a CPU the base's |
"""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadeberta.config.load import extend, parse_run_config, read_recipe
from megadeberta.config.recipes import find_recipe
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError
from megadeberta.ops.attention.backends import planned_backend
from megadeberta.plan.cluster import Cluster, usual_reserve
from megadeberta.plan.search import search_layouts
from megadeberta.preflight.corpus import Corpus
from megadeberta.preflight.validate import validate_run

USUAL_NAME = "recipe"
"""Of the file that `init` writes, so that it says nothing about the run."""
MOST_EPOCHS = 40
"""What BERT saw of its corpus; masks are drawn anew each time."""
_WISHED_STEPS, _SMALLEST_BATCH = 10_000, 32
_SHORTEST_SEQUENCE = 64
_MOST_WARMUP = 0.06
_SAVES, _VALIDATIONS = 10, 20
"""In a run, at least."""


@dataclass(frozen=True)
class Wishes:
    """What a user may say; None = chosen here."""

    base: str
    gpus: int
    memory_gib: float | None
    tokens: int | None = None
    length: int | None = None


def new_recipe(corpus: Corpus, output: Path, wishes: Wishes) -> tuple[dict[str, Any], RunConfig]:
    """The values of a recipe to be written to ``output``, and what it resolves to.

    Raises:
        ConfigError: the base does not exist, or no layout of it fits the GPUs.
    """
    parent = read_recipe(Path(wishes.base))
    base = _resolve(parent, {"model": {"vocab_size": corpus.vocabulary}}, wishes.base)
    length = wishes.length or _fitting_length(base.data.sequence_length, corpus)
    values = _values(base, corpus, output, wishes, length=length)
    config = _resolve(parent, values, str(output))
    if wishes.gpus:
        _apply_layout(values, config, wishes, source=str(output))
        config = _resolve(parent, values, str(output))
    validate_run(config, world_size=max(1, wishes.gpus), source=str(output))
    return values, config


def _values(base: RunConfig, corpus: Corpus, output: Path, wishes: Wishes, *, length: int) -> dict[str, Any]:
    whole_run = base.batches.samples(base.training.steps) * base.data.sequence_length
    tokens = wishes.tokens or min(whole_run, MOST_EPOCHS * corpus.tokens)
    batch = _fitting_batch(base.engine.global_batch, tokens // length, ranks=max(1, wishes.gpus))
    steps = max(2, math.ceil(tokens / (batch * length)))
    # Two recipes of one corpus, a trial and the real run, must not share an output folder.
    called = corpus.folder.resolve().name if output.stem == USUAL_NAME else output.stem
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", called).strip("-.") or "run"
    factor = math.sqrt(batch / base.engine.global_batch)
    optimizer = {"lr": _two_figures(base.optimizer.lr * factor)}
    if base.optimizer.discriminator_lr is not None:
        optimizer["discriminator_lr"] = _two_figures(base.optimizer.discriminator_lr * factor)
    values: dict[str, Any] = {
        "extends": _extends(wishes.base, output),
        "name": name,
        "description": f"{Path(wishes.base).stem} on {corpus.folder}: {corpus.tokens:,} tokens, "
        f"{epochs(corpus, steps * batch, length):.3g} epochs; written by `megadeberta init`",
        "model": {"vocab_size": corpus.vocabulary},
        "data": {"folder": str(corpus.folder), "sequence_length": length},
        "optimizer": optimizer,
        "schedule": {"warmup_steps": min(base.schedule.warmup_steps, max(1, int(_MOST_WARMUP * steps)))},
        "training": {
            "steps": steps,
            **({"batch_stages": []} if base.training.batch_stages else {}),
            "output_dir": f"runs/{name}",
            "eval_interval": min(base.training.eval_interval, max(1, steps // _VALIDATIONS)),
        },
        "checkpoint": {"interval": min(base.checkpoint.interval, max(1, steps // _SAVES))},
        "deepspeed": {
            "train_batch_size": batch,
            "train_micro_batch_size_per_gpu": min(base.engine.micro_batch, batch // max(1, wishes.gpus)),
        },
    }
    if length > base.model.max_position_embeddings:
        values["model"] |= {"max_position_embeddings": length, "max_relative_positions": base.model.relative_span}
    return values


def epochs(corpus: Corpus, sequences: int, length: int) -> float:
    """How often that many sequences of ``length`` tokens, [CLS] and [SEP] included, hold the corpus."""
    return sequences / math.ceil(corpus.tokens / (length - 2))


def _fitting_length(longest: int, corpus: Corpus) -> int:
    mean = corpus.tokens / max(1, corpus.documents)
    power = 2 ** math.ceil(math.log2(max(mean, _SHORTEST_SEQUENCE)))
    return min(longest, power)


def _fitting_batch(largest: int, sequences: int, *, ranks: int) -> int:
    batch = largest
    while batch % 2 == 0 and batch // 2 >= max(_SMALLEST_BATCH, ranks) and sequences < _WISHED_STEPS * batch:
        batch //= 2
    return batch


def _apply_layout(values: dict[str, Any], config: RunConfig, wishes: Wishes, *, source: str) -> None:
    if wishes.memory_gib is None:
        raise ConfigError(
            "nvidia-smi does not tell how much memory the GPUs here have; give --memory GIB, or --gpus 0 for a CPU"
        )
    cluster = Cluster(1, wishes.gpus, wishes.memory_gib, usual_reserve(wishes.memory_gib))
    attention = planned_backend(config.training.attention, on_gpu=True)
    chosen = search_layouts(config, cluster, attention, source=source).recommended
    if chosen is None:
        raise ConfigError(
            f"no layout of {wishes.base} fits {wishes.gpus} GPUs of {wishes.memory_gib:.0f} GiB; choose a smaller "
            "--base (`megadeberta recipes` lists them), or see `megadeberta plan`"
        )
    for override in chosen.layout.overrides(config):
        key, _, text = override.partition("=")
        *sections, last = key.split(".")
        node = values
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = json.loads(text)


def _resolve(parent: dict[str, Any], values: dict[str, Any], source: str) -> RunConfig:
    own = {key: value for key, value in values.items() if key != "extends"}
    data = own.get("data", {})
    if "folder" in data:  # it takes the place of the base's paths
        kept = {key: value for key, value in parent["data"].items() if key not in ("train", "valid", "tokenizer")}
        parent = parent | {"data": kept}
    return parse_run_config(extend(parent, own), source=source)


def _extends(base: str, output: Path) -> str:
    """A shipped recipe's name, or the path of a file from the new recipe on."""
    found = find_recipe(base)
    return base if found != Path(base) else os.path.relpath(found.resolve(), output.resolve().parent)


def _two_figures(value: float) -> float:
    return float(f"{value:.2g}")
