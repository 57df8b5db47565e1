"""What the Gluon kernels do with memory: layouts, asynchronous copies, lookups by row, stores.

Shapes: B batch · N heads · Q query rows · L keys · H head size · BM queries · BN keys · WD = BM + BN distances of a
window · D head size. BM = BN = 64.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy

UNCOMPILED = ["first_head", "threshold", "samples_each", "batch"]  # their values are no reason to compile again


@gluon.constexpr_function
def accumulator(columns, warps=(4, 1)):
    """Registers of a product with that many columns; a warp has 16 rows of it."""
    return gl.NVMMADistributedLayout([3, 0], list(warps), [16, columns // warps[1], 16])


@gluon.constexpr_function
def operand(columns, warps=(4, 1)):
    """Registers of a left operand of such a product."""
    return gl.DotOperandLayout(0, accumulator(columns, warps), 2)


@gluon.constexpr_function
def copied(warps):
    """Who copies what of ``[rows, D]``: 16 bytes each, so that a row's threads are neighbours."""
    return gl.BlockedLayout([1, 8], [4, 8], [warps, 1], [1, 0])


@gluon.constexpr_function
def line(warps):
    """Registers of a vector of 64, in every second warp once more."""
    return gl.BlockedLayout([1], [32], [warps], [0])


@gluon.constexpr_function
def blocks(head_size):
    """Shared memory of ``[rows, D]`` as tensor cores read it."""
    return gl.NVMMASharedLayout(swizzle_byte_width=min(128, 2 * head_size), element_bitwidth=16, rank=2)


@gluon.constexpr_function
def padded(rows, columns, padding):
    """Shared memory whose rows begin in different banks."""
    return gl.PaddedSharedLayout.with_identity_for([[columns, padding]], [rows, columns], [1, 0])


@gluon.jit
def shared_vector(kind):
    """Shared memory for a number of every query or key of a tile."""
    return gl.allocate_shared_memory(kind, [64], gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def shared_draws():
    """Shared memory for the random bytes of a tile: as words ``[64, 16]`` and as bytes ``[64, 64]``."""
    words = gl.allocate_shared_memory(gl.int32, [64, 16], padded(64, 16, 4))
    return words, words.reinterpret(gl.uint8, [64, 64], padded(64, 64, 16))


@gluon.jit
def zeros_by_row(kind):
    """Zeros ``[64, WD]``, 16 bytes of them a thread."""
    return gl.zeros([64, 128], kind, gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))


@gluon.jit
def program(num_tiles, num_heads):
    """Tile, sample and head of a program; the last two in 64 bits, as sample times stride may pass 2^31 elements."""
    number = gl.program_id(0) // num_tiles
    return gl.program_id(0) % num_tiles, (number // num_heads).to(gl.int64), (number % num_heads).to(gl.int64)


@gluon.jit
def slots_of(SLOTS, rows, b, num_queries, num_keys, HAS_SLOTS: gl.constexpr):
    """Row of Q of every position, and whether there is one."""
    slots = rows
    if HAS_SLOTS:
        slots = gl.load(SLOTS + b * num_keys + rows, mask=rows < num_keys, other=num_queries)
    return slots, slots < num_queries


@gluon.jit
def range_of(BEGIN, END, slots, valid, b, num_queries, num_keys):
    """First visible key of every row, and one past the last; equal in a row that sees nothing."""
    begin = gl.load(BEGIN + b * num_queries + slots, mask=valid, other=0)
    end = gl.load(END + b * num_queries + slots, mask=valid, other=0)
    return begin, gl.maximum(gl.minimum(end, num_keys), begin)


@gluon.jit
def dense_rows(X, b, h, num_heads, num_rows, D: gl.constexpr):
    """Start and row stride of one head in a dense ``[B, rows, N, H]``."""
    return X + (b * num_rows * num_heads + h) * D, num_heads * D


@gluon.jit
def copy_rows(shared, base, stride, rows, last, D: gl.constexpr, WARPS: gl.constexpr):
    """Start to copy rows ``[64, D]``; one past ``last`` is a copy of that, so that all are finite."""
    dims = gl.arange(0, D, gl.SliceLayout(0, copied(WARPS)))
    async_copy.async_load(shared, base + (gl.minimum(rows, last)[:, None] * stride + dims[None, :]))


@gluon.jit
def copy_distances(shared, table, stride, ROWS, num_keys, first, D: gl.constexpr, WARPS: gl.constexpr):
    """Start to copy the table rows of 64 distances from ``first`` on; beyond the keys the last one."""
    distances = first + gl.arange(0, 64, gl.SliceLayout(1, copied(WARPS)))
    # No pair of the sequence has a distance beyond: what is read there is multiplied, but used by no score.
    distances = gl.minimum(gl.maximum(distances, 1 - num_keys), num_keys - 1)
    rows = gl.load(ROWS + (num_keys - 1 + distances))
    dims = gl.arange(0, D, gl.SliceLayout(0, copied(WARPS)))
    async_copy.async_load(shared, table + (rows[:, None] * stride + dims[None, :]))


@gluon.jit
def store_rows(X, values, b, h, num_heads, num_rows, rows, valid, D: gl.constexpr):
    base, stride = dense_rows(X, b, h, num_heads, num_rows, D)
    dims = gl.arange(0, D, gl.SliceLayout(0, values.type.layout))
    gl.store(base + (rows[:, None] * stride + dims[None, :]), values.to(X.dtype.element_ty), mask=valid[:, None])
