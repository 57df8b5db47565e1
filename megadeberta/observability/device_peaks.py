"""Peak rates of GPUs, which MFU is measured against."""

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


def device_peak_flops(device_name: str) -> float | None:
    """Peak operations a second of a GPU as torch names it, e.g. ``NVIDIA H100 80GB HBM3``; None if unknown."""
    words = _words(device_name)
    if words & {"MIG", "LAPTOP"}:  # a slice of the device, or another chip of the same name
        return None
    return next((peak * 1e12 for name, peak in _DEVICE_PEAKS if _words(name) <= words), None)


def _words(name: str) -> set[str]:
    return set(name.upper().replace("-", " ").split())
