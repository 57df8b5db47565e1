"""Small Triton kernels beside those of attention: what backward needs of the context, and table gradients by table row.

Shapes: B batch · N heads · Q query rows · H head size · D head size, padded to a power of two · P rows of the table ·
L keys · S rows and columns of a tile of the table kernel · WD = 2 S distances of one of its windows.
"""

import triton
import triton.language as tl

DELTA_ROWS = 64
"""Rows of a program of the delta kernel."""


@triton.jit
def delta_kernel(
    CONTEXT, GRAD, DELTA, num_all, num_heads, num_queries, HEAD: tl.constexpr, D: tl.constexpr, R: tl.constexpr
):
    """Sum of context times its gradient: both dense ``[B, Q, N, H]``, ``num_all`` rows in all; DELTA ``[B, N, Q]``."""
    row, dims = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R), tl.arange(0, D)
    inside = (row < num_all)[:, None] & (dims[None, :] < HEAD)
    places = row[:, None] * HEAD + dims[None, :]
    context = tl.load(CONTEXT + places, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(GRAD + places, mask=inside, other=0.0).to(tl.float32)
    h, query = row % num_heads, row // num_heads
    b, q = query // num_queries, query % num_queries
    tl.store(DELTA + (b * num_heads + h) * num_queries + q, tl.sum(context * grad, 1), mask=row < num_all)


@triton.jit
def fold_kernel(
    DKR, DQR, OUT_KR, OUT_QR, ROWS, num_keys, num_heads, shares, num_windows,
    C2P: tl.constexpr, P2C: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, S: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Gradients by table row, dense ``[P, N, H]``, from those by distance; a program for each row and head.

    Looks through all distances for those that read the row; see table_kernel for DKR, DQR and their windows.
    """
    row, h = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    dims = tl.arange(0, D)
    key_row = tl.full([CHUNK, D], 0.0, tl.float32)
    query_row = tl.full([CHUNK, D], 0.0, tl.float32)
    for start in range(0, 2 * num_keys - 1, CHUNK):
        index = start + tl.arange(0, CHUNK)
        chosen = tl.load(ROWS + index, mask=index < 2 * num_keys - 1, other=-1) == row
        if tl.max(chosen.to(tl.int32), 0) > 0:
            # Of the window that begins at or below a distance, and of its neighbour, which overlaps it by a half.
            above = index - (num_keys - 1) + num_windows * S  # the distance, made positive for the division
            for more in tl.static_range(2):
                diagonal = above // S - num_windows + more
                offset = above % S + (S - 1 if more == 0 else -1)
                window = tl.where(diagonal > 0, 2 * diagonal - 1, -2 * diagonal)
                there = (chosen & (offset >= 0) & (window < num_windows))[:, None] & (dims[None, :] < HEAD)
                for share in range(shares):
                    place = ((window.to(tl.int64) * shares + share) * num_heads + h) * (2 * S) + offset
                    entries = place[:, None] * HEAD + dims[None, :]
                    if C2P:
                        key_row += tl.load(DKR + entries, mask=there, other=0.0)
                    if P2C:
                        query_row += tl.load(DQR + entries, mask=there, other=0.0)
    out = tl.program_id(0).to(tl.int64) * HEAD + dims
    if C2P:
        tl.store(OUT_KR + out, tl.sum(key_row, 0).to(OUT_KR.dtype.element_ty), mask=dims < HEAD)
    if P2C:
        tl.store(OUT_QR + out, tl.sum(query_row, 0).to(OUT_QR.dtype.element_ty), mask=dims < HEAD)
