"""The README.md of an export."""

import json
from importlib.resources import files
from string import Template

from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig
from megadeberta.convert.card_facts import CardFacts, training_table
from megadeberta.convert.formats.family import ExportTarget, Family, FileFormat, ModelKind
from megadeberta.convert.formats.names import INPUT_POSITION_TABLE
from megadeberta.layers.objectives import objective_of
from megadeberta.weights.source import ModelSource

_ORIGINS = {
    "": "A DeBERTa encoder",
    GENERATOR: "The generator of a DeBERTa trained by replaced token detection, the smaller part that fills masks and "
    "makes the discriminator's task; for fine-tuning take the discriminator",
    DISCRIMINATOR: "The discriminator of a DeBERTa trained by replaced token detection, the part that is fine-tuned",
}
"""By part of a model."""
_NO_DECODER = "The prediction head reads the last layer, as transformers' class does: fill-mask works as it is."
_BACKBONE_ONLY = "The folder holds the encoder alone: no prediction head and no absolute positions."
_OTHER_HEADS = """Classes with another head, and `AutoModel`, report the prediction head (`lm_predictions.*` or
`cls.predictions.*`) as unexpected: they have no place for it, and nothing is lost. An export with `--model backbone`
is the encoder without it."""
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


def describe_part(source: ModelSource) -> str:
    """What of a run the weights are, for the card and the command's output: "discriminator, 12 layers, width 768"."""
    config = source.config
    what = source.part or "model"
    return f"{what}, {config.num_hidden_layers} layers, width {config.hidden_size}, {_count(source):,} parameters"


def write_model_card(source: ModelSource, target: ExportTarget, facts: CardFacts, *, num_tokens: int) -> str:
    """Markdown: what the model is, what it was trained on and how long, how to load it and what to watch."""
    config = source.config
    name = "model_card.md" if target.file_format == FileFormat.HUGGING_FACE else "model_card_microsoft.md"
    template = Template((files("megadeberta.convert") / name).read_text(encoding="utf-8"))
    is_mlm = target.kind == ModelKind.MLM
    head = "" if target.kind == ModelKind.BACKBONE else " with its head"
    return template.substitute(
        pipeline_tag="fill-mask" if is_mlm else "feature-extraction",
        front_matter=facts.front_matter(),
        title=source.run.get("config", {}).get("name", "DeBERTa") + (f" ({source.part})" if source.part else ""),
        summary=(
            f"{_ORIGINS[source.part]}: {config.num_hidden_layers} layers, width {config.hidden_size}, "
            f"{config.num_attention_heads} heads, at most {config.max_position_embeddings} tokens, "
            f"{_count(source):,} parameters{head}."
        ),
        training=training_table(source, facts),
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
    """About the head, and what classes without it make of it."""
    if target.kind == ModelKind.BACKBONE:
        return _BACKBONE_ONLY + (_LEFT_TO_RIGHT if _is_left_to_right(source) else "")
    if target.kind == ModelKind.DISCRIMINATOR:
        return _DISCRIMINATOR
    if not source.config.enhanced_mask_decoder:
        return f"{_NO_DECODER}\n\n{_OTHER_HEADS}"
    return f"{_fill_mask_note(target.family)}\n\n{_OTHER_HEADS}"


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
