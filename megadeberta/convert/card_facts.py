"""What a model card says of the run that trained the weights: settings, data, hardware and losses. Without torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megadeberta.config.batches import BatchSizes, BatchStage
from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.shard_manifest import ShardManifest, read_manifest
from megadeberta.errors import ConfigError, DataError
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.layers.terms import term
from megadeberta.observability.metrics import METRICS_FILE, read_metrics
from megadeberta.remote.path import as_path

if TYPE_CHECKING:
    from megadeberta.weights.source import ModelSource

_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_SHOWN_SOURCES = 3


@dataclass(frozen=True)
class CardFacts:
    """What only a person can say of a model."""

    licence: str | None = None
    """As the hub spells it: "mit", "apache-2.0"."""
    languages: Sequence[str] = ()
    """Codes: "en", "de"."""

    def __post_init__(self) -> None:
        licences = [] if self.licence is None else [self.licence]
        for option, values in (("--license", licences), ("--language", self.languages)):
            if bad := [value for value in values if not _CODE.fullmatch(value)]:
                raise ConfigError(f"{option} {bad[0]!r} is no code; write one such as mit, apache-2.0, en or de")

    def front_matter(self) -> str:
        """Lines for the head of the card, which the hub's search reads."""
        lines = [f"license: {self.licence}"] if self.licence else []
        lines += ["language:", *(f"- {code}" for code in self.languages)] if self.languages else []
        return "".join(f"{line}\n" for line in lines)

    def rows(self) -> dict[str, str]:
        """Of the card's table."""
        return {
            "licence": self.licence or "not stated",
            "language": ", ".join(self.languages) or "not stated",
        }


def training_table(source: "ModelSource", facts: CardFacts) -> str:
    """The card's table in Markdown, or a sentence for weights of no run."""
    run = source.run
    if not run:
        unknown = "The weights were imported, not trained by megadeberta; their history is not known here."
        return f"{unknown}\n\n{_table(facts.rows())}"
    config = run["config"]
    data, schedule = config["data"], config["schedule"]
    objective = ObjectiveConfig.model_validate(config["objective"])
    stages = [BatchStage.model_validate(stage) for stage in config["training"].get("batch_stages", ())]
    batches = BatchSizes(stages, EngineSettings.of(config["deepspeed"]).global_batch)
    records = [record for record in read_metrics(_run_folder(source) / METRICS_FILE) if record["step"] <= run["step"]]
    rows = {
        "objective": objective_of(objective).describe(objective),
        "optimizer steps": f"{run['step']:,} of {config['training']['steps']:,}",
        "sequences per step": f"{batches.describe() if batches.last else '?'} of {data['sequence_length']} tokens",
        "training data": _training_data(data["train"]),
        **facts.rows(),
        "learning rate": f"{config['optimizer']['lr']}, {schedule['name']}, {schedule['warmup_steps']:,} warm-up steps",
        "seed": config["training"]["seed"],
        "hardware": _hardware(run),
        **_duration(records, batches, data["sequence_length"]),
        **_losses(records, ModelConfig.model_validate(config["model"]), objective),
    }
    return _table(rows)


def _table(rows: Mapping[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _run_folder(source: "ModelSource") -> Path:
    """Where the checkpoint's run wrote its log; another folder when the checkpoint was moved away from it."""
    return source.folder.absolute().parent.parent


def _training_data(train: str | dict[str, dict[str, Any]]) -> str:
    prefixes = [train] if isinstance(train, str) else [source["prefix"] for _, source in sorted(train.items())]
    return ", ".join(f"`{prefix}`{_size_of(as_path(prefix))}" for prefix in prefixes)


def _size_of(prefix: Path) -> str:
    """What the token file's manifest tells, if it is still there."""
    try:
        manifest = read_manifest(prefix.with_name(f"{prefix.name}.json"))
    except DataError:
        return ""
    return f" ({manifest.num_tokens:,} tokens of {manifest.num_documents:,} documents{_sources(manifest)})"


def _sources(manifest: ShardManifest) -> str:
    names = [f"`{source.name}`" for source in manifest.sources]
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN_SOURCES} more files" if len(names) > _SHOWN_SOURCES else ""
    return f" from {', '.join(names[:_SHOWN_SOURCES])}{more}"


def _hardware(run: Mapping[str, Any]) -> str:
    world = run["world"]
    name = run["hardware"] or "not recorded"
    return f"{world['world_size']} x {name}, {world['precision']}, ZeRO stage {world['zero_stage']}"


def _duration(records: Sequence[Mapping[str, Any]], batches: BatchSizes, length: int) -> dict[str, str]:
    """Hours of the logged steps, by their speeds."""
    timed = [record for record in records if record.get("tokens_per_second")]
    if not timed or not batches.last:
        return {}
    hours = sum(batches.at(each["step"] - 1) * length / each["tokens_per_second"] for each in timed) / 3600
    return {"time": f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"}


def _losses(records: Sequence[Mapping[str, Any]], model: ModelConfig, objective: ObjectiveConfig) -> dict[str, str]:
    """The last values that were logged of the loss, or of each loss where there are several, and of what is shown
    beside it in the log."""
    losses = objective_of(objective).loss_weights(objective)
    labels = {"loss": "loss"} if len(losses) == 1 else {}
    for layer in list_layers(model, objective):
        for name in layer.terms:
            if name in losses if term(name).is_loss else term(name).label:
                of_part = f" ({layer.part})" if layer.part else ""
                labels.setdefault(name, f"{term(name).title or name.replace('_', ' ')}{of_part}")
    if "loss" in labels:
        labels.pop(next(iter(losses)), None)
    found = {}
    for phase, prefix in (("training", ""), ("validation", "valid_")):
        for name, label in labels.items():
            values = [record[prefix + name] for record in records if record.get(prefix + name) is not None]
            if values:
                found[f"{phase} {label}"] = f"{values[-1]:.4f}"
    return found
