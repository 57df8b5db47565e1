"""Tensor parallelism: the layers of ``model/`` swapped for shards of them, by the table of ``layers/cuts.py``."""
