"""Pre-train DeBERTa v1, v2 and v3 with DeepSpeed. Start reading at ``megadeberta/train.py``."""

__version__ = "0.1.0"
