"""Kernel of the table gradients for sm_90: what it computes and its arguments are those of triton_kernels.py.

Shapes: as in gluon_tiles.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from megadeberta.ops.attention.gluon_scores import (
    LOG2_E,
    PADDING,
    column_bias,
    drawn,
    hide_outside,
    product,
    read_shifted,
    start_product,
    store_draws,
    write_shifted,
)
from megadeberta.ops.attention.gluon_tiles import (
    UNCOMPILED,
    accumulator,
    blocks,
    copied,
    copy_distances,
    copy_rows,
    dense_rows,
    line,
    operand,
    padded,
    range_of,
    shared_draws,
    shared_vector,
    slots_of,
)


@gluon.jit
def _sees(BEGIN, END, SLOTS, i, j, b, num_queries, num_keys, HAS_SLOTS: gl.constexpr, WARPS: gl.constexpr):
    """Which queries of a tile see a key of it, ``[64]``, all of them in every warp."""
    rows = i + gl.arange(0, 64, gl.BlockedLayout([2], [32], [WARPS], [0]))
    slots, valid = slots_of(SLOTS, rows, b, num_queries, num_keys, HAS_SLOTS)
    begin, end = range_of(BEGIN, END, slots, valid, b, num_queries, num_keys)
    return ((end > j) & (begin < j + 64) & (end > begin)).to(gl.int32)


@gluon.jit
def _copy_tile(
    queries, grads_out, keys, values, Q, DO, K, V, SLOTS, sq, sk, sv, b, h, i, j, num_heads, num_queries, num_keys,
    HAS_SLOTS: gl.constexpr, D: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Start to copy what one tile needs."""
    local = gl.arange(0, 64, gl.SliceLayout(1, copied(WARPS)))
    slots, _ = slots_of(SLOTS, i + local, b, num_queries, num_keys, HAS_SLOTS)
    grad_base, grad_stride = dense_rows(DO, b, h, num_heads, num_queries, D)
    copy_rows(queries, Q + (b * sq[0] + h * sq[1]), sq[2], slots, num_queries - 1, D, WARPS)
    copy_rows(grads_out, grad_base, grad_stride, slots, num_queries - 1, D, WARPS)
    copy_rows(keys, K + (b * sk[0] + h * sk[1]), sk[2], j + local, num_keys - 1, D, WARPS)
    copy_rows(values, V + (b * sv[0] + h * sv[1]), sv[2], j + local, num_keys - 1, D, WARPS)
    async_copy.commit_group()


@gluon.jit
def _add_by_distance(spread, rows, low, high, D: gl.constexpr, SPLIT: gl.constexpr):
    """Add to the gradients of both halves of a window, ``[64, D]``, that of a tile by distance times ``rows``."""
    left = spread.slice(0, 64, 0).load(operand(D, SPLIT))
    low = warpgroup_mma(left, rows, low, is_async=True)
    right = spread.slice(64, 64, 0).load(operand(D, SPLIT))
    high = warpgroup_mma(right, rows, high, is_async=True)
    # What is read keeps its registers until then.
    low, high, left, right = warpgroup_mma_wait(0, deps=[low, high, left, right])
    return low, high


@gluon.jit(do_not_specialize=UNCOMPILED)
def table_kernel(
    Q, K, V, KR, QR, DO, DKR, DQR, LSE, DELTA, ROWS, BEGIN, END, REAL, SLOTS, SEED, SAMPLES, sq, sk, sv, s_kr, s_qr,
    batch, samples_each, num_heads, num_queries, num_keys, num_windows, scale, first_head, threshold, keep_scale,
    C2P: gl.constexpr, P2C: gl.constexpr, HAS_MASK: gl.constexpr, HAS_REAL: gl.constexpr, HAS_SLOTS: gl.constexpr,
    EDGE: gl.constexpr, DROPOUT: gl.constexpr, ROUNDS: gl.constexpr, HEAD: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Gradients by distance of one window of one head, summed over some samples: ``[windows, shares, N, WD, H]``.

    For four warps the sums alone are half of all registers: eight share a tile by its columns.
    """
    kind: gl.constexpr = Q.dtype.element_ty
    W: gl.constexpr = gl.num_warps()
    split: gl.constexpr = (4, W // 4)
    tile_layout: gl.constexpr = accumulator(BN, split)
    of_rows: gl.constexpr = gl.SliceLayout(1, tile_layout)
    num_rows = num_keys if HAS_SLOTS else num_queries
    per_window = gl.num_programs(0) // num_windows
    window, part = gl.program_id(0) // per_window, gl.program_id(0) % per_window
    share, h = part // num_heads, (part % num_heads).to(gl.int64)
    diagonal = gl.where(window % 2 == 1, (window + 1) // 2, -(window // 2))  # query tile minus key tile
    queries = gl.allocate_shared_memory(kind, [2, BM, D], blocks(D))
    grads_out = gl.allocate_shared_memory(kind, [2, BM, D], blocks(D))
    keys = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    values = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    key_tables = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    query_tables = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    # Position scores in fp32, and in the same place the gradient by distance, in two bytes and twice the columns.
    by_distance = gl.allocate_shared_memory(gl.float32, [BM + BN, BM], padded(BM + BN, BM, PADDING // 2))
    spread = by_distance.reinterpret(kind, [BM + BN, 2 * BM], padded(BM + BN, 2 * BM, PADDING)).slice(0, BM, 1)
    biases = shared_vector(gl.float32)
    words, random = shared_draws()

    key_table, query_table = KR + h * s_kr[0], QR + h * s_qr[0]
    first = diagonal * BM - BN + 1
    if C2P:
        copy_distances(key_tables.index(0), key_table, s_kr[1], ROWS, num_keys, first, D, W)
        copy_distances(key_tables.index(1), key_table, s_kr[1], ROWS, num_keys, first + 64, D, W)
    if P2C:
        copy_distances(query_tables.index(0), query_table, s_qr[1], ROWS, num_keys, first, D, W)
        copy_distances(query_tables.index(1), query_table, s_qr[1], ROWS, num_keys, first + 64, D, W)
    if DROPOUT:
        seed, head = gl.load(SEED), (first_head + h).to(gl.int32)
    offsets = gl.arange(0, BN, gl.SliceLayout(0, tile_layout))
    key_low = gl.zeros([BN, D], gl.float32, accumulator(D, split))
    key_high = gl.zeros([BN, D], gl.float32, accumulator(D, split))
    query_low = gl.zeros([BN, D], gl.float32, accumulator(D, split))
    query_high = gl.zeros([BN, D], gl.float32, accumulator(D, split))
    factor = scale * LOG2_E
    low, high = gl.maximum(diagonal, 0) * BM, gl.minimum(num_rows, num_keys + diagonal * BM)
    samples = gl.minimum(samples_each, batch - share * samples_each)
    tiles = gl.maximum(samples, 0) * (gl.maximum(high - low + BM - 1, 0) // BM)
    sample, i, current = gl.minimum(share * samples_each, batch - 1), low, 0
    _copy_tile(
        queries.index(0), grads_out.index(0), keys.index(0), values.index(0), Q, DO, K, V, SLOTS, sq, sk, sv,
        sample.to(gl.int64), h, i, i - diagonal * BM, num_heads, num_queries, num_keys, HAS_SLOTS, D, W)  # fmt: skip
    seen = 1
    if HAS_MASK:
        b = sample.to(gl.int64)
        sees = _sees(BEGIN, END, SLOTS, i, i - diagonal * BM, b, num_queries, num_keys, HAS_SLOTS, W)
        seen = gl.max(sees, 0)
    for _ in range(tiles):
        async_copy.wait_group(0)
        fence_async_shared()
        gl.barrier()
        b, j, following = sample.to(gl.int64), i - diagonal * BM, 1 - current
        # The tile after this; after the last one its own place once more.
        ends = i + BM >= high
        next_sample, next_i = gl.where(ends, gl.minimum(sample + 1, batch - 1), sample), gl.where(ends, low, i + BM)
        _copy_tile(
            queries.index(following), grads_out.index(following), keys.index(following), values.index(following),
            Q, DO, K, V, SLOTS, sq, sk, sv, next_sample.to(gl.int64), h, next_i, next_i - diagonal * BM,
            num_heads, num_queries, num_keys, HAS_SLOTS, D, W)  # fmt: skip
        if HAS_MASK:
            next_sees = _sees(
                BEGIN, END, SLOTS, next_i, next_i - diagonal * BM, next_sample.to(gl.int64), num_queries, num_keys,
                HAS_SLOTS, W)  # fmt: skip
        if seen != 0:
            query, grad_out = queries.index(current), grads_out.index(current)
            key, value = keys.index(current), values.index(current)
            slots, valid = slots_of(SLOTS, i + gl.arange(0, BM, of_rows), b, num_queries, num_keys, HAS_SLOTS)
            flat = (b * num_heads + h) * num_queries + slots
            # +1e30 makes every weight of a row past the end zero.
            lse = gl.load(LSE + flat, mask=valid, other=1e30) * LOG2_E
            delta = gl.load(DELTA + flat, mask=valid, other=0.0)
            if HAS_MASK:
                begin, end = range_of(BEGIN, END, slots, valid, b, num_queries, num_keys)
            if HAS_REAL or EDGE:
                biases.store(column_bias(REAL + b * num_keys, j + gl.arange(0, BN, line(W)), num_keys, HAS_REAL))
            if DROPOUT:
                number = gl.load(SAMPLES + b).to(gl.int32)
                drawn_rows = i + gl.arange(0, BM, gl.SliceLayout(1, drawn(W)))
                drawn_slots, _drawn = slots_of(SLOTS, drawn_rows, b, num_queries, num_keys, HAS_SLOTS)
                store_draws(words, seed, number, head, drawn_slots, j, ROUNDS, W)
            if C2P:
                by_distance.slice(0, BN, 0).store(product(key_tables.index(0), query, split))
                by_distance.slice(BN, BN, 0).store(product(key_tables.index(1), query, split))
            scores = product(query, key, split)
            gl.barrier()
            if C2P:
                scores += read_shifted(by_distance, scale, tile_layout, 0, True)
            if P2C:
                gl.barrier()
                by_distance.slice(0, BN, 0).store(product(query_tables.index(0), key, split))
                by_distance.slice(BN, BN, 0).store(product(query_tables.index(1), key, split))
                gl.barrier()
                scores += read_shifted(by_distance, scale, tile_layout, 0, False)
            grad_weights = start_product(grad_out, value, split)
            if HAS_REAL or EDGE:
                scores += biases.load(gl.SliceLayout(0, tile_layout))[None, :]
            if HAS_MASK:
                scores = hide_outside(scores, (begin - j)[:, None], (end - begin)[:, None], offsets[None, :])
            weights = gl.exp2(scores * factor - lse[:, None])
            grad_weights = warpgroup_mma_wait(0, deps=[grad_weights])
            if DROPOUT:
                grad_weights *= gl.where(random.load(tile_layout).to(gl.int32) >= threshold, keep_scale, 0.0)
            grad = (weights * (grad_weights - delta[:, None])).to(kind)
            if C2P:
                gl.barrier()
                spread.store(gl.zeros([BM + BN, BM], kind, copied(W)))
                gl.barrier()
                write_shifted(spread, grad, 0, True)
                gl.barrier()
                key_low, key_high = _add_by_distance(spread, query, key_low, key_high, D, split)
            if P2C:
                gl.barrier()
                spread.store(gl.zeros([BM + BN, BM], kind, copied(W)))
                gl.barrier()
                write_shifted(spread, grad, 0, False)
                gl.barrier()
                query_low, query_high = _add_by_distance(spread, key, query_low, query_high, D, split)
        if HAS_MASK:
            seen = gl.max(next_sees, 0)
        sample, i, current = next_sample, next_i, following
    async_copy.wait_group(0)
    dims = gl.arange(0, D, gl.SliceLayout(0, accumulator(D, split)))
    entry = gl.program_id(0).to(gl.int64) * (BM + BN) + gl.arange(0, BN, gl.SliceLayout(1, accumulator(D, split)))
    out = entry[:, None] * D + dims[None, :]
    if C2P:
        gl.store(DKR + out, key_low * scale)
        gl.store(DKR + out + 64 * D, key_high * scale)
    if P2C:
        gl.store(DQR + out, query_low * scale)
        gl.store(DQR + out + 64 * D, query_high * scale)
