"""What the Triton kernels do inside one tile of scores: positions, visibility, dropout and their transposes.

A tile of BM queries and BN keys meets BM + BN - 1 distances. The product of its queries with the table rows of that
window of distances holds all its c2p scores; each query reads them with a shift by its row number (``read_skewed``). So
no score needs a gather from global memory, and no tensor of size [N, N] or [N, table] leaves the chip.

Shapes: BM = BN queries and keys, 32 or 64 · WD = BM + BN distances of a window · D head size, padded to a power of two.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def product(left, right, total=None):
    """Matrix product with fp32 accumulation and without TF32, added to ``total`` if there is one."""
    if INTERPRETED:
        # The interpreter (Triton 3.7.1) holds bf16 as integers and multiplies those.
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def load_rows(base, row_stride, rows, WHOLE: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr):
    """``[S, D]`` at ``rows``: an origin, the places ``[S]`` behind it, and which are valid; zeros at the others.

    WHOLE: all are. Only the origin moves in a loop, so that the places are computed once.
    """
    origin, places, valid = rows
    dims = tl.arange(0, D)
    pointers = base + tl.cast(origin, tl.int64) * row_stride + (places[:, None] * row_stride + dims[None, :])
    if WHOLE and HEAD == D:
        return tl.load(pointers)
    return tl.load(pointers, mask=valid[:, None] & (dims[None, :] < HEAD), other=0.0)


@triton.jit
def distance_in_window(WD: tl.constexpr):
    """Distances of a window in the order of its table rows: block by block of 32, neighbours from blocks 2 k, 2 k + 1.

    In this order a product with the window splits into its blocks inside each thread, and joins of them are written in
    pairs.
    """
    place = tl.arange(0, WD)
    return 32 * ((place & 1) + 2 * (place // 64)) + ((place >> 1) & 31)


@triton.jit
def load_window(
    base, row_stride, distance_rows, num_keys, first, WD: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr
):
    """Table rows ``[WD, D]`` of the distances ``first + distance_in_window``; beyond the keys the last one."""
    distances = first + distance_in_window(WD)
    # No pair of the sequence has a distance beyond: what is read there is multiplied, but used by no score.
    distances = tl.minimum(tl.maximum(distances, 1 - num_keys), num_keys - 1)
    rows = tl.load(distance_rows + (num_keys - 1) + distances)
    dims = tl.arange(0, D)
    pointers = base + ((rows * row_stride)[:, None] + dims[None, :])
    return tl.load(pointers) if HEAD == D else tl.load(pointers, mask=dims[None, :] < HEAD, other=0.0)


@triton.jit
def read_skewed(x, DOWN: tl.constexpr):
    """``[S, S]`` out of ``[S, 2 S]`` by distance: entry (r, e) is that of r - e + S - 1 (DOWN) or e - r + S - 1.

    Inside a block of 32 columns that is a rotation by the row number, and which of two neighbouring blocks an entry
    comes from depends on its source lane only. So the block is chosen first, and one shuffle in a warp moves it.
    """
    S: tl.constexpr = x.shape[0]
    lane, q = tl.arange(0, 32)[None, :], tl.arange(0, S)[:, None] & 31
    next_block = (lane < q) if DOWN else (lane < 31 - q)
    source = ((q - lane) if DOWN else (lane - q)) + 31 & 31
    if S == 32:
        x0, x1 = tl.split(tl.reshape(x, [S, 32, 2]))
        entries = tl.gather(tl.where(next_block, x1, x0), source, 1)
    else:
        even, odd = tl.split(tl.reshape(x, [S, 2, 32, 2]))
        x0, x2 = tl.split(tl.permute(even, (0, 2, 1)))
        x1, x3 = tl.split(tl.permute(odd, (0, 2, 1)))
        first = tl.gather(tl.where(next_block, x1, x0), source, 1)
        second = tl.gather(tl.where(next_block, x2, x1), source, 1)
        third = tl.gather(tl.where(next_block, x3, x2), source, 1)
        upper = (tl.arange(0, S)[:, None] < 32) == DOWN  # the rows whose blocks begin at the first
        before, after = tl.where(upper, first, second), tl.where(upper, second, third)
        halves = tl.join(after, before) if DOWN else tl.join(before, after)
        entries = tl.reshape(tl.permute(halves, (0, 2, 1)), [S, S])
    return entries


@triton.jit
def write_skewed(g, DOWN: tl.constexpr):
    """``[S, 2 S]`` by distance out of ``[S, S]``: the transpose of ``read_skewed``; zero where no entry is."""
    S: tl.constexpr = g.shape[0]
    lane, q = tl.arange(0, 32)[None, :], tl.arange(0, S)[:, None] & 31
    next_block = (lane < q) if DOWN else (lane >= 31 - q)
    source = ((q - lane + 31) if DOWN else (q + lane + 1)) & 31
    if S == 32:
        g = tl.gather(g, source, 1)
        zero = tl.zeros_like(g)
        low, high = tl.where(next_block == DOWN, zero, g), tl.where(next_block == DOWN, g, zero)
        blocks = tl.join(low, high)
    else:
        g0, g1 = tl.split(tl.permute(tl.reshape(g, [S, 2, 32]), (0, 2, 1)))
        g0, g1 = tl.gather(g0, source, 1), tl.gather(g1, source, 1)
        zero = tl.zeros_like(g0)
        before, after = (g1, g0) if DOWN else (g0, g1)
        low, high = tl.where(next_block == DOWN, zero, before), tl.where(next_block == DOWN, after, zero)
        middle = tl.where(next_block, g1, g0)
        upper = (tl.arange(0, S)[:, None] < 32) == DOWN
        b0, b1 = tl.where(upper, low, zero), tl.where(upper, middle, low)
        b2, b3 = tl.where(upper, high, middle), tl.where(upper, zero, high)
        blocks = tl.permute(tl.join(tl.join(b0, b1), tl.join(b2, b3)), (0, 3, 1, 2))  # [S, 2, 32, 2]
    return tl.reshape(blocks, [S, 2 * S])


@triton.jit
def tile_scores(query, key, key_window, query_window, C2P: tl.constexpr, P2C: tl.constexpr):
    """Unscaled scores ``[BM, BN]``; both windows ``[WD, D]`` begin at the distance of the first query and last key."""
    scores = tl.zeros([query.shape[0], key.shape[0]], tl.float32)
    if P2C:
        scores += tl.trans(read_skewed(product(key, tl.trans(query_window)), False))
    if C2P:
        scores += read_skewed(product(query, tl.trans(key_window)), True)
    # Last: all that follows then has the layout of a product.
    return product(query, tl.trans(key), scores)


@triton.jit
def tile_visible(begin, end, columns, real, num_keys, HAS_REAL: tl.constexpr):
    """Which keys each query sees, ``[BM, BN]``; see AttentionMask."""
    if HAS_REAL:
        is_real = tl.load(real + columns, mask=columns < num_keys, other=0) != 0
        columns = tl.where(is_real, columns, num_keys)  # past every end
    return (columns[None, :] >= begin[:, None]) & (columns[None, :] < end[:, None])


@triton.jit
def tile_kept(seed, number, head, rows, first_column, threshold, ROUNDS: tl.constexpr, BN: tl.constexpr):
    """Which weights survive dropout, ``[BM, BN]``: byte for byte ``counter_dropout.kept``. BN is a multiple of 16.

    seed: int64. number: int32, of the sample. head: the global one.
    """
    BM: tl.constexpr = rows.shape[0]
    groups = (first_column // 16 + tl.arange(0, BN // 16)).to(tl.int32)
    zeros = tl.zeros([BM, BN // 16], tl.int32)
    w0, w1, w2, w3 = tl.philox(
        seed, zeros + groups[None, :], zeros + rows[:, None].to(tl.int32), zeros + head, zeros + number, ROUNDS
    )
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [BM, BN / 16, 2, 2], in the order of the words
    low = tl.join(words.to(tl.uint8), (words >> 16).to(tl.uint8))
    high = tl.join((words >> 8).to(tl.uint8), (words >> 24).to(tl.uint8))
    bytes_ = tl.reshape(tl.join(low, high), [BM, BN])
    return bytes_.to(tl.int32) >= threshold
