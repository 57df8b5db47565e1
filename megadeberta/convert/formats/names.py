"""Our parameter names <-> the names in Hugging Face and Microsoft checkpoints: one table, read both ways.

Backbone tensors have *v2 names*: those of transformers' ``DebertaV2Model``, which are without the prefix ``deberta.``
that a model with a head puts ahead of them. A family that stores others maps v2 names to its own (``family.py``).
"""

from megadeberta.config.model import ModelConfig

BACKBONE_PREFIX = "deberta."

_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight": "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.embed_proj.weight": "embeddings.embed_proj.weight",
    "embeddings.layer_norm.weight": "embeddings.LayerNorm.weight",
    "embeddings.layer_norm.bias": "embeddings.LayerNorm.bias",
    "relative.embedding.weight": "encoder.rel_embeddings.weight",
    "relative.layer_norm.weight": "encoder.LayerNorm.weight",
    "relative.layer_norm.bias": "encoder.LayerNorm.bias",
}
_LAYER = {
    "self_attention.attention.query_proj": "attention.self.query_proj",
    "self_attention.attention.key_proj": "attention.self.key_proj",
    "self_attention.attention.value_proj": "attention.self.value_proj",
    "self_attention.attention.pos_key_proj": "attention.self.pos_key_proj",
    "self_attention.attention.pos_query_proj": "attention.self.pos_query_proj",
    "self_attention.dense": "attention.output.dense",
    "self_attention.layer_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward.layer_norm": "output.LayerNorm",
}
_CONVOLUTION = {
    "layer.0.convolution.conv": "encoder.conv.conv",
    "layer.0.convolution.layer_norm": "encoder.conv.LayerNorm",
}
MLM_HEAD = {
    "mlm_head.dense.weight": "lm_predictions.lm_head.dense.weight",
    "mlm_head.dense.bias": "lm_predictions.lm_head.dense.bias",
    "mlm_head.layer_norm.weight": "lm_predictions.lm_head.LayerNorm.weight",
    "mlm_head.layer_norm.bias": "lm_predictions.lm_head.LayerNorm.bias",
    "mlm_head.decoder.bias": "lm_predictions.lm_head.bias",
}
LEGACY_MLM_HEAD = {
    "mlm_head.dense.weight": "cls.predictions.transform.dense.weight",
    "mlm_head.dense.bias": "cls.predictions.transform.dense.bias",
    "mlm_head.layer_norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "mlm_head.layer_norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "mlm_head.decoder.bias": "cls.predictions.bias",
}
"""transformers' head with ``legacy: true``: the same function under other names."""
RTD_HEAD = {
    "rtd_head.layer_norm.weight": "mask_predictions.LayerNorm.weight",
    "rtd_head.layer_norm.bias": "mask_predictions.LayerNorm.bias",
    "rtd_head.dense.weight": "mask_predictions.dense.weight",
    "rtd_head.dense.bias": "mask_predictions.dense.bias",
    "rtd_head.classifier.weight": "mask_predictions.classifier.weight",
    "rtd_head.classifier.bias": "mask_predictions.classifier.bias",
}
MISSPELT_RTD_HEAD = {ours: theirs.replace("classifier", "classifer") for ours, theirs in RTD_HEAD.items()}
"""As microsoft/DeBERTa wrote it until ``replaced_token_detection_model.py`` was corrected."""
WORD_TABLE = "embeddings.word_embeddings.weight"
INPUT_POSITION_TABLE = "embeddings.position_embeddings.weight"
RELATIVE_NORM = "encoder.LayerNorm."
RELATIVE_TABLE = "relative.embedding.weight"
POSITION_TABLE_OF_DECODER = "mask_decoder.position_embeddings.weight"


def backbone_names(config: ModelConfig) -> dict[str, str]:
    """Ours -> v2 names of every backbone tensor that this configuration can have.

    The enhanced mask decoder's layer is the backbone's last layer; its absolute table has the name that
    microsoft/DeBERTa gives it and transformers ignores.
    """
    names = dict(_EMBEDDINGS)
    for i in range(config.num_hidden_layers):
        is_decoder = config.enhanced_mask_decoder and i == config.num_hidden_layers - 1
        ours = "mask_decoder.layer" if is_decoder else f"layer.{i}"
        names |= _with_suffixes({f"{ours}.{a}": f"encoder.layer.{i}.{b}" for a, b in _LAYER.items()})
    names |= _with_suffixes(_CONVOLUTION)
    if config.enhanced_mask_decoder:
        names[POSITION_TABLE_OF_DECODER] = names.pop(INPUT_POSITION_TABLE)
    return names


def mlm_names(config: ModelConfig) -> dict[str, str]:
    """Ours -> Hugging Face for the masked-language-modelling class with ``legacy: false``."""
    backbone = {ours: BACKBONE_PREFIX + theirs for ours, theirs in backbone_names(config).items()}
    return backbone | MLM_HEAD


def difference_names(table: str) -> tuple[str, str]:
    """Our and microsoft/DeBERTa's name of a discriminator's difference from the generator's ``table``.

    Microsoft's is without prefix. Its ``weight`` beside it is the sum of both, as of the last forward pass.
    """
    module = table.removesuffix(".weight")
    return f"{module}.delta", f"{module}._weight"


def _with_suffixes(modules: dict[str, str]) -> dict[str, str]:
    return {f"{a}.{s}": f"{b}.{s}" for a, b in modules.items() for s in ("weight", "bias")}
