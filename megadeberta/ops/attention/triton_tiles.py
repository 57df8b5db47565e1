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
def product(left, right):
    """Matrix product with fp32 accumulation and without TF32."""
    if INTERPRETED:
        # The interpreter (Triton 3.7.1) holds bf16 as integers and multiplies those.
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def load_rows(base, row_stride, rows, valid, HEAD: tl.constexpr, D: tl.constexpr):
    """``[rows, D]`` with zeros where not valid."""
    dims = tl.arange(0, D)
    inside = valid[:, None] if HEAD == D else valid[:, None] & (dims[None, :] < HEAD)
    return tl.load(base + rows[:, None] * row_stride + dims[None, :], mask=inside, other=0.0)


@triton.jit
def load_window(
    base, row_stride, distance_rows, num_keys, first, WD: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr
):
    """Table rows ``[WD, D]`` of the distances ``first .. first + WD - 1``; beyond the keys the last one."""
    distances = first + tl.arange(0, WD)
    # No pair of the sequence has a distance beyond: what is read there is multiplied, but used by no score.
    distances = tl.minimum(tl.maximum(distances, 1 - num_keys), num_keys - 1)
    rows = tl.load(distance_rows + (num_keys - 1) + distances)
    dims = tl.arange(0, D)
    places = base + rows[:, None] * row_stride + dims[None, :]
    return tl.load(places) if HEAD == D else tl.load(places, mask=dims[None, :] < HEAD, other=0.0)


@triton.jit
def _split2(x):
    """Both blocks of 32 columns of ``[R, 64]``."""
    R: tl.constexpr = x.shape[0]
    return tl.split(tl.permute(tl.reshape(x, [R, 2, 32]), (0, 2, 1)))


@triton.jit
def _split4(x):
    """The four blocks of 32 columns of ``[R, 128]``."""
    R: tl.constexpr = x.shape[0]
    even, odd = tl.split(tl.permute(tl.reshape(x, [R, 2, 2, 32]), (0, 3, 1, 2)))  # [R, 32, 2] by the lower bit
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _join2(a, b):
    R: tl.constexpr = a.shape[0]
    return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), [R, 64])


@triton.jit
def _join4(a, b, c, d):
    R: tl.constexpr = a.shape[0]
    return tl.reshape(tl.permute(tl.join(tl.join(a, c), tl.join(b, d)), (0, 2, 3, 1)), [R, 128])


@triton.jit
def read_skewed(x, DOWN: tl.constexpr):
    """``[S, S]`` out of ``[S, 2 S]``: entry (r, e) is x[r, r - e + S - 1] (DOWN) or x[r, e - r + S - 1].

    Inside a block of 32 columns that is a rotation by the row number, and which of two neighbouring blocks an entry
    comes from depends on its source lane only. So the block is chosen first, and one shuffle in a warp moves it.
    """
    S: tl.constexpr = x.shape[0]
    lane = tl.arange(0, 32)[None, :]
    row = tl.arange(0, S)[:, None]
    q = row & 31
    if DOWN:
        next_block, source = lane < q, (q - lane + 31) & 31
    else:
        next_block, source = lane < 31 - q, (lane - q + 31) & 31
    if S == 32:
        x0, x1 = _split2(x)
        return tl.gather(tl.where(next_block, x1, x0), source, 1)
    lower = row >= 32
    x0, x1, x2, x3 = _split4(x)
    near = tl.where(next_block, tl.where(lower, x3, x2), tl.where(lower, x2, x1))
    far = tl.where(next_block, tl.where(lower, x2, x1), tl.where(lower, x1, x0))
    if not DOWN:
        near = tl.where(next_block, tl.where(lower, x1, x2), tl.where(lower, x0, x1))
        far = tl.where(next_block, tl.where(lower, x2, x3), tl.where(lower, x1, x2))
    return _join2(tl.gather(near, source, 1), tl.gather(far, source, 1))


@triton.jit
def write_skewed(g, DOWN: tl.constexpr):
    """``[S, 2 S]`` out of ``[S, S]``: the transpose of ``read_skewed``; zero where no entry is."""
    S: tl.constexpr = g.shape[0]
    lane = tl.arange(0, 32)[None, :]
    row = tl.arange(0, S)[:, None]
    q = row & 31
    if DOWN:
        next_block, source = lane < q, (q - lane + 31) & 31
    else:
        next_block, source = lane <= q, (q + lane + 1) & 31
    if S == 32:
        low, high = tl.where(next_block == DOWN, 0.0, g), tl.where(next_block == DOWN, g, 0.0)
        return _join2(tl.gather(low, source, 1), tl.gather(high, source, 1))
    lower = row >= 32
    g0, g1 = _split2(g)
    zero = tl.zeros_like(g0)
    if DOWN:
        b0 = tl.where(next_block, zero, tl.where(lower, zero, g1))
        b1 = tl.where(next_block, tl.where(lower, zero, g1), tl.where(lower, g1, g0))
        b2 = tl.where(next_block, tl.where(lower, g1, g0), tl.where(lower, g0, zero))
        b3 = tl.where(next_block, tl.where(lower, g0, zero), zero)
    else:
        b0 = tl.where(next_block, tl.where(lower, g0, zero), zero)
        b1 = tl.where(next_block, tl.where(lower, g1, g0), tl.where(lower, g0, zero))
        b2 = tl.where(next_block, tl.where(lower, zero, g1), tl.where(lower, g1, g0))
        b3 = tl.where(next_block, zero, tl.where(lower, zero, g1))
    return _join4(
        tl.gather(b0, source, 1), tl.gather(b1, source, 1), tl.gather(b2, source, 1), tl.gather(b3, source, 1)
    )


@triton.jit
def tile_scores(
    query, key, first, key_table, query_table, s_kr, s_qr, distance_rows, num_keys,
    C2P: tl.constexpr, P2C: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Unscaled scores ``[BM, BN]``; ``first`` is the distance of the first query and the last key."""
    WD: tl.constexpr = query.shape[0] + key.shape[0]
    scores = product(query, tl.trans(key))
    if C2P:
        table = load_window(key_table, s_kr, distance_rows, num_keys, first, WD, HEAD, D)
        scores += read_skewed(product(query, tl.trans(table)), True)
    if P2C:
        table = load_window(query_table, s_qr, distance_rows, num_keys, first, WD, HEAD, D)
        scores += tl.trans(read_skewed(product(key, tl.trans(table)), False))
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
    low = tl.join(words & 255, (words >> 16) & 255)
    high = tl.join((words >> 8) & 255, (words >> 24) & 255)
    bytes_ = tl.reshape(tl.join(low, high), [BM, BN])
    return bytes_ >= threshold
