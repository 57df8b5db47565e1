"""Step times that others published, for ``benchmarks/plan_published.py``: plain GPT models on V100, A100 and H100.

Each table has one machine and one code base; its first row is what the GPU's rate is calibrated on.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """One published run of a plain transformer that reads from left to right."""

    name: str
    hidden: int
    layers: int
    heads: int
    degrees: tuple[int, int, int]
    """Tensor x pipeline x data."""
    micro_batch: int
    batch: int
    """Sequences of a step."""
    seconds: float
    length: int
    recomputes: bool = True
    """Whole layers are run forward twice."""
    virtual: int = 1
    """Interleaved stages of each pipeline rank, which divide the bubble; the engine here has none."""


@dataclass(frozen=True)
class Table:
    """Runs on one machine with one code base."""

    source: str
    vocabulary: int
    precision: str
    gpus: int
    """Per node."""
    intra: float
    """GB/s per GPU inside a node: NVLink by the data sheet, less a fifth."""
    inter: float
    """Between nodes: InfiniBand less a twentieth; on the cluster where 8 GPUs share one adapter, less a fifth."""
    zero: int
    memory_bandwidth: float
    """GB/s of a GPU's memory, by the data sheet less a fifth."""
    overlap: bool
    """Whether that code base hides the reduction of gradients behind computation."""
    rows: tuple[Published, ...]
    bounds: tuple[float, float]
    """Of planned / published seconds, for every row."""
    median: tuple[float, float] = field(default=(0.0, 9.0), kw_only=True)
    hides_tensor: bool = field(default=False, kw_only=True)
    """Also collectives of tensor parallelism."""


def _weak_scaling(seconds: tuple[float, ...], batch: int, *, data: int = 1) -> tuple[Published, ...]:
    """The four models of the Megatron README of 2020: 1B to 8B, on 1 to 8 GPUs for each replica."""
    shapes = ((1920, 24, 15), (2304, 30, 18), (3072, 36, 24), (4096, 42, 32))
    return tuple(
        Published(f"{2**n}B x {data}", *shape, (2**n, 1, data), batch, batch * data, seconds[n] / 1e3, 1024)
        for n, shape in enumerate(shapes)
    )


def _sc21() -> tuple[Published, ...]:
    """arXiv 2104.04473 table 1; settings of NVIDIA/Megatron-LM examples/academic_paper_scripts/sc21/run_table_1.sh."""
    rows = (
        ("1.7B", 2304, 24, 24, (1, 1, 32), 16, 512, 3.53, 1),
        ("3.6B", 3072, 30, 32, (2, 1, 32), 16, 512, 3.70, 1),
        ("7.5B", 4096, 36, 32, (4, 1, 32), 16, 512, 3.70, 1),
        ("18.4B", 6144, 40, 48, (8, 1, 32), 8, 1024, 9.40, 1),
        ("39.1B", 8192, 48, 64, (8, 2, 32), 4, 1536, 14.45, 1),
        ("76.1B", 10240, 60, 80, (8, 4, 32), 2, 1792, 16.06, 3),
        ("145.6B", 12288, 80, 96, (8, 8, 24), 2, 2304, 24.82, 2),
        ("310B", 16384, 96, 128, (8, 16, 15), 1, 2160, 37.61, 2),
        ("530B", 20480, 105, 128, (8, 35, 9), 1, 2520, 54.09, 3),
        ("1T", 25600, 128, 160, (8, 64, 6), 1, 3072, 102.6, 1),
    )
    return tuple(Published(*row[:-1], 2048, virtual=row[-1]) for row in rows)


def _megatron_now() -> tuple[Published, ...]:
    """NVIDIA/Megatron-LM d98e8a64 images/model_table.png; seconds from its TFLOP/s by the formula of arXiv 2104.04473
    without recomputation. Micro batch 1 is an assumption."""
    rows = (
        ("1.7B", 2048, 24, 16, (1, 1, 48), 192, 408.8),
        ("7.1B", 4096, 30, 32, (2, 1, 48), 192, 465.9),
        ("16B", 6144, 32, 48, (4, 1, 48), 192, 489.1),
        ("32B", 7168, 48, 56, (8, 1, 48), 192, 459.6),
        ("70B", 8192, 84, 64, (8, 2, 48), 384, 419.7),
        ("119B", 10240, 92, 80, (8, 4, 48), 768, 420.5),
        ("177B", 12288, 96, 96, (8, 6, 48), 1152, 432.8),
        ("314B", 16384, 96, 128, (8, 8, 48), 1536, 474.4),
        ("462B", 18432, 112, 144, (8, 16, 48), 3072, 459.9),
    )
    return tuple(
        Published(*row[:5], 1, row[5], _gpt_seconds(row[1], row[2], row[4], row[5], row[6]), 4096, recomputes=False)
        for row in rows
    )


def _gpt_seconds(hidden: int, layers: int, degrees: tuple[int, int, int], batch: int, teraflops: float) -> float:
    length, vocabulary = 4096, 131_072
    whole = 1 + length / (6 * hidden) + vocabulary / (12 * hidden * layers)
    operations = 72 * batch * length * layers * hidden**2 * whole
    return operations / (degrees[0] * degrees[1] * degrees[2] * teraflops * 1e12)


def _oneflow() -> tuple[Published, ...]:
    """Oneflow-Inc/DLPerf c89430ba Megatron-LM/README.md: milliseconds of 4 x 8 V100-SXM2-16GB, sequences of 2048.
    What was measured twice is averaged."""
    rows = (
        ("1x1x1", 1536, 16, 16, (1, 1, 1), 2, 2, 464.12),
        ("1x1x8", 1536, 16, 16, (1, 1, 8), 2, 16, 480.96),
        ("1x1x16", 1536, 16, 16, (1, 1, 16), 2, 32, 664.46),
        ("1x1x32", 1536, 16, 16, (1, 1, 32), 2, 64, 683.51),
        ("1x1x1 768x12", 768, 12, 12, (1, 1, 1), 8, 8, 611.2),
        ("8x1x1", 1536, 16, 16, (8, 1, 1), 16, 16, (692.44 + 664.64) / 2),
        ("4x1x2", 1536, 16, 16, (4, 1, 2), 8, 16, 576.48),
        ("2x1x4", 1536, 16, 16, (2, 1, 4), 4, 16, 593.68),
        ("16x1x1 3072x16", 3072, 16, 32, (16, 1, 1), 16, 16, 5610.23),
        ("32x1x1 3072x32", 3072, 32, 32, (32, 1, 1), 16, 16, 13037.85),
        ("8x1x2 2304x24", 2304, 24, 24, (8, 1, 2), 8, 16, 1313.52),
        ("8x1x4 2304x24", 2304, 24, 24, (8, 1, 4), 8, 32, 1508.48),
        ("1x4x8", 1536, 16, 16, (1, 4, 8), 2, 512, 4893.55),
        ("8x4x1 2304x24", 2304, 24, 24, (8, 4, 1), 16, 512, 22166.85),
        ("4x4x2 2304x24", 2304, 24, 24, (4, 4, 2), 8, 512, 15331.23),
        ("8x2x2 2304x24", 2304, 24, 24, (8, 2, 2), 8, 512, 16281.51),
    )
    return tuple(Published(*row[:-1], row[-1] / 1e3, 2048) for row in rows)


_MPT = {
    "125M": (768, 12, 12),
    "350M": (1024, 24, 16),
    "760M": (1536, 24, 12),
    "1B": (2048, 24, 16),
    "3B": (2560, 32, 20),
    "7B": (4096, 32, 32),
    "13B": (5120, 40, 40),
    "30B": (7168, 48, 56),
}


def _mosaic(*rows: tuple[str, int, int, int, int, int]) -> tuple[Published, ...]:
    """mosaicml/llm-foundry 8c8dd48f scripts/train/benchmarking/README.md: size, tokens of a sequence, GPUs, micro
    batch, accumulation, tokens per second and GPU. Only the 30B model recomputes in these rows."""
    return tuple(
        Published(
            f"{size} {length} x {gpus}",
            *_MPT[size],
            (1, 1, gpus),
            micro,
            micro * accumulation * gpus,
            micro * accumulation * length / rate,
            length,
            recomputes=size == "30B",
        )
        for size, length, gpus, micro, accumulation, rate in rows
    )


_OF_H100 = (
    ("1B", 2048, 8, 14, 1, 45455),
    ("1B", 2048, 16, 20, 1, 46037),
    ("1B", 2048, 32, 20, 1, 45130),
    ("1B", 2048, 64, 20, 1, 44402),
    ("1B", 512, 8, 56, 4, 52275),
    ("1B", 8192, 8, 3, 4, 29157),
    ("760M", 2048, 8, 24, 2, 63147),
    ("3B", 2048, 16, 10, 3, 24142),
    ("3B", 2048, 32, 6, 3, 23021),
    ("3B", 2048, 64, 6, 3, 22525),
    ("7B", 2048, 8, 6, 1, 10643),
    ("13B", 2048, 8, 2, 1, 4792),
    ("13B", 2048, 16, 2, 1, 4767),
    ("13B", 2048, 64, 2, 1, 4800),
    ("30B", 2048, 8, 3, 21, 2002),
)
_OF_A100 = (
    ("1B", 2048, 8, 14, 4, 20513),
    ("125M", 2048, 8, 40, 2, 142830),
    ("350M", 2048, 8, 32, 2, 58782),
    ("760M", 2048, 8, 24, 2, 32434),
    ("3B", 2048, 8, 10, 2, 10811),
    ("7B", 2048, 8, 6, 2, 4641),
    ("13B", 2048, 8, 2, 3, 2262),
    ("30B", 2048, 8, 3, 21, 916),
)
_README_2020 = "NVIDIA/Megatron-LM 7abd3e90 images/tables.tex"
_FOUNDRY = "mosaicml/llm-foundry 8c8dd48f benchmarking/README.md"
_CLOSE, _FAIR = (0.9, 1.1), (0.85, 1.2)
TABLES = {
    "megatron 2020, V100": Table(
        _README_2020, 51_200, "fp16", 16, 120, 6, 0, 720, False, _weak_scaling((1121, 1093, 1238, 1407), 8), _CLOSE
    ),
    "megatron 2020, A100": Table(
        _README_2020, 51_200, "fp16", 8, 240, 23.75, 0, 1240, False, _weak_scaling((1076, 1026, 1162, 1343), 16), _CLOSE
    ),
    "megatron 2020, A100, 128 replicas": Table(
        _README_2020,
        51_200,
        "fp16",
        8,
        240,
        23.75,
        0,
        1240,
        False,
        (
            _weak_scaling((1076, 1026, 1162, 1343), 16)[0],
            *_weak_scaling((1153, 1101, 1242, 1380), 16, data=128),
        ),
        _CLOSE,
    ),
    "megatron 2021, A100": Table(
        "arXiv 2104.04473 table 1", 51_200, "fp16", 8, 240, 23.75, 0, 1630, True, _sc21(), _FAIR, hides_tensor=True
    ),
    "megatron 2026, H100": Table(
        "NVIDIA/Megatron-LM d98e8a64 images/model_table.png",
        131_072,
        "bf16",
        8,
        360,
        47.5,
        1,
        2680,
        True,
        _megatron_now(),
        _FAIR,
        hides_tensor=True,
    ),
    "oneflow 2021, V100": Table(
        "Oneflow-Inc/DLPerf c89430ba Megatron-LM/README.md",
        50_304,
        "fp16",
        8,
        120,
        1.25,
        0,
        720,
        False,
        _oneflow(),
        (0.7, 1.2),
        median=(0.95, 1.05),
    ),
    "mosaic 2023, H100": Table(_FOUNDRY, 50_368, "bf16", 8, 360, 47.5, 3, 2680, True, _mosaic(*_OF_H100), _FAIR),
    "mosaic 2023, A100": Table(_FOUNDRY, 50_368, "bf16", 8, 240, 40, 3, 1630, True, _mosaic(*_OF_A100), _FAIR),
}
