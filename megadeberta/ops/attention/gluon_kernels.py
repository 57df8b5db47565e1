"""Kernels of disentangled attention for sm_90 in Gluon, launched with the same arguments as triton_kernels.py."""

from megadeberta.ops.attention.gluon_forward import forward_kernel
from megadeberta.ops.attention.gluon_key import key_kernel
from megadeberta.ops.attention.gluon_query import query_kernel
from megadeberta.ops.attention.gluon_table import table_kernel

__all__ = ["forward_kernel", "key_kernel", "query_kernel", "table_kernel"]
