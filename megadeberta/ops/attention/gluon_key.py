"""Backward kernel of the keys and values for sm_90: what it computes and its arguments are those of triton_kernels.py.

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
    drawn,
    hide_outside,
    read_shifted,
    start_product,
    store_draws,
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


@gluon.jit
def _seeing_rows(BEGIN, END, SLOTS, j, b, num_queries, num_keys, num_rows, HAS_SLOTS: gl.constexpr, BN: gl.constexpr):
    """The first row that sees a key of the tile from ``j`` on, and one past the last."""
    layout: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    low, high = num_rows, 0
    for start in range(0, num_rows, 512):
        rows = start + gl.arange(0, 512, layout)
        slots, valid = slots_of(SLOTS, rows, b, num_queries, num_keys, HAS_SLOTS)
        begin, end = range_of(BEGIN, END, slots, valid, b, num_queries, num_keys)
        sees = (end > j) & (begin < j + BN) & (end > begin)
        low = gl.minimum(low, gl.min(gl.where(sees, rows, num_rows), 0))
        high = gl.maximum(high, gl.max(gl.where(sees, rows + 1, 0), 0))
    return low, high


@gluon.jit
def _row_facts(
    LSE, DELTA, BEGIN, END, SLOTS, rows, b, h, num_heads, num_queries, num_keys,
    HAS_MASK: gl.constexpr, HAS_SLOTS: gl.constexpr,
):  # fmt: skip
    """Of 64 rows: log-sum-exp (to the base 2), delta, first visible key and number of visible keys."""
    slots, valid = slots_of(SLOTS, rows, b, num_queries, num_keys, HAS_SLOTS)
    flat = (b * num_heads + h) * num_queries + slots
    # +1e30 makes every weight of a row past the end zero.
    lse = gl.load(LSE + flat, mask=valid, other=1e30) * LOG2_E
    delta = gl.load(DELTA + flat, mask=valid, other=0.0)
    begin, end = slots, slots
    if HAS_MASK:
        begin, end = range_of(BEGIN, END, slots, valid, b, num_queries, num_keys)
    return lse, delta, begin, end - begin


@gluon.jit(do_not_specialize=UNCOMPILED)
def key_kernel(
    Q, K, V, KR, QR, DO, DK, DV, LSE, DELTA, ROWS, BEGIN, END, REAL, SLOTS, SEED, SAMPLES, sq, sk, sv, s_kr, s_qr,
    num_heads, num_queries, num_keys, scale, first_head, threshold, keep_scale,
    C2P: gl.constexpr, P2C: gl.constexpr, HAS_MASK: gl.constexpr, HAS_REAL: gl.constexpr, HAS_SLOTS: gl.constexpr,
    EDGE: gl.constexpr, DROPOUT: gl.constexpr, ROUNDS: gl.constexpr, HEAD: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Gradients of the keys and values of one key tile: a loop over the query tiles that see any of its keys.

    Its tiles are transposed, ``[BN, BM]``: what multiplies queries and gradients then is in registers.
    """
    kind: gl.constexpr = Q.dtype.element_ty
    tile_layout: gl.constexpr = accumulator(BM)
    of_columns: gl.constexpr = gl.SliceLayout(0, tile_layout)
    of_copies: gl.constexpr = gl.SliceLayout(1, copied(4))
    num_rows = num_keys if HAS_SLOTS else num_queries
    tile, b, h = program(gl.cdiv(num_keys, BN), num_heads)
    j = tile * BN
    key = gl.allocate_shared_memory(kind, [BN, D], blocks(D))
    value = gl.allocate_shared_memory(kind, [BN, D], blocks(D))
    queries = gl.allocate_shared_memory(kind, [2, BM, D], blocks(D))
    grads_out = gl.allocate_shared_memory(kind, [2, BM, D], blocks(D))
    key_tables = gl.allocate_shared_memory(kind, [2, BM, D], blocks(D))
    query_tables = gl.allocate_shared_memory(kind, [3, BM, D], blocks(D))  # a tile needs both halves to its end
    by_distance = gl.allocate_shared_memory(kind, [BN, BM + BN], padded(BN, BM + BN, PADDING))
    lses, deltas = shared_vector(gl.float32), shared_vector(gl.float32)
    begins, lengths = shared_vector(gl.int32), shared_vector(gl.int32)
    words, random = shared_draws()

    first, end_of_rows = 0, num_rows
    if HAS_MASK:
        first, end_of_rows = _seeing_rows(BEGIN, END, SLOTS, j, b, num_queries, num_keys, num_rows, HAS_SLOTS, BN)
        first = first // BM * BM
    if DROPOUT:
        seed, number, head = gl.load(SEED), gl.load(SAMPLES + b).to(gl.int32), (first_head + h).to(gl.int32)
    query_base = Q + (b * sq[0] + h * sq[1])
    grad_base, grad_stride = dense_rows(DO, b, h, num_heads, num_queries, D)
    key_table, query_table = KR + h * s_kr[0], QR + h * s_qr[0]
    local = gl.arange(0, BM, of_copies)
    copy_rows(key, K + (b * sk[0] + h * sk[1]), sk[2], j + local, num_keys - 1, D, 4)
    copy_rows(value, V + (b * sv[0] + h * sv[1]), sv[2], j + local, num_keys - 1, D, 4)
    copied_slots, _ = slots_of(SLOTS, first + local, b, num_queries, num_keys, HAS_SLOTS)
    copy_rows(queries.index(0), query_base, sq[2], copied_slots, num_queries - 1, D, 4)
    copy_rows(grads_out.index(0), grad_base, grad_stride, copied_slots, num_queries - 1, D, 4)
    if C2P:
        copy_distances(key_tables.index(1), key_table, s_kr[1], ROWS, num_keys, first - j - BN + 1, D, 4)
        copy_distances(key_tables.index(0), key_table, s_kr[1], ROWS, num_keys, first - j + 1, D, 4)
    if P2C:
        copy_distances(query_tables.index(2), query_table, s_qr[1], ROWS, num_keys, first - j - BN + 1, D, 4)
        copy_distances(query_tables.index(0), query_table, s_qr[1], ROWS, num_keys, first - j + 1, D, 4)
    async_copy.commit_group()
    lines = gl.arange(0, BM, line(4))
    lse, delta, begin, length = _row_facts(
        LSE, DELTA, BEGIN, END, SLOTS, first + lines, b, h, num_heads, num_queries, num_keys,
        HAS_MASK, HAS_SLOTS)  # fmt: skip

    offsets = j + gl.arange(0, BN, gl.SliceLayout(1, tile_layout))
    grad_key = gl.zeros([BN, D], gl.float32, accumulator(D))
    grad_value = gl.zeros([BN, D], gl.float32, accumulator(D))
    factor = scale * LOG2_E
    current, low, high = 0, 2, 0
    for i in range(first, end_of_rows, BM):
        async_copy.wait_group(0)
        fence_async_shared()
        gl.barrier()
        following, spare = 1 - current, 3 - low - high
        query, grad_out = queries.index(current), grads_out.index(current)
        if P2C:
            store_window(by_distance, key, query_tables.index(low), query_tables.index(high), scale)
        scores = start_product(key, query)
        lses.store(lse)
        deltas.store(delta)
        if HAS_MASK:
            begins.store(begin)
            lengths.store(length)
        if DROPOUT:
            drawn_rows = i + gl.arange(0, BM, gl.SliceLayout(1, drawn(4)))
            drawn_slots, _drawn = slots_of(SLOTS, drawn_rows, b, num_queries, num_keys, HAS_SLOTS)
            store_draws(words, seed, number, head, drawn_slots, j, ROUNDS, 4)
        scores = warpgroup_mma_wait(0, deps=[scores])
        gl.barrier()
        if P2C:
            scores += read_shifted(by_distance, scale, tile_layout, 1, False)
        if C2P:
            gl.barrier()
            store_window(by_distance, query, key_tables.index(following), key_tables.index(current), scale)
            gl.barrier()
        copied_slots, _ = slots_of(SLOTS, i + BM + local, b, num_queries, num_keys, HAS_SLOTS)
        copy_rows(queries.index(following), query_base, sq[2], copied_slots, num_queries - 1, D, 4)
        copy_rows(grads_out.index(following), grad_base, grad_stride, copied_slots, num_queries - 1, D, 4)
        if C2P:
            copy_distances(key_tables.index(following), key_table, s_kr[1], ROWS, num_keys, i - j + BN + 1, D, 4)
        if P2C:
            copy_distances(query_tables.index(spare), query_table, s_qr[1], ROWS, num_keys, i - j + BN + 1, D, 4)
        async_copy.commit_group()
        lse, delta, begin, length = _row_facts(
            LSE, DELTA, BEGIN, END, SLOTS, i + BM + lines, b, h, num_heads, num_queries, num_keys,
            HAS_MASK, HAS_SLOTS)  # fmt: skip
        if C2P:
            scores += read_shifted(by_distance, scale, tile_layout, 1, True)
        grad_weights = start_product(value, grad_out)
        if HAS_MASK:
            begin_of, length_of = begins.load(of_columns), lengths.load(of_columns)
            scores = hide_outside(scores, begin_of[None, :], length_of[None, :], offsets[:, None])
        weights = gl.exp2(scores * factor - lses.load(of_columns)[None, :])
        grad_weights = warpgroup_mma_wait(0, deps=[grad_weights])
        dropped = weights
        if DROPOUT:
            kept = gl.where(random.permute((1, 0)).load(tile_layout).to(gl.int32) >= threshold, keep_scale, 0.0)
            dropped = weights * kept
            grad_weights *= kept
        dropped = gl.convert_layout(dropped.to(kind), operand(D))
        grad_value = warpgroup_mma(dropped, grad_out, grad_value, is_async=True)
        grad = (weights * (grad_weights - deltas.load(of_columns)[None, :])).to(kind)
        direct = gl.convert_layout(grad, operand(D))
        grad_key = warpgroup_mma(direct, query, grad_key, is_async=True)
        # What is read keeps its registers until then.
        grad_value, dropped = warpgroup_mma_wait(1, deps=[grad_value, dropped])
        grad_key, direct = warpgroup_mma_wait(0, deps=[grad_key, direct])
        if P2C:
            gl.barrier()
            by_distance.store(zeros_by_row(kind))
            gl.barrier()
            write_shifted(by_distance, grad, 1, False)
            gl.barrier()
            left = by_distance.slice(0, 64, 1).load(operand(D))
            grad_key = warpgroup_mma(left, query_tables.index(low), grad_key, is_async=True)
            right = by_distance.slice(64, 64, 1).load(operand(D))
            grad_key = warpgroup_mma(right, query_tables.index(high), grad_key, is_async=True)
            grad_key, left, right = warpgroup_mma_wait(0, deps=[grad_key, left, right])
        current, low, high = following, high, spare
    async_copy.wait_group(0)
    columns = j + gl.arange(0, BN, gl.SliceLayout(1, accumulator(D)))
    present = columns < num_keys
    real = present
    if HAS_REAL:
        # The loop does not ask: a row of these gradients is of one key only.
        real = gl.load(REAL + b * num_keys + columns, mask=present, other=0) != 0
    grad_key = gl.where(real[:, None], grad_key * scale, 0.0)
    grad_value = gl.where(real[:, None], grad_value, 0.0)
    store_rows(DK, grad_key, b, h, num_heads, num_keys, columns, present, D)
    store_rows(DV, grad_value, b, h, num_heads, num_keys, columns, present, D)
