"""Forward kernel for sm_90: what it computes and its arguments are those of triton_kernels.py.

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
)
from megadeberta.ops.attention.gluon_tiles import (
    UNCOMPILED,
    accumulator,
    blocks,
    copied,
    copy_distances,
    copy_rows,
    line,
    operand,
    padded,
    program,
    range_of,
    shared_draws,
    shared_vector,
    slots_of,
    store_rows,
)


@gluon.jit
def _start_scores(
    query, key, key_low, key_high, query_low, query_high, by_row, by_column, scale, C2P: gl.constexpr, P2C: gl.constexpr
):
    """Start the content scores, with the position scores by distance stored in ``by_row`` and ``by_column``.

    At most two products are under way, so that few registers wait for them.
    """
    if C2P:
        low = start_product(query, key_low)
        high = start_product(query, key_high)
        low = warpgroup_mma_wait(1, deps=[low])
        store_half(by_row, low, scale, 0)
        high = warpgroup_mma_wait(0, deps=[high])
        store_half(by_row, high, scale, 1)
    if P2C:
        low = start_product(key, query_low)
        high = start_product(key, query_high)
        low = warpgroup_mma_wait(1, deps=[low])
        store_half(by_column, low, scale, 0)
        high = warpgroup_mma_wait(0, deps=[high])
        store_half(by_column, high, scale, 1)
    return start_product(query, key)


@gluon.jit(do_not_specialize=UNCOMPILED)
def forward_kernel(
    Q, K, V, KR, QR, OUT, LSE, ROWS, BEGIN, END, REAL, SLOTS, SEED, SAMPLES, sq, sk, sv, s_kr, s_qr,
    num_heads, num_queries, num_keys, scale, first_head, threshold, keep_scale,
    C2P: gl.constexpr, P2C: gl.constexpr, HAS_MASK: gl.constexpr, HAS_REAL: gl.constexpr, HAS_SLOTS: gl.constexpr,
    EDGE: gl.constexpr, DROPOUT: gl.constexpr, ROUNDS: gl.constexpr, HEAD: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Context and log-sum-exp of one query tile: online softmax over the key tiles that any of its rows sees."""
    kind: gl.constexpr = Q.dtype.element_ty
    tile_layout: gl.constexpr = accumulator(BN)
    of_rows: gl.constexpr = gl.SliceLayout(1, tile_layout)
    of_copies: gl.constexpr = gl.SliceLayout(1, copied(4))
    num_rows = num_keys if HAS_SLOTS else num_queries
    tile, b, h = program(gl.cdiv(num_rows, BM), num_heads)
    i = tile * BM
    query = gl.allocate_shared_memory(kind, [BM, D], blocks(D))
    keys = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    values = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    key_tables = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    query_tables = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    by_row = gl.allocate_shared_memory(kind, [BM, BM + BN], padded(BM, BM + BN, PADDING))
    by_column = gl.allocate_shared_memory(kind, [BN, BM + BN], padded(BN, BM + BN, PADDING))
    biases = shared_vector(gl.float32)
    words, random = shared_draws()

    slots, valid = slots_of(SLOTS, i + gl.arange(0, BM, of_rows), b, num_queries, num_keys, HAS_SLOTS)
    first, end_of_keys = 0, num_keys
    if HAS_MASK:
        begin, end = range_of(BEGIN, END, slots, valid, b, num_queries, num_keys)
        first = gl.min(gl.where(end > begin, begin, num_keys), 0) // BN * BN
        end_of_keys = gl.max(gl.where(end > begin, end, 0), 0)
    if DROPOUT:
        seed, number, head = gl.load(SEED), gl.load(SAMPLES + b).to(gl.int32), (first_head + h).to(gl.int32)
        drawn_rows = i + gl.arange(0, BM, gl.SliceLayout(1, drawn(4)))
        drawn_slots, _ = slots_of(SLOTS, drawn_rows, b, num_queries, num_keys, HAS_SLOTS)
    key_base, value_base = K + (b * sk[0] + h * sk[1]), V + (b * sv[0] + h * sv[1])
    key_table, query_table = KR + h * s_kr[0], QR + h * s_qr[0]
    local = gl.arange(0, BN, of_copies)
    copied_slots, _ = slots_of(SLOTS, i + local, b, num_queries, num_keys, HAS_SLOTS)
    copy_rows(query, Q + (b * sq[0] + h * sq[1]), sq[2], copied_slots, num_queries - 1, D, 4)
    copy_rows(keys.index(0), key_base, sk[2], first + local, num_keys - 1, D, 4)
    copy_rows(values.index(0), value_base, sv[2], first + local, num_keys - 1, D, 4)
    if C2P:
        copy_distances(key_tables.index(0), key_table, s_kr[1], ROWS, num_keys, i - first - BN + 1, D, 4)
        copy_distances(key_tables.index(1), key_table, s_kr[1], ROWS, num_keys, i - first + 1, D, 4)
    if P2C:
        copy_distances(query_tables.index(0), query_table, s_qr[1], ROWS, num_keys, i - first - BN + 1, D, 4)
        copy_distances(query_tables.index(1), query_table, s_qr[1], ROWS, num_keys, i - first + 1, D, 4)
    async_copy.commit_group()
    columns = gl.arange(0, BN, line(4))
    bias = column_bias(REAL + b * num_keys, first + columns, num_keys, HAS_REAL)

    offsets = gl.arange(0, BN, gl.SliceLayout(0, tile_layout))
    # Finite, not -inf: a row that has seen nothing yet would otherwise subtract infinities.
    best = gl.full([BM], -1e30, gl.float32, of_rows)
    total = gl.zeros([BM], gl.float32, of_rows)
    context = gl.zeros([BM, D], gl.float32, accumulator(D))
    factor = scale * LOG2_E
    nothing = scale - scale  # zero, but the compiler does not know: of a constant it makes two selections
    current = 0
    for j in range(first, end_of_keys, BN):
        async_copy.wait_group(0)
        fence_async_shared()
        gl.barrier()
        following = 1 - current
        scores = _start_scores(
            query, keys.index(current), key_tables.index(current), key_tables.index(following),
            query_tables.index(current), query_tables.index(following), by_row, by_column, scale, C2P, P2C)  # fmt: skip
        if HAS_REAL or EDGE:
            biases.store(bias)
        if DROPOUT:
            store_draws(words, seed, number, head, drawn_slots, j, ROUNDS, 4)
        scores = warpgroup_mma_wait(0, deps=[scores])
        gl.barrier()
        # The window's higher half and the other buffers are read no more. Past the end this copies the last rows.
        copy_rows(keys.index(following), key_base, sk[2], j + BN + local, num_keys - 1, D, 4)
        copy_rows(values.index(following), value_base, sv[2], j + BN + local, num_keys - 1, D, 4)
        lower = i - j - 2 * BN + 1
        if C2P:
            copy_distances(key_tables.index(following), key_table, s_kr[1], ROWS, num_keys, lower, D, 4)
        if P2C:
            copy_distances(query_tables.index(following), query_table, s_qr[1], ROWS, num_keys, lower, D, 4)
        async_copy.commit_group()
        if C2P:
            scores += read_shifted(by_row, scale, tile_layout, 0, True)
        if P2C:
            scores += read_shifted(by_column, scale, tile_layout, 0, False)
        if HAS_REAL or EDGE:
            scores += biases.load(gl.SliceLayout(0, tile_layout))[None, :]
            bias = column_bias(REAL + b * num_keys, j + BN + columns, num_keys, HAS_REAL)
        if HAS_MASK:
            scores = hide_outside(scores, (begin - j)[:, None], (end - begin)[:, None], offsets[None, :])
        new_best = gl.maximum(best, gl.max(scores, 1))
        weights = gl.exp2(scores * factor - (new_best * factor)[:, None])
        shrink = gl.exp2((best - new_best) * factor)  # what was added so far counted from the old maximum
        total = total * shrink + gl.sum(weights, 1)
        best = new_best
        if DROPOUT:
            # After the sum: dropout is of the normalised weights. Its scale goes in with the division, at the end.
            weights = gl.where(random.load(tile_layout).to(gl.int32) >= threshold, weights, nothing)
        left = gl.convert_layout(weights.to(kind), operand(D))
        context *= gl.convert_layout(shrink, gl.SliceLayout(1, accumulator(D)))[:, None]
        context = warpgroup_mma(left, values.index(current), context, is_async=True)
        context, left = warpgroup_mma_wait(0, deps=[context, left])  # what is read keeps its registers until then
        current = following
    async_copy.wait_group(0)
    seeing = total > 0
    total = gl.where(seeing, total, 1.0)
    context *= gl.convert_layout(gl.where(seeing, keep_scale / total, 0.0), gl.SliceLayout(1, accumulator(D)))[:, None]
    out_rows = i + gl.arange(0, BM, gl.SliceLayout(1, accumulator(D)))
    out_slots, out_valid = slots_of(SLOTS, out_rows, b, num_queries, num_keys, HAS_SLOTS)
    store_rows(OUT, context, b, h, num_heads, num_queries, out_slots, out_valid, D)
    # A row that sees nothing gets +1e30, so that every later exp(score - lse) of it is zero.
    lse = gl.where(seeing, best * scale + gl.log(total), 1e30)
    gl.store(LSE + (b * num_heads + h) * num_queries + slots, lse, mask=valid)
