"""What the Gluon kernels do inside one tile: asynchronous copies, scores, visibility and dropout.

As in triton_tiles.py, the product of a tile's queries (or keys) with the table rows of its window of distances holds all
its position scores. Here that product goes to shared memory, and each score is read back with a shift: one load, where
``tl.gather`` takes a shuffle for every element and selects around it.

A window is two halves of 64 distances. The next tile's window is the old one moved by 64, so one new half is copied for
every tile and the halves change places (``low`` and ``high``).

Shapes: BM queries · BN keys · WD = BM + BN distances of a window · D head size. BM = BN = 64 and one warpgroup.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, warpgroup_mma, warpgroup_mma_wait

HIDDEN = gl.constexpr(-2e30)
"""Of a score that counts for nothing: below the -1e30 that a row's maximum starts from, and finite."""


@gluon.constexpr_function
def accumulator(columns):
    """Registers of a product ``[64, columns]``: each of four warps has 16 rows."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, columns, 16])


@gluon.constexpr_function
def operand(columns):
    """Registers of a left operand of a product with ``columns`` columns."""
    return gl.DotOperandLayout(0, accumulator(columns), 2)


@gluon.constexpr_function
def copied():
    """Who copies what of ``[rows, D]``: 16 bytes each, so that a row's threads are neighbours."""
    return gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])


@gluon.constexpr_function
def blocks(head_size):
    """Shared memory of ``[rows, D]`` as tensor cores read it."""
    return gl.NVMMASharedLayout(swizzle_byte_width=min(128, 2 * head_size), element_bitwidth=16, rank=2)


@gluon.constexpr_function
def padded(columns, padding):
    """Shared memory of ``[64, columns]`` that is read along diagonals: the padding spreads rows over the banks."""
    return gl.PaddedSharedLayout.with_identity_for([[columns, padding]], [64, columns], [1, 0])


@gluon.jit
def copy_rows(shared, base, stride, first, last, ROWS: gl.constexpr, D: gl.constexpr):
    """Start to copy ``ROWS`` rows from ``first`` on; rows past ``last`` are copies of it, so that all are finite."""
    rows = gl.minimum(first + gl.arange(0, ROWS, gl.SliceLayout(1, copied())), last)
    dims = gl.arange(0, D, gl.SliceLayout(0, copied()))
    async_copy.async_load(shared, base + rows[:, None] * stride + dims[None, :])


@gluon.jit
def copy_distances(
    to_key, to_query, tables, strides, distance_rows, center, first,
    C2P: gl.constexpr, P2C: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Start to copy the table rows of 64 distances from ``first`` on; beyond the keys the last one."""
    distances = first + gl.arange(0, 64, gl.SliceLayout(1, copied()))
    # No pair of the sequence has a distance beyond: what is read there is multiplied, but used by no score.
    distances = gl.minimum(gl.maximum(distances, -center), center)
    rows = gl.load(distance_rows + center + distances)
    dims = gl.arange(0, D, gl.SliceLayout(0, copied()))
    if C2P:
        async_copy.async_load(to_key, tables[0] + rows[:, None] * strides[0] + dims[None, :])
    if P2C:
        async_copy.async_load(to_query, tables[1] + rows[:, None] * strides[1] + dims[None, :])


@gluon.jit
def start_product(left, right):
    """``left`` times the transpose of ``right``, both ``[64, D]`` in shared memory."""
    zeros = gl.zeros([64, 64], gl.float32, accumulator(64))
    return warpgroup_mma(left, right.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def store_half(by_distance, half, HALF: gl.constexpr):
    by_distance.slice(64 * HALF, 64, 1).store(half.to(by_distance.dtype))


@gluon.jit
def tile_products(
    rows, columns, row_low, row_high, column_low, column_high, by_row, by_column, HAS_ROW: gl.constexpr, HAS_COLUMN: gl.constexpr,
):  # fmt: skip
    """Content scores ``[64, 64]``, and the position scores by distance in ``by_row`` and ``by_column``.

    At most two products are under way, so that few registers wait for them. A barrier must follow before the position
    scores are read.
    """
    if HAS_ROW:
        first = start_product(rows, row_low)
        second = start_product(rows, row_high)
        first = warpgroup_mma_wait(1, deps=[first])
        store_half(by_row, first, 0)
        if HAS_COLUMN:
            third = start_product(columns, column_low)
            second = warpgroup_mma_wait(1, deps=[second])
            store_half(by_row, second, 1)
            fourth = start_product(columns, column_high)
            third = warpgroup_mma_wait(1, deps=[third])
            store_half(by_column, third, 0)
            scores = start_product(rows, columns)
            fourth = warpgroup_mma_wait(1, deps=[fourth])
            store_half(by_column, fourth, 1)
        else:
            scores = start_product(rows, columns)
            second = warpgroup_mma_wait(1, deps=[second])
            store_half(by_row, second, 1)
    else:
        first = start_product(columns, column_low)
        second = start_product(columns, column_high)
        first = warpgroup_mma_wait(1, deps=[first])
        store_half(by_column, first, 0)
        scores = start_product(rows, columns)
        second = warpgroup_mma_wait(1, deps=[second])
        store_half(by_column, second, 1)
    return warpgroup_mma_wait(0, deps=[scores])


@gluon.jit
def philox(seed, c0, c1, c2, c3, ROUNDS: gl.constexpr):
    """As ``counter_dropout.philox``: the four words of every counter."""
    low = (seed & 0xFFFFFFFF).to(gl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(gl.uint32)
    c0, c1, c2, c3 = c0.to(gl.uint32), c1.to(gl.uint32), c2.to(gl.uint32), c3.to(gl.uint32)
    for _ in gl.static_range(ROUNDS):
        first = c0.to(gl.uint64) * 0xD2511F53
        second = c2.to(gl.uint64) * 0xCD9E8D57
        c0 = (second >> 32).to(gl.uint32) ^ c1 ^ low
        c2 = (first >> 32).to(gl.uint32) ^ c3 ^ high
        c1 = second.to(gl.uint32)
        c3 = first.to(gl.uint32)
        low += 0x9E3779B9
        high += 0xBB67AE85
    return c0, c1, c2, c3


@gluon.constexpr_function
def drawn():
    """Who draws what of ``[64, 4]`` groups of 16 columns: each thread two rows of one group."""
    return gl.BlockedLayout([1, 1], [8, 4], [4, 1], [1, 0])


@gluon.jit
def store_draws(words, seed, number, head, first_row, first_column, ROUNDS: gl.constexpr):
    """The random bytes of a tile ``[BM, BN]``, four to a word, byte for byte those of ``counter_dropout.kept``."""
    rows = first_row + gl.arange(0, 64, gl.SliceLayout(1, drawn()))
    groups = first_column // 16 + gl.arange(0, 4, gl.SliceLayout(0, drawn()))
    zeros = gl.zeros([64, 4], gl.int32, drawn())
    w0, w1, w2, w3 = philox(seed, zeros + groups[None, :], zeros + rows[:, None], zeros + head, zeros + number, ROUNDS)
    joined = gl.join(gl.join(w0, w2), gl.join(w1, w3))  # [64, 4, 2, 2], in the order of the words
    words.store(gl.reshape(joined, [64, 16]).to(gl.int32, bitcast=True))
