"""What the Triton kernels do inside one tile of scores: positions, visibility, dropout and their transposes.

A tile of BM queries and BN keys meets at most BM + BN - 1 distances. The product of its queries with the table rows of
that window of distances holds all its c2p scores; ``tl.gather`` reads them with a shift by the row number. So no score
needs a gather from global memory, and no tensor of size [N, N] or [N, table] leaves the chip.

Shapes: BM queries · BN keys · WD = BM + BN distances of a window · D head size (padded to a power of two).
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def product(left, right):
    """Matrix product with fp32 accumulation and without TF32."""
    if INTERPRETED:
        # The interpreter (Triton 3.7.1) holds bf16 as integers and multiplies those.
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def load_rows(base, row_stride, rows, valid, dims, head_size):
    """``[rows, D]`` with zeros where not valid."""
    inside = valid[:, None] & (dims[None, :] < head_size)
    return tl.load(base + rows[:, None] * row_stride + dims[None, :], mask=inside, other=0.0)


@triton.jit
def load_window(base, row_stride, distance_rows, center, first, dims, head_size, WD: tl.constexpr):
    """Table rows ``[WD, D]`` of the distances ``first .. first + WD - 1``; beyond the keys the last one."""
    distances = first + tl.arange(0, WD)
    # No pair of the sequence has a distance beyond: what is read there is multiplied, but used by no score.
    distances = tl.minimum(tl.maximum(distances, -center), center)
    rows = tl.load(distance_rows + center + distances)
    return tl.load(base + rows[:, None] * row_stride + dims[None, :], mask=dims[None, :] < head_size, other=0.0)


@triton.jit
def tile_scores(
    query, key, positions, columns, window_low, window_high, tables, strides, distance_rows, center, dims, head_size,
    C2P: tl.constexpr, P2C: tl.constexpr, WD: tl.constexpr,
):  # fmt: skip
    """Unscaled scores ``[BM, BN]``. With consecutive positions the window covers the tile at once."""
    scores = product(query, tl.trans(key))
    if C2P or P2C:
        distances = positions[:, None] - columns[None, :]
        for first in range(window_low, window_high, WD):
            shifted = distances - first  # where in the window a pair's distance is
            inside = (shifted >= 0) & (shifted < WD)
            # An index outside is undefined in a gather; what it reads is dropped below.
            shifted = tl.where(inside, shifted, 0)
            if C2P:
                table = load_window(tables[0], strides[0], distance_rows, center, first, dims, head_size, WD)
                scores_by_distance = product(query, tl.trans(table))  # [BM, WD]
                scores += tl.where(inside, tl.gather(scores_by_distance, shifted, 1), 0.0)
            if P2C:
                table = load_window(tables[1], strides[1], distance_rows, center, first, dims, head_size, WD)
                scores_by_distance = product(table, tl.trans(key))  # [WD, BN]
                scores += tl.where(inside, tl.gather(scores_by_distance, shifted, 0), 0.0)
    return scores


@triton.jit
def tile_visible(begin, end, columns, real, num_keys, HAS_REAL: tl.constexpr):
    """Which keys each query sees, ``[BM, BN]``; see AttentionMask."""
    visible = (columns[None, :] >= begin[:, None]) & (columns[None, :] < end[:, None])
    if HAS_REAL:
        is_real = tl.load(real + columns, mask=columns < num_keys, other=0) != 0
        visible = visible & is_real[None, :]
    return visible


@triton.jit
def tile_kept(draws, sample, head, rows, first_column, threshold, ROUNDS: tl.constexpr, BN: tl.constexpr):
    """Which weights survive dropout, ``[BM, BN]``: byte for byte ``counter_dropout.kept``. BN is a multiple of 16."""
    BM: tl.constexpr = rows.shape[0]
    seed, number = tl.load(draws), tl.load(draws + 1 + sample).to(tl.int32)
    groups = (first_column // 16 + tl.arange(0, BN // 16)).to(tl.int32)
    zeros = tl.zeros([BM, BN // 16], tl.int32)
    w0, w1, w2, w3 = tl.philox(
        seed, zeros + groups[None, :], zeros + rows[:, None].to(tl.int32), zeros + head, zeros + number, ROUNDS
    )
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [BM, BN / 16, 2, 2], in the order of the words
    low = tl.join(words & 255, (words >> 16) & 255)
    high = tl.join((words >> 8) & 255, (words >> 24) & 255)
    bytes_ = tl.reshape(tl.join(low, high), [BM, BN])
    return bytes_ >= threshold


@triton.jit
def by_distance_of_rows(grad, positions, first_column, first, WD: tl.constexpr):
    """``[BM, WD]``: entry (m, c) is the entry of ``grad`` ``[BM, BN]`` at distance ``first + c`` of query m.

    The transpose of the c2p gather, as a gather too: a query meets each distance at one key at most.
    """
    BN: tl.constexpr = grad.shape[1]
    column = positions[:, None] - (first + tl.arange(0, WD))[None, :] - first_column
    inside = (column >= 0) & (column < BN)
    return tl.where(inside, tl.gather(grad, tl.where(inside, column, 0), 1), 0.0)


@triton.jit
def by_distance_of_columns(grad, first_position, columns, first, WD: tl.constexpr):
    """``[WD, BN]``: entry (c, n) is the entry of ``grad`` ``[BM, BN]``, of consecutive positions, at that distance."""
    BM: tl.constexpr = grad.shape[0]
    row = (first + tl.arange(0, WD))[:, None] + columns[None, :] - first_position
    inside = (row >= 0) & (row < BM)
    return tl.where(inside, tl.gather(grad, tl.where(inside, row, 0), 0), 0.0)


@triton.jit
def at_consecutive_positions(grad, positions, valid, first_position):
    """Rows of ``grad`` ``[BM, BN]`` added up by position, for the BM positions from ``first_position`` on.

    Several rows may have one position (empty slots all have 0), so this is a scatter with sums: as a product with zeros
    and ones it needs no atomics. In fp32, as each 1 must leave its row as it is.
    """
    BM: tl.constexpr = grad.shape[0]
    target = first_position + tl.arange(0, BM)
    select = (target[:, None] == positions[None, :]) & valid[None, :]
    return product(select.to(tl.float32), grad.to(tl.float32))
