"""The attention op for models of transformers: ``use_fast_attention(model)`` switches it on, one call for any class.

Needs torch, numpy and transformers; Triton on a GPU.
"""

from megadeberta.hf.switch import use_eager_attention, use_fast_attention

__all__ = ["use_eager_attention", "use_fast_attention"]
