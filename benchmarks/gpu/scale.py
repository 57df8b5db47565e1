"""The sizes of the day: those of a GPU, and a toy's, at which every line runs on a CPU under Triton's interpreter.

Torch-free: the plan is made from it before torch is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOY_MODEL = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 64,
    "position_buckets": 16,
    "max_position_embeddings": 96,
    "max_relative_positions": 96,
}


@dataclass(frozen=True)
class Scale:
    """What all measurements of one day share."""

    device: str
    dtype: str
    """Of the op and the layers; a step has that of its recipe."""
    repeats: int
    points: Mapping[str, tuple[int, int]]
    """Samples and length of the op and the layers, by the name of the point: the length it stands for on a GPU."""
    heads: int
    head_size: int
    buckets: int
    model: Mapping[str, Any]
    """Values that take the place of those of every recipe's model section."""
    step_batch: Mapping[str, tuple[int, int]]
    """Samples and length of a training step, by the name of its model."""
    deepspeed: Mapping[str, Any]
    """Values that take the place of those of every recipe's deepspeed block."""

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "Scale":
        """The one that a measurement was asked for with."""
        return TOY if parameters["toy"] else GPU

    @property
    def layer_model(self) -> dict[str, int]:
        """Sizes of the model whose attention layer is timed; no word is read, so its vocabulary is small."""
        size, middle = self.heads * self.head_size, 4 * self.heads * self.head_size
        sizes = {"hidden_size": size, "num_attention_heads": self.heads, "intermediate_size": middle}
        return sizes | {"vocab_size": 200, "num_hidden_layers": 2, "position_buckets": self.buckets}

    def span(self, length: int) -> int:
        """Distances told apart: the length, so that a long model's buckets reach all of it."""
        return max(2 * self.buckets, length)


GPU = Scale(
    device="cuda",
    dtype="bfloat16",
    repeats=10,
    points={"512": (64, 512), "512 (16k)": (32, 512), "128": (128, 128), "2048": (8, 2048), "8192": (2, 8192)},
    heads=12,
    head_size=64,
    buckets=256,
    model={},
    step_batch={"base": (64, 512), "large": (32, 512), "1.5b": (16, 512)},
    deepspeed={},
)
TOY = Scale(
    device="cpu",
    dtype="float32",
    repeats=1,
    points={"512": (2, 24), "512 (16k)": (1, 24), "128": (1, 12), "2048": (1, 40), "8192": (1, 72)},
    heads=1,
    head_size=32,
    buckets=16,
    model=TOY_MODEL,
    step_batch={"base": (1, 24), "large": (2, 20), "1.5b": (1, 20)},
    deepspeed={"bf16": {"enabled": False}},
)
