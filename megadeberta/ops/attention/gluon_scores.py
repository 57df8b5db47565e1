"""Scores and dropout of one tile on Hopper's tensor cores, with position scores read back from shared memory.

As in triton_tiles.py, the product of a tile's queries (or keys) with the table rows of its window of distances holds
all its position scores. Here it goes to shared memory, and each score is read from there with a shift: one load, where
``tl.gather`` takes a shuffle and selects. The way back is the same place written with the same shift.

A window is two halves of 64 distances. The next tile's window is this one moved by 64, so a loop over tiles copies one
half for every tile.

Shapes: as in gluon_tiles.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from megadeberta.ops.attention.gluon_tiles import accumulator

LOG2_E = gl.constexpr(1.4426950408889634)
PADDING = gl.constexpr(8)
"""Two-byte elements after each row of position scores: a diagonal then lies in all banks, or each in two rows."""
PITCH = gl.constexpr(2 * (128 + 8))
"""Bytes from row to row: of 128 numbers of two bytes and PADDING, or of 64 of four."""
HIDDEN = gl.constexpr(-2e30)
"""Of a score that counts for nothing: below the -1e30 that a row's maximum starts from, and finite."""


@gluon.jit
def start_product(left, right, SPLIT: gl.constexpr = (4, 1)):
    """``left`` times the transpose of ``right``, both ``[64, D]`` in shared memory."""
    zeros = gl.zeros([64, 64], gl.float32, accumulator(64, SPLIT))
    return warpgroup_mma(left, right.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def product(left, right, SPLIT: gl.constexpr = (4, 1)):
    """The same, waited for."""
    return warpgroup_mma_wait(0, deps=[start_product(left, right, SPLIT)])


@gluon.jit
def store_half(by_distance, half, scale, HALF: gl.constexpr):
    """Keep ``[64, 64]`` position scores of half a window. In fp16 they are scaled, or they would pass its range."""
    if by_distance.dtype == gl.float16:
        half *= scale
    by_distance.slice(64 * HALF, 64, 1).store(half.to(by_distance.dtype))


@gluon.jit
def store_window(by_distance, rows, low, high, scale):
    """Products of ``rows`` with the table rows of both halves of a window, one after the other: registers are short."""
    store_half(by_distance, product(rows, low), scale, 0)
    store_half(by_distance, product(rows, high), scale, 1)


@gluon.jit
def _places(memory, LAYOUT: gl.constexpr, QUERIES: gl.constexpr, OF_QUERIES: gl.constexpr):
    """Address of every pair's entry: that of its query, or key, at distance query - key, which is number 63 + it.

    ``memory`` is ``[64, WD]`` or ``[WD, 64]``; in the tile, queries lie along dimension ``QUERIES``. These are sums of
    products with constants, which the compiler takes apart into few registers and constants. ``gather`` and ``scatter``
    would keep a register with an address for every element.
    """
    start = gl.inline_asm("mov.b32 $0, $1;", "=r,r", [memory], gl.int32)
    rows, columns = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT)), gl.arange(0, 64, gl.SliceLayout(0, LAYOUT))
    if QUERIES == 0:
        query, key = rows[:, None], columns[None, :]
    else:
        query, key = columns[None, :], rows[:, None]
    size: gl.constexpr = memory.dtype.primitive_bitwidth // 8
    if memory.shape[0] == 64:
        if OF_QUERIES:
            places = start + 63 * size + query * (PITCH + size) - key * size
        else:
            places = start + 63 * size + query * size + key * (PITCH - size)
    else:
        if OF_QUERIES:
            places = start + 63 * PITCH + query * (PITCH + size) - key * PITCH
        else:
            places = start + 63 * PITCH + query * PITCH - key * (PITCH - size)
    return places


@gluon.jit
def read_shifted(memory, scale, LAYOUT: gl.constexpr, QUERIES: gl.constexpr, OF_QUERIES: gl.constexpr):
    """Position scores of the pairs of a tile in fp32, unscaled; see ``_places``. Barriers must be before and after."""
    places = _places(memory, LAYOUT, QUERIES, OF_QUERIES)
    if memory.dtype == gl.float32:
        scores = gl.inline_asm_elementwise(
            "ld.shared.b32 $0, [$1];", "=r,r", [places], dtype=gl.float32, is_pure=False, pack=1
        )
    else:
        bits = gl.inline_asm_elementwise(
            "ld.shared.b16 $0, [$1];", "=h,r", [places], dtype=gl.int16, is_pure=False, pack=1
        )
        scores = bits.to(memory.dtype, bitcast=True).to(gl.float32)
        if memory.dtype == gl.float16:
            scores *= 1 / scale
    return scores


@gluon.jit
def write_shifted(memory, values, QUERIES: gl.constexpr, OF_QUERIES: gl.constexpr):
    """Write the pairs of a tile where ``read_shifted`` reads them."""
    places = _places(memory, values.type.layout, QUERIES, OF_QUERIES)
    bits = values.to(gl.int16, bitcast=True)
    gl.inline_asm_elementwise(
        "st.shared.b16 [$1], $2; mov.b32 $0, $1;", "=r,r,h", [places, bits], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def hide_outside(scores, lowest, length, keys):
    """Hide keys outside the ``length`` keys from ``lowest`` on, with one comparison of numbers without sign."""
    ahead = (keys - lowest).to(gl.uint32, bitcast=True)
    return gl.where(ahead < length.to(gl.uint32, bitcast=True), scores, HIDDEN)


@gluon.jit
def column_bias(REAL, columns, num_keys, HAS_REAL: gl.constexpr):
    """Zero for a real key, HIDDEN for padding and past the end."""
    real = columns < num_keys
    if HAS_REAL:
        real = gl.load(REAL + columns, mask=real, other=0) != 0
    return gl.where(real, 0.0, HIDDEN)


@gluon.jit
def philox(seed, c0, c1, c2, c3, ROUNDS: gl.constexpr):
    """The four words of every counter: ``counter_dropout.philox``."""
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
def drawn(warps):
    """Who draws what of the ``[64, 4]`` groups of 16 columns of a tile."""
    return gl.BlockedLayout([1, 1], [8, 4], [warps, 1], [1, 0])


@gluon.jit
def store_draws(words, seed, number, head, rows, first_column, ROUNDS: gl.constexpr, WARPS: gl.constexpr):
    """A tile's random bytes, four to a word: byte for byte those of ``counter_dropout.kept``."""
    groups = first_column // 16 + gl.arange(0, 4, gl.SliceLayout(0, drawn(WARPS)))
    zeros = gl.zeros([64, 4], gl.int32, drawn(WARPS))
    w0, w1, w2, w3 = philox(seed, zeros + groups[None, :], zeros + rows[:, None], zeros + head, zeros + number, ROUNDS)
    joined = gl.join(gl.join(w0, w2), gl.join(w1, w3))  # [64, 4, 2, 2], in the order of the words
    words.store(gl.reshape(joined, [64, 16]).to(gl.int32, bitcast=True))
