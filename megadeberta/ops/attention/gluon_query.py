"""Backward kernel of the queries for sm_90: what it computes and its arguments are those of triton_kernels.py.

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
    read_shifted,
    start_product,
    store_draws,
    store_half,
    store_window,
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
    program,
    range_of,
    shared_draws,
    shared_vector,
    slots_of,
    store_rows,
    zeros_by_row,
)


@gluon.jit(do_not_specialize=UNCOMPILED)
def query_kernel(
    Q, K, V, KR, QR, DO, DQ, LSE, DELTA, ROWS, BEGIN, END, REAL, SLOTS, SEED, SAMPLES, sq, sk, sv, s_kr, s_qr,
    num_heads, num_queries, num_keys, scale, first_head, threshold, keep_scale,
    C2P: gl.constexpr, P2C: gl.constexpr, HAS_MASK: gl.constexpr, HAS_REAL: gl.constexpr, HAS_SLOTS: gl.constexpr,
    EDGE: gl.constexpr, DROPOUT: gl.constexpr, ROUNDS: gl.constexpr, HEAD: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Gradient of one query tile: the forward kernel's loop over key tiles.

    One memory serves both kinds of position scores and then the gradient by distance: that leaves room for two blocks.
    """
    kind: gl.constexpr = Q.dtype.element_ty
    tile_layout: gl.constexpr = accumulator(BN)
    of_rows: gl.constexpr = gl.SliceLayout(1, tile_layout)
    of_copies: gl.constexpr = gl.SliceLayout(1, copied(4))
    num_rows = num_keys if HAS_SLOTS else num_queries
    tile, b, h = program(gl.cdiv(num_rows, BM), num_heads)
    i = tile * BM
    query = gl.allocate_shared_memory(kind, [BM, D], blocks(D))
    grad_out = gl.allocate_shared_memory(kind, [BM, D], blocks(D))
    keys = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    values = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    key_tables = gl.allocate_shared_memory(kind, [3, BN, D], blocks(D))  # a tile needs both halves to its end
    query_tables = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    by_distance = gl.allocate_shared_memory(kind, [BM, BM + BN], padded(BM, BM + BN, PADDING))
    biases = shared_vector(gl.float32)
    words, random = shared_draws()

    slots, valid = slots_of(SLOTS, i + gl.arange(0, BM, of_rows), b, num_queries, num_keys, HAS_SLOTS)
    first, end_of_keys = 0, num_keys
    if HAS_MASK:
        begin, end = range_of(BEGIN, END, slots, valid, b, num_queries, num_keys)
        first = gl.min(gl.where(end > begin, begin, num_keys), 0) // BN * BN
        end_of_keys = gl.max(gl.where(end > begin, end, 0), 0)
    flat = (b * num_heads + h) * num_queries + slots
    # +1e30 makes every weight of a row past the end zero.
    lse = gl.load(LSE + flat, mask=valid, other=1e30) * LOG2_E
    delta = gl.load(DELTA + flat, mask=valid, other=0.0)
    if DROPOUT:
        seed, number, head = gl.load(SEED), gl.load(SAMPLES + b).to(gl.int32), (first_head + h).to(gl.int32)
        drawn_rows = i + gl.arange(0, BM, gl.SliceLayout(1, drawn(4)))
        drawn_slots, _ = slots_of(SLOTS, drawn_rows, b, num_queries, num_keys, HAS_SLOTS)
    key_base, value_base = K + (b * sk[0] + h * sk[1]), V + (b * sv[0] + h * sv[1])
    key_table, query_table = KR + h * s_kr[0], QR + h * s_qr[0]
    local = gl.arange(0, BN, of_copies)
    copied_slots, _ = slots_of(SLOTS, i + local, b, num_queries, num_keys, HAS_SLOTS)
    grad_base, grad_stride = dense_rows(DO, b, h, num_heads, num_queries, D)
    copy_rows(query, Q + (b * sq[0] + h * sq[1]), sq[2], copied_slots, num_queries - 1, D, 4)
    copy_rows(grad_out, grad_base, grad_stride, copied_slots, num_queries - 1, D, 4)
    copy_rows(keys.index(0), key_base, sk[2], first + local, num_keys - 1, D, 4)
    copy_rows(values.index(0), value_base, sv[2], first + local, num_keys - 1, D, 4)
    if C2P:
        copy_distances(key_tables.index(0), key_table, s_kr[1], ROWS, num_keys, i - first - BN + 1, D, 4)
        copy_distances(key_tables.index(2), key_table, s_kr[1], ROWS, num_keys, i - first + 1, D, 4)
    if P2C:
        copy_distances(query_tables.index(0), query_table, s_qr[1], ROWS, num_keys, i - first - BN + 1, D, 4)
        copy_distances(query_tables.index(1), query_table, s_qr[1], ROWS, num_keys, i - first + 1, D, 4)
    async_copy.commit_group()
    columns = gl.arange(0, BN, line(4))
    bias = column_bias(REAL + b * num_keys, first + columns, num_keys, HAS_REAL)

    offsets = gl.arange(0, BN, gl.SliceLayout(0, tile_layout))
    gradient = gl.zeros([BM, D], gl.float32, accumulator(D))
    factor = scale * LOG2_E
    current, low, high = 0, 0, 2
    for j in range(first, end_of_keys, BN):
        async_copy.wait_group(0)
        fence_async_shared()
        gl.barrier()
        following, spare = 1 - current, 3 - low - high
        key, value = keys.index(current), values.index(current)
        if C2P:
            store_window(by_distance, query, key_tables.index(low), key_tables.index(high), scale)
        scores = start_product(query, key)
        if HAS_REAL or EDGE:
            biases.store(bias)
        if DROPOUT:
            store_draws(words, seed, number, head, drawn_slots, j, ROUNDS, 4)
        scores = warpgroup_mma_wait(0, deps=[scores])
        gl.barrier()
        if C2P:
            scores += read_shifted(by_distance, scale, tile_layout, 0, True)
        if P2C:
            lower_half = start_product(key, query_tables.index(current))
            higher_half = start_product(key, query_tables.index(following))
            lower_half, higher_half = warpgroup_mma_wait(0, deps=[lower_half, higher_half])
            gl.barrier()
            store_half(by_distance, lower_half, scale, 0)
            store_half(by_distance, higher_half, scale, 1)
            gl.barrier()
        # Past the end this copies the last rows.
        copy_rows(keys.index(following), key_base, sk[2], j + BN + local, num_keys - 1, D, 4)
        copy_rows(values.index(following), value_base, sv[2], j + BN + local, num_keys - 1, D, 4)
        lower = i - j - 2 * BN + 1
        if C2P:
            copy_distances(key_tables.index(spare), key_table, s_kr[1], ROWS, num_keys, lower, D, 4)
        if P2C:
            copy_distances(query_tables.index(following), query_table, s_qr[1], ROWS, num_keys, lower, D, 4)
        async_copy.commit_group()
        grad_weights = start_product(grad_out, value)
        if P2C:
            scores += read_shifted(by_distance, scale, tile_layout, 0, False)
        if HAS_REAL or EDGE:
            scores += biases.load(gl.SliceLayout(0, tile_layout))[None, :]
            bias = column_bias(REAL + b * num_keys, j + BN + columns, num_keys, HAS_REAL)
        if HAS_MASK:
            scores = hide_outside(scores, (begin - j)[:, None], (end - begin)[:, None], offsets[None, :])
        weights = gl.exp2(scores * factor - lse[:, None])
        grad_weights = warpgroup_mma_wait(0, deps=[grad_weights])
        if DROPOUT:
            grad_weights *= gl.where(random.load(tile_layout).to(gl.int32) >= threshold, keep_scale, 0.0)
        grad = (weights * (grad_weights - delta[:, None])).to(kind)
        direct = gl.convert_layout(grad, operand(D))
        gradient = warpgroup_mma(direct, key, gradient, is_async=True)
        if C2P:
            # Laid out by distance, the gradient times the table's rows of these distances.
            gl.barrier()
            by_distance.store(zeros_by_row(kind))
            gl.barrier()
            write_shifted(by_distance, grad, 0, True)
            gl.barrier()
            left = by_distance.slice(0, BN, 1).load(operand(D))
            gradient = warpgroup_mma(left, key_tables.index(low), gradient, is_async=True)
            right = by_distance.slice(BN, BN, 1).load(operand(D))
            gradient = warpgroup_mma(right, key_tables.index(high), gradient, is_async=True)
            gradient, left, right = warpgroup_mma_wait(0, deps=[gradient, left, right])
        # What is read keeps its registers until then.
        gradient, direct = warpgroup_mma_wait(0, deps=[gradient, direct])
        current, high, low = following, low, spare
    async_copy.wait_group(0)
    out_rows = i + gl.arange(0, BM, gl.SliceLayout(1, accumulator(D)))
    out_slots, out_valid = slots_of(SLOTS, out_rows, b, num_queries, num_keys, HAS_SLOTS)
    store_rows(DQ, gradient * scale, b, h, num_heads, num_queries, out_slots, out_valid, D)
