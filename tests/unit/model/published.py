"""The ten published checkpoints: their config.json, and the names and shapes of their tensors, written out once more.

H hidden size, I intermediate size, V vocabulary.
"""

from typing import Any

COMMON = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "pad_token_id": 0,
    "position_biased_input": False,
    "relative_attention": True,
    "type_vocab_size": 0,
}
V1 = {"model_type": "deberta", "pos_att_type": "c2p|p2c", "vocab_size": 50265}
V2 = {
    "model_type": "deberta-v2",
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": "p2c|c2p",
    "position_buckets": 256,
    "share_att_key": True,
    "vocab_size": 128100,
}
CONVOLUTION = {"conv_kernel_size": 3, "conv_act": "gelu"}
# name: layers, H, heads; parameters of the encoder with its word table, and with the prediction head
SIZES = {
    "deberta-base": (V1, 12, 768, 12, 138_601_728, 139_244_121),
    "deberta-large": (V1, 24, 1024, 16, 405_163_008, 406_264_921),
    "deberta-xlarge": (V1, 48, 1024, 16, 757_804_032, 758_905_945),
    "deberta-v2-xlarge": (V2 | CONVOLUTION, 24, 1536, 24, 884_593_152, 887_085_156),
    "deberta-v2-xxlarge": (V2 | CONVOLUTION, 48, 1536, 24, 1_564_549_632, 1_567_041_636),
    "deberta-v3-xsmall": (V2, 12, 384, 6, 70_682_112, 70_958_820),
    "deberta-v3-small": (V2, 6, 768, 12, 141_304_320, 142_024_548),
    "deberta-v3-base": (V2, 12, 768, 12, 183_831_552, 184_551_780),
    "deberta-v3-large": (V2, 24, 1024, 16, 434_012_160, 435_191_908),
    "mdeberta-v3-base": (V2 | {"vocab_size": 251_000}, 12, 768, 12, 278_218_752, 279_061_880),
}
NAMES = tuple(SIZES)


def published_config(name: str) -> dict[str, Any]:
    """What config.json of the checkpoint says."""
    family, layers, hidden, heads, *_ = SIZES[name]
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return COMMON | family | sizes | {"intermediate_size": 4 * hidden}


def published_counts(name: str) -> tuple[int, int]:
    """Parameters of the encoder with its word table, and of the masked-language model."""
    return SIZES[name][4:]


def published_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the masked-language model's tensors, the head as microsoft/DeBERTa spells it."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    is_v1 = config["model_type"] == "deberta"
    rows = 2 * (config["max_position_embeddings"] if is_v1 else config["position_buckets"])
    shapes = {
        "deberta.embeddings.word_embeddings.weight": (vocabulary, hidden),
        "deberta.encoder.rel_embeddings.weight": (rows, hidden),
        "lm_predictions.lm_head.bias": (vocabulary,),
    }
    shapes |= _linear("lm_predictions.lm_head.dense", hidden, hidden)
    norms = ["deberta.embeddings.LayerNorm", "lm_predictions.lm_head.LayerNorm"]
    if not is_v1:
        norms.append("deberta.encoder.LayerNorm")
    if config.get("conv_kernel_size"):
        norms.append("deberta.encoder.conv.LayerNorm")
        shapes["deberta.encoder.conv.conv.weight"] = (hidden, hidden, config["conv_kernel_size"])
        shapes["deberta.encoder.conv.conv.bias"] = (hidden,)
    for i in range(config["num_hidden_layers"]):
        layer = f"deberta.encoder.layer.{i}"
        shapes |= _v1_attention(layer, hidden) if is_v1 else _v2_attention(layer, hidden)
        shapes |= _linear(f"{layer}.attention.output.dense", hidden, hidden)
        shapes |= _linear(f"{layer}.intermediate.dense", inner, hidden)
        shapes |= _linear(f"{layer}.output.dense", hidden, inner)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    return shapes | {f"{norm}.{kind}": (hidden,) for norm in norms for kind in ("weight", "bias")}


def _v1_attention(layer: str, hidden: int) -> dict[str, tuple[int, ...]]:
    own = f"{layer}.attention.self"
    square = {f"{own}.in_proj.weight": (3 * hidden, hidden), f"{own}.pos_proj.weight": (hidden, hidden)}
    biases = {f"{own}.q_bias": (hidden,), f"{own}.v_bias": (hidden,)}
    return square | biases | _linear(f"{own}.pos_q_proj", hidden, hidden)


def _v2_attention(layer: str, hidden: int) -> dict[str, tuple[int, ...]]:
    query, key, value = (
        _linear(f"{layer}.attention.self.{name}_proj", hidden, hidden) for name in ("query", "key", "value")
    )
    return query | key | value


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
