"""Forward."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from megadeberta.ops.attention.gluon_tiles import (
    HIDDEN, accumulator, blocks, copy_distances, copy_rows, operand, padded, store_draws, tile_products,
)  # fmt: skip


@gluon.jit
def forward_kernel(
    Q, K, V, KR, QR, OUT, LSE, ROWS, BEGIN, END, REAL, POS, DRAWS,
    sq, sk, sv, so, s_kr, s_qr, num_heads, num_queries, num_keys, center, head_size, scale,
    first_head, threshold, keep_scale,
    C2P: gl.constexpr, P2C: gl.constexpr, HAS_MASK: gl.constexpr, HAS_REAL: gl.constexpr, HAS_POSITIONS: gl.constexpr,
    DROPOUT: gl.constexpr, ROUNDS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    scores_layout: gl.constexpr = accumulator(BN)
    context_layout: gl.constexpr = accumulator(D)
    kind: gl.constexpr = Q.dtype.element_ty
    b, h = (gl.program_id(1) // num_heads).to(gl.int64), (gl.program_id(1) % num_heads).to(gl.int64)
    sample, head = gl.program_id(1) // num_heads, gl.program_id(1) % num_heads
    i = gl.program_id(0) * BM
    query_base, key_base, value_base = Q + b * sq[0] + h * sq[1], K + b * sk[0] + h * sk[1], V + b * sv[0] + h * sv[1]
    tables, strides = (KR + h * s_kr[0], QR + h * s_qr[0]), (s_kr[1], s_qr[1])
    query = gl.allocate_shared_memory(kind, [BM, D], blocks(D))
    keys = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    values = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    key_table = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    query_table = gl.allocate_shared_memory(kind, [2, BN, D], blocks(D))
    by_row = gl.allocate_shared_memory(kind, [BM, BM + BN], padded(BM + BN, 8))
    by_column = gl.allocate_shared_memory(kind, [BN, BM + BN], padded(BM + BN, 8))
    biases = gl.allocate_shared_memory(gl.float32, [BN], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    words = gl.allocate_shared_memory(gl.int32, [BM, BN // 4], gl.PaddedSharedLayout.with_identity_for([[16, 4]], [64, 16], [1, 0]))
    random = words.reinterpret(gl.uint8, [BM, BN], gl.PaddedSharedLayout.with_identity_for([[64, 16]], [64, 64], [1, 0]))
    # row facts
    rows = i + gl.arange(0, BM, gl.SliceLayout(1, scores_layout))
    valid = rows < num_queries
    if HAS_MASK:
        begin = gl.load(BEGIN + b * num_queries + rows, mask=valid, other=0)
        end = gl.minimum(gl.load(END + b * num_queries + rows, mask=valid, other=0), num_keys)
        first = gl.min(gl.where(end > begin, begin, num_keys), 0) // BN * BN
        last = gl.max(end, 0)
    else:
        first = 0
        last = num_keys
    copy_rows(query, query_base, sq[2], i, num_queries - 1, BM, D)
    copy_rows(keys.index(0), key_base, sk[2], first, num_keys - 1, BN, D)
    copy_rows(values.index(0), value_base, sv[2], first, num_keys - 1, BN, D)
    copy_distances(key_table.index(1), query_table.index(1), tables, strides, ROWS, center, i - first + 1, C2P, P2C, D)
    copy_distances(key_table.index(0), query_table.index(0), tables, strides, ROWS, center, i - first - BN + 1, C2P, P2C, D)
    async_copy.commit_group()
    one: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    m = gl.arange(0, BM, gl.SliceLayout(1, scores_layout))
    n = gl.arange(0, BN, gl.SliceLayout(0, scores_layout))
    shift = m[:, None] + (n ^ (BN - 1))[None, :]
    best = gl.full([BM], -1e30, gl.float32, gl.SliceLayout(1, scores_layout))
    total = gl.zeros([BM], gl.float32, gl.SliceLayout(1, scores_layout))
    context = gl.zeros([BM, D], gl.float32, context_layout)
    factor = scale * 1.4426950408889634
    current = 0
    nothing = scale - scale
    if DROPOUT:
        seed = gl.load(DRAWS)
        number = gl.load(DRAWS + 1 + sample).to(gl.int32)
    for j in range(first, last, BN):
        async_copy.wait_group(0)
        fence_async_shared()
        gl.barrier()
        key, value = keys.index(current), values.index(current)
        scores = tile_products(
            query, key, key_table.index(current), key_table.index(1 - current),
            query_table.index(current), query_table.index(1 - current), by_row, by_column, C2P, P2C)
        columns = j + gl.arange(0, BN, one)
        present = columns < num_keys
        if HAS_REAL:
            present = present & (gl.load(REAL + b * num_keys + columns, mask=present, other=0) != 0)
        biases.store(gl.where(present, 0.0, HIDDEN))
        if DROPOUT:
            store_draws(words, seed, number, first_head + head, i, j, ROUNDS)
        gl.barrier()
        following = 1 - current
        copy_rows(keys.index(following), key_base, sk[2], j + BN, num_keys - 1, BN, D)
        copy_rows(values.index(following), value_base, sv[2], j + BN, num_keys - 1, BN, D)
        copy_distances(key_table.index(following), query_table.index(following), tables, strides, ROWS, center, i - j - 2 * BN + 1, C2P, P2C, D)
        async_copy.commit_group()
        if C2P:
            scores += by_row.gather(shift, 1).to(gl.float32)
        if P2C:
            scores += by_column.permute((1, 0)).gather(shift, 0).to(gl.float32)
        scores += biases.load(gl.SliceLayout(0, scores_layout))[None, :]
        if HAS_MASK:
            ahead = n[None, :] - (begin - j)[:, None]
            scores = gl.where(ahead.to(gl.uint32, bitcast=True) < (end - begin)[:, None].to(gl.uint32,bitcast=True), scores, HIDDEN)
        new_best = gl.maximum(best, gl.max(scores, 1))
        weights = gl.exp2(scores * factor - (new_best * factor)[:, None])
        shrink = gl.exp2((best - new_best) * factor)
        total = total * shrink + gl.sum(weights, 1)
        best = new_best
        if DROPOUT:
            kept = random.load(scores_layout).to(gl.int32) >= threshold
            weights = gl.where(kept, weights, nothing)
        left = gl.convert_layout(weights.to(kind), operand(D))
        context = context * gl.convert_layout(shrink, gl.SliceLayout(1, context_layout))[:, None]
        context = warpgroup_mma_wait(0, deps=[warpgroup_mma(left, value, context, is_async=True)])
        current = following
    async_copy.wait_group(0)
    seeing = total > 0
    safe = gl.where(seeing, total, 1.0)
    context *= gl.convert_layout(gl.where(seeing, keep_scale / safe, 0.0), gl.SliceLayout(1, context_layout))[:, None]
    rows = i + gl.arange(0, BM, gl.SliceLayout(1, context_layout))
    dims = gl.arange(0, D, gl.SliceLayout(0, context_layout))
    gl.store(OUT + b * so[0] + h * so[1] + rows[:, None] * so[2] + dims[None, :], context.to(kind), mask=(rows < num_queries)[:, None])
    lse = gl.where(seeing, best * scale + gl.log(safe), 1e30)
    rows = i + gl.arange(0, BM, gl.SliceLayout(1, scores_layout))
    gl.store(LSE + (b * num_heads + head) * num_queries + rows, lse, mask=rows < num_queries)
