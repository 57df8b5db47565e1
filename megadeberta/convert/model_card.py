"""The README.md of an export."""

import json
from importlib.resources import files
from string import Template
from typing import Any

from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.convert.formats.hf_config import V2, FileFormat, HfLayout, ModelKind
from megadeberta.weights.source import ModelSource

_OBJECTIVES = {
    "mlm": "masked language modelling",
    "rtd": "replaced token detection",
    "ar": "next tokens, left to right",
    "mlm_ar": "masked language modelling and next tokens",
}
_NO_DECODER = "The prediction head reads the last layer, as transformers' class does: fill-mask works as it is."
_BACKBONE_ONLY = "The folder holds the encoder alone: no prediction head and no absolute positions."
_DISCRIMINATOR = """The folder holds a discriminator: the encoder, with the whole word table, and the head that tells
replaced tokens (`mask_predictions.*`), which transformers does not have and reports as unexpected. Fine-tuning needs
the encoder alone. `megadeberta convert import` reads both, with the generator's folder beside it."""
_OPT_IN = """## Fill-mask

This model was pre-trained with DeBERTa's enhanced mask decoder, which transformers does not have:
`AutoModelForMaskedLM` loads every tensor it knows, but its predictions are not those of pre-training.
`modeling_megadeberta.py` in this folder is the missing part. Read it, put it on your path and import it yourself;
nothing loads it for you:

```python
from modeling_megadeberta import DebertaV2ForMaskedLMWithMaskDecoder

model = DebertaV2ForMaskedLMWithMaskDecoder.from_pretrained("path/of/this/folder")
```

or use `megadeberta fill-mask path/of/this/folder "text with [MASK]"`. Fine-tuning the backbone needs neither. Saving
the model with another class of transformers loses the absolute position table
(`deberta.embeddings.position_embeddings.weight`)."""
_NO_OPT_IN = """## Fill-mask

This model was pre-trained with DeBERTa's enhanced mask decoder, which transformers does not have, and its v1 class
cannot be extended by it. `AutoModelForMaskedLM` loads the head but its predictions are not those of pre-training; use
`megadeberta fill-mask path/of/this/folder "text with [MASK]"`. Fine-tuning the backbone is not affected."""


def write_model_card(source: ModelSource, layout: HfLayout, *, num_tokens: int) -> str:
    """Markdown: what the model is, what it was trained on and how long, how to load it and what to watch."""
    config = source.config
    name = "model_card.md" if layout.file_format == FileFormat.HUGGING_FACE else "model_card_microsoft.md"
    template = Template((files("megadeberta.convert") / name).read_text(encoding="utf-8"))
    is_mlm = layout.kind == ModelKind.MLM
    head = "" if layout.kind == ModelKind.BACKBONE else " with its head"
    return template.substitute(
        pipeline_tag="fill-mask" if is_mlm else "feature-extraction",
        title=source.run.get("config", {}).get("name", "DeBERTa"),
        summary=(
            f"A DeBERTa encoder: {config.num_hidden_layers} layers, width {config.hidden_size}, "
            f"{config.num_attention_heads} heads, at most {config.max_position_embeddings} tokens, "
            f"{_count(source):,} parameters{head}."
        ),
        training=_training(source.run),
        auto_class="AutoModelForMaskedLM" if is_mlm else "AutoModel",
        mask_decoder=_mask_decoder_note(source, layout),
        num_tokens=num_tokens,
        vocab_size=config.vocab_size,
        model=json.dumps(config.model_dump(mode="json"), indent=2),
    )


def _mask_decoder_note(source: ModelSource, layout: HfLayout) -> str:
    if layout.kind != ModelKind.MLM:
        return _BACKBONE_ONLY if layout.kind == ModelKind.BACKBONE else _DISCRIMINATOR
    if not source.config.enhanced_mask_decoder:
        return _NO_DECODER
    return _OPT_IN if layout.model_type == V2 else _NO_OPT_IN


def _count(source: ModelSource) -> int:
    """Parameters, a discriminator's table once."""
    return sum(tensor.numel() for name, tensor in source.weights.items() if not name.endswith(".delta"))


def _training(run: dict[str, Any]) -> str:
    if not run:
        return "The weights were imported, not trained by megadeberta; their history is not known here."
    config = run["config"]
    data, objective, schedule = config["data"], config["objective"], config["schedule"]
    batch = EngineSettings.of(config["deepspeed"]).global_batch or "?"
    rows = {
        "objective": f"{_OBJECTIVES[objective.get('name', 'mlm')]}, {objective['mask_rate']:.0%} of the tokens masked",
        "optimizer steps": f"{run['step']:,} of {config['training']['steps']:,}",
        "sequences a step": f"{batch} of {data['sequence_length']} tokens",
        "training shards": f"`{data['train']}`",
        "learning rate": f"{config['optimizer']['lr']}, {schedule['name']}, {schedule['warmup_steps']:,} warm-up steps",
        "seed": config["training"]["seed"],
        **run["losses"],
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
