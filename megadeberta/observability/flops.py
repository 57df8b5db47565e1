"""Useful floating-point operations of one training token, and the peak rates that MFU is measured against.

D hidden size · I intermediate size · L layers · N sequence length · R rows of the relative table in use · V vocabulary
E embedding width · m share of masked tokens. A multiply-add is two operations; backward is twice forward.
"""

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig

_FORWARD_BACKWARD = 6  # operations per multiply-add of the forward pass: 2 forward, 4 backward
_MASK_DECODER_PASSES = 2

# Dense matrix peaks in TFLOP/s from the vendors' data sheets, without structured sparsity: bf16 with fp32 accumulation,
# fp16 where there is no bf16. The first row whose words are all in the device's name counts.
_DEVICE_PEAKS = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.4),
    ("H200", 989.4),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.4),
    ("H800", 989.4),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A30", 165.0),
    ("A40", 149.7),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("V100-PCIE", 112.0),
    ("V100", 125.0),
    ("T4", 65.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("MI300X", 1307.4),
    ("MI250X", 383.0),
)


def flops_per_token(model: ModelConfig, *, sequence_length: int, mask_rate: float) -> float:
    """Forward and backward operations that MLM training needs for one token of a full sequence.

    Counted: matrix products with the weights, attention scores and their relative terms, the decoder on masked tokens.
    Not counted: recomputation, normalisation, look-ups, and the projections of the relative table, which are shared by
    the whole batch. With the enhanced mask decoder nothing reads the plain output of the last layer, so it counts as
    what the loss needs of it: keys and values of all tokens once, and two passes of the rest over the masked tokens.
    """
    hidden, layers = model.hidden_size, model.num_hidden_layers
    projections = 4 * hidden**2 + 2 * hidden * model.intermediate_size
    attention = _attention_multiply_adds(model, sequence_length)
    head = mask_rate * (hidden * model.embedding_width + model.embedding_width * model.vocab_size)
    total = head + _convolution_multiply_adds(model) + _embedding_multiply_adds(model)
    if model.enhanced_mask_decoder:
        keys_and_values = 2 * hidden**2
        total += (layers - 1) * (projections + attention) + keys_and_values
        total += _MASK_DECODER_PASSES * mask_rate * (projections - keys_and_values + attention)
    else:
        total += layers * (projections + attention)
    return _FORWARD_BACKWARD * total


def run_flops_per_token(model: ModelConfig, objective: ObjectiveConfig, *, sequence_length: int) -> float:
    """Operations that the objective needs for one token; for replaced token detection those of both networks.

    Reading left to right predicts every token. The replaced-token head, a row of the classifier, is not counted.
    """
    if objective.name == "rtd":
        generator, discriminator = objective.rtd.generator(model), objective.rtd.discriminator(model)
        return flops_per_token(
            generator, sequence_length=sequence_length, mask_rate=objective.mask_rate
        ) + flops_per_token(discriminator, sequence_length=sequence_length, mask_rate=0.0)
    left_to_right = {"mlm": 0.0, "ar": 1.0, "mlm_ar": objective.autoregressive.share}[objective.name]
    targets = left_to_right + (1.0 - left_to_right) * objective.mask_rate
    return flops_per_token(model, sequence_length=sequence_length, mask_rate=targets)


def device_peak_flops(device_name: str) -> float | None:
    """Peak operations a second of a GPU as torch names it, e.g. ``NVIDIA H100 80GB HBM3``; None if unknown."""
    words = _words(device_name)
    if words & {"MIG", "LAPTOP"}:  # a slice of the device, or another chip of the same name
        return None
    return next((peak * 1e12 for name, peak in _DEVICE_PEAKS if _words(name) <= words), None)


def _words(name: str) -> set[str]:
    return set(name.upper().replace("-", " ").split())


def _attention_multiply_adds(model: ModelConfig, sequence_length: int) -> int:
    """Scores and values (N rows each), and one product with R table rows for each of c2p and p2c."""
    content = 2 * sequence_length * model.hidden_size
    if not model.relative_attention:
        return content
    rows = min(2 * sequence_length - 1, 2 * model.relative_half_width)
    return content + len(model.pos_att_type) * rows * model.hidden_size


def _convolution_multiply_adds(model: ModelConfig) -> int:
    return model.conv_kernel_size * model.hidden_size**2 // model.conv_groups


def _embedding_multiply_adds(model: ModelConfig) -> int:
    """The projection of a word table that is narrower than the model."""
    if model.embedding_width == model.hidden_size:
        return 0
    return model.embedding_width * model.hidden_size
