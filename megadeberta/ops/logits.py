"""Who reads logits over the vocabulary: the names of the implementations, and how many logits exist at once. No torch.

Cross entropy (``masked_cross_entropy.py``) and draw (``gumbel_max.py``) have the same names.
"""

from megadeberta.ops.attention.backends import AUTO, CPU, reason_without_triton

TORCH, CPU_CODE, TRITON = "torch", CPU, "triton"
IMPLEMENTATIONS = {
    TORCH: "plain torch, the definition of correct",
    CPU_CODE: "the same loss; a draw that computes the noise of the few ids that can win",
    TRITON: "Triton kernels, one for the loss and its gradient and one for the draw",
}
"""By the name that ``training.logits`` uses."""

CHUNK_ELEMENTS = 2**27
"""Logits of one chunk: 512 MiB in fp32. With one chunk its softmax is kept, with more each is recomputed."""
KERNEL_BYTES = 2**31
"""With the kernels, which need no fp32 copy, as many bytes of logits are one chunk: 8 000 rows over 128 000 ids in
bf16. More than that are cut into chunks of ``CHUNK_ELEMENTS``."""


def resolve(setting: str, device_type: str) -> str:
    """The implementation that a setting means on a device of that type; for auto the one that needs no trial."""
    if setting != AUTO:
        return setting
    return CPU_CODE if device_type == "cpu" else TORCH


def planned(setting: str, *, on_gpu: bool) -> str:
    """What memory is planned with: on a GPU auto is the kernels, which keep more."""
    return TRITON if setting == AUTO and on_gpu else resolve(setting, "cuda" if on_gpu else "cpu")


def reason_not_to_run(implementation: str, device_type: str) -> str:
    """Why an implementation does not run on a device of that type here, for the user; empty if it does."""
    if implementation == CPU_CODE and device_type != "cpu":
        return f"it runs on a CPU only, and this is {device_type}"
    return reason_without_triton(device_type) if implementation == TRITON else ""


def rows_per_chunk(vocabulary: int) -> int:
    """Most rows whose logits over ``vocabulary`` ids exist at once; one at least."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


def row_chunks(num_rows: int, vocabulary: int, *, implementation: str, element_bytes: int) -> list[slice]:
    """Rows in chunks whose logits exist at once; one empty chunk of no rows.

    Args:
        element_bytes: of a logit as the decoder computes it.
    """
    size = rows_per_chunk(vocabulary)
    if implementation == TRITON and num_rows * vocabulary * element_bytes <= KERNEL_BYTES:
        size = max(1, num_rows)
    return [slice(start, min(num_rows, start + size)) for start in range(0, max(1, num_rows), size)]
