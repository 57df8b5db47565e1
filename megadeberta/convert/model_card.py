"""The README.md of an export."""

import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.formats.family import ExportTarget, Family, FileFormat, ModelKind
from megadeberta.convert.formats.names import INPUT_POSITION_TABLE
from megadeberta.layers.objectives import objective_of
from megadeberta.observability.metrics import METRICS_FILE, read_metrics
from megadeberta.weights.source import ModelSource

_NO_DECODER = "The prediction head reads the last layer, as transformers' class does: fill-mask works as it is."
_BACKBONE_ONLY = "The folder holds the encoder alone: no prediction head and no absolute positions."
_LEFT_TO_RIGHT = """
It was trained from left to right: no token saw those after it. transformers' classes let every token see all others, so
their states are not those of training, and fine-tuning starts further from it than that of a masked language model."""
_DISCRIMINATOR = """The folder holds a discriminator: the encoder, with the whole word table, and the head that tells
replaced tokens from original ones (`mask_predictions.*`), which transformers does not have and reports as unexpected.
Fine-tuning needs the encoder alone. `megadeberta convert import` reads both, with the generator's folder beside it."""
_OPT_IN = Template("""## Fill-mask

This model was pre-trained with DeBERTa's enhanced mask decoder, which transformers does not have:
`AutoModelForMaskedLM` and `pipeline("fill-mask")` load every tensor they know, but without `trust_remote_code=True`
their predictions are not those of pre-training and are worse, without a word. `$file` in this folder is
the missing part. Read it, and if you trust it:

```python
from transformers import AutoModelForMaskedLM, pipeline

model = AutoModelForMaskedLM.from_pretrained("path/of/this/folder", trust_remote_code=True)
fill = pipeline("fill-mask", model="path/of/this/folder", trust_remote_code=True)
```

The class, `$model_class`, takes and returns what transformers' own does, can be put on your path and imported
(`from $module import $model_class`), and counts the positions of real tokens, with padding on either side.
Or use `megadeberta fill-mask path/of/this/folder "text with [MASK]"`. Fine-tuning the backbone needs neither. Saving
the model with another class of transformers loses the absolute position table
(`$position_table`).""")
_FAST_ATTENTION = """
With the package megadeberta, this line makes the model or any other class of transformers around it faster, for
fine-tuning and inference; outputs stay the same:

```python
from megadeberta.hf import use_fast_attention

use_fast_attention(model)
```
"""
_NO_OPT_IN = Template("""## Fill-mask

This model was pre-trained with DeBERTa's enhanced mask decoder, which transformers does not have, and its $family class
cannot be extended by it. `AutoModelForMaskedLM` loads the head but its predictions are not those of pre-training; use
`megadeberta fill-mask path/of/this/folder "text with [MASK]"`. Fine-tuning the backbone is not affected.""")


def microsoft_decoder_note(source: ModelSource, target: ExportTarget) -> str:
    """What microsoft/DeBERTa does wrong with the export; empty if nothing.

    Its class adds absolute positions before the head unless they are at the input (``masked_language_model.py``).
    """
    config = source.config
    is_for_microsoft = target.kind == ModelKind.MLM and target.file_format == FileFormat.MICROSOFT
    if not is_for_microsoft or config.enhanced_mask_decoder or config.position_biased_input:
        return ""
    return (
        "this model has no mask decoder, and microsoft/DeBERTa predicts with one in any case, over a table of absolute "
        "positions drawn at random: the encoder is right there, the predicted tokens are not"
    )


def write_model_card(source: ModelSource, target: ExportTarget, *, num_tokens: int) -> str:
    """Markdown: what the model is, what it was trained on and how long, how to load it and what to watch."""
    config = source.config
    name = "model_card.md" if target.file_format == FileFormat.HUGGING_FACE else "model_card_microsoft.md"
    template = Template((files("megadeberta.convert") / name).read_text(encoding="utf-8"))
    is_mlm = target.kind == ModelKind.MLM
    head = "" if target.kind == ModelKind.BACKBONE else " with its head"
    return template.substitute(
        pipeline_tag="fill-mask" if is_mlm else "feature-extraction",
        title=source.run.get("config", {}).get("name", "DeBERTa"),
        summary=(
            f"A DeBERTa encoder: {config.num_hidden_layers} layers, width {config.hidden_size}, "
            f"{config.num_attention_heads} heads, at most {config.max_position_embeddings} tokens, "
            f"{_count(source):,} parameters{head}."
        ),
        training=_training(source),
        auto_class="AutoModelForMaskedLM" if is_mlm else "AutoModel",
        fast_attention=_FAST_ATTENTION if target.family.has_fast_attention else "",
        mask_decoder=_mask_decoder_note(source, target),
        microsoft_decoder=_sentence(microsoft_decoder_note(source, target)),
        num_tokens=num_tokens,
        vocab_size=config.vocab_size,
        model=json.dumps(config.model_dump(mode="json"), indent=2),
    )


def _sentence(note: str) -> str:
    return f"\n**Beware**: {note}.\n" if note else ""


def _mask_decoder_note(source: ModelSource, target: ExportTarget) -> str:
    if target.kind == ModelKind.BACKBONE:
        return _BACKBONE_ONLY + (_LEFT_TO_RIGHT if _is_left_to_right(source) else "")
    if target.kind == ModelKind.DISCRIMINATOR:
        return _DISCRIMINATOR
    if not source.config.enhanced_mask_decoder:
        return _NO_DECODER
    return _fill_mask_note(target.family)


def _is_left_to_right(source: ModelSource) -> bool:
    """Whether the run trained on next tokens alone."""
    if not source.run:
        return False
    settings = ObjectiveConfig.model_validate(source.run["config"]["objective"])
    return objective_of(settings).loss_weights(settings).keys() == {"ar_loss"}


def _fill_mask_note(family: Family) -> str:
    """For a model with a mask decoder."""
    if family.opt_in is None:
        return _NO_OPT_IN.substitute(family=family.versions)
    return _OPT_IN.substitute(
        file=family.opt_in.file_name,
        module=family.opt_in.file_name.removesuffix(".py"),
        model_class=family.opt_in.class_name,
        position_table=f"{family.prefixes[0]}{INPUT_POSITION_TABLE}",
    )


def _count(source: ModelSource) -> int:
    """Parameters, a discriminator's table once."""
    return sum(tensor.numel() for name, tensor in source.weights.items() if not name.endswith(".delta"))


def _training(source: ModelSource) -> str:
    run = source.run
    if not run:
        return "The weights were imported, not trained by megadeberta; their history is not known here."
    config = run["config"]
    data, schedule = config["data"], config["schedule"]
    objective = ObjectiveConfig.model_validate(config["objective"])
    batch = EngineSettings.of(config["deepspeed"]).global_batch or "?"
    rows = {
        "objective": objective_of(objective).describe(objective),
        "optimizer steps": f"{run['step']:,} of {config['training']['steps']:,}",
        "sequences per step": f"{batch} of {data['sequence_length']} tokens",
        "training data": _training_data(data["train"]),
        "learning rate": f"{config['optimizer']['lr']}, {schedule['name']}, {schedule['warmup_steps']:,} warm-up steps",
        "seed": config["training"]["seed"],
        **_losses(source.folder, run["step"]),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _training_data(train: str | dict[str, dict[str, Any]]) -> str:
    prefixes = [train] if isinstance(train, str) else [source["prefix"] for _, source in sorted(train.items())]
    return ", ".join(f"`{prefix}`" for prefix in prefixes)


def _losses(checkpoint: Path, step: int) -> dict[str, str]:
    """The last losses that the run logged up to ``step``; none when the folder was moved away from its run."""
    labels = {"loss": "training loss", "valid_loss": "validation loss"}
    found: dict[str, str] = {}
    for record in read_metrics(checkpoint.absolute().parent.parent / METRICS_FILE):
        if record["step"] <= step:
            found |= {label: f"{record[key]:.4f}" for key, label in labels.items() if record.get(key) is not None}
    return found
