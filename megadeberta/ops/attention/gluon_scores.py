"""Scores and dropout of one tile on Hopper's tensor cores, with position scores read back from shared memory.

As in triton_tiles.py, the product of a tile's queries (or keys) with the table rows of its window of distances holds all
its position scores. Here it goes to shared memory, ``[64, WD]``, and each score is read from there with a shift: one
load, where ``tl.gather`` takes a shuffle and selects. The way back is the same place written with the same shift.

A window is two halves of 64 distances, the lower in the product with ``low``. The next tile's window is this one moved
by 64, so a loop over tiles copies one half for every tile.

Shapes: as in gluon_tiles.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from megadeberta.ops.attention.gluon_tiles import accumulator

PADDING = gl.constexpr(8)
"""Elements after each row of position scores, so that a diagonal lies in as many banks as may be."""
PITCH = gl.constexpr(2 * (128 + 8))
"""Bytes from row to row."""
HIDDEN = gl.constexpr(-2e30)
"""Of a score that counts for nothing: below the -1e30 that a row's maximum starts from, and finite."""


@gluon.jit
def start_product(left, right, WARPS: gl.constexpr = (4, 1)):
    """``left`` times the transpose of ``right``, both ``[64, D]`` in shared memory."""
    zeros = gl.zeros([64, 64], gl.float32, accumulator(64, WARPS))
    return warpgroup_mma(left, right.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def store_half(by_distance, half, HALF: gl.constexpr):
    by_distance.slice(64 * HALF, 64, 1).store(half.to(by_distance.dtype))


@gluon.jit
def _pairs(LAYOUT: gl.constexpr, QUERIES: gl.constexpr):
    """Query and key of every pair of a tile in which queries lie along dimension ``QUERIES``."""
    rows, columns = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT)), gl.arange(0, 64, gl.SliceLayout(0, LAYOUT))
    if QUERIES == 0:
        query, key = rows[:, None], columns[None, :]
    else:
        query, key = columns[None, :], rows[:, None]
    return query, key


@gluon.jit
def _places(memory, LAYOUT: gl.constexpr, QUERIES: gl.constexpr, OF_QUERIES: gl.constexpr):
    """Address of every pair's entry: of its query or key, at distance query - key, which is number 63 of a window.

    Sums of products with constants, which the compiler takes apart into one register and constants; ``gather`` and
    ``scatter`` keep a register with an address for every element.
    """
    start = gl.inline_asm("mov.b32 $0, $1;", "=r,r", [memory], gl.int32)
    query, key = _pairs(LAYOUT, QUERIES)
    size: gl.constexpr = memory.dtype.primitive_bitwidth // 8
    if memory.shape[0] == 64:  # [64, WD]
        if OF_QUERIES:
            places = start + 63 * size + query * (PITCH + size) - key * size
        else:
            places = start + 63 * size + query * size + key * (PITCH - size)
    else:  # [WD, 64]
        if OF_QUERIES:
            places = start + 63 * PITCH + query * (PITCH + size) - key * PITCH
        else:
            places = start + 63 * PITCH + query * PITCH - key * (PITCH - size)
    return places


@gluon.jit
def read_shifted(memory, LAYOUT: gl.constexpr, QUERIES: gl.constexpr, OF_QUERIES: gl.constexpr):
    """The position scores of the pairs of a tile, in fp32; see ``_places``. A barrier must be before and after."""
    places = _places(memory, LAYOUT, QUERIES, OF_QUERIES)
    if memory.dtype == gl.float32:
        values = gl.inline_asm_elementwise(
            "ld.shared.b32 $0, [$1];", "=r,r", [places], dtype=gl.float32, is_pure=False, pack=1)  # fmt: skip
    else:
        bits = gl.inline_asm_elementwise(
            "ld.shared.b16 $0, [$1];", "=h,r", [places], dtype=gl.int16, is_pure=False, pack=1)  # fmt: skip
        values = bits.to(memory.dtype, bitcast=True).to(gl.float32)
    return values


@gluon.jit
def write_shifted(memory, values, QUERIES: gl.constexpr, OF_QUERIES: gl.constexpr):
    """Write the pairs of a tile where ``read_shifted`` reads them."""
    places = _places(memory, values.type.layout, QUERIES, OF_QUERIES)
    bits = values.to(memory.dtype).to(gl.int16, bitcast=True)
    gl.inline_asm_elementwise(
        "st.shared.b16 [$1], $2; mov.b32 $0, $1;", "=r,r,h", [places, bits], dtype=gl.int32, is_pure=False, pack=1)  # fmt: skip


@gluon.jit
def hide_outside(scores, lowest, length, offsets):
    """Hide keys (``offsets``) outside ``length`` keys from ``lowest`` on: one comparison without sign."""
    ahead = (offsets - lowest).to(gl.uint32, bitcast=True)
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
