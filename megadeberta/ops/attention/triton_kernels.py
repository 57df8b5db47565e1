"""Triton kernels of disentangled attention: one forward, three backward, none with atomics.

Every backward kernel owns what it writes, so results do not depend on the order of programs: queries by query tile,
keys and values by key tile, table gradients by window of distances. Each recomputes the tile of scores.

Arguments: capitals are tensors. ``sq``, ``sk``, ``sv`` are the strides of (sample, head, row) of queries, keys and values,
``s_kr``, ``s_qr`` those of (head, row) of the tables; their last dimension is dense. OUT, DO, DQ, DK and DV are dense
``[B, rows, N, H]``, LSE and DELTA ``[B, N, Q]``. ``ROWS`` ``[2 L - 1]`` holds the table row of every distance. In the
place of what is absent stands a tensor that is never read, behind a flag of compile time.

Query rows are consecutive positions. Where they are not (HAS_SLOTS), ``SLOTS`` ``[B, L]`` has the row of Q of every
position, or Q where there is none: tiles then go over positions, and a row's slot tells where it is and what dropout
draws for it.
EDGE: the last tile of queries or keys has places past the end.

Programs are numbered along one axis (the others end at 65 535): tiles first, then heads, then samples.

Shapes: B batch · N heads · Q query rows · L keys · H head size · BM, BN, WD, D as in triton_tiles.py.
"""

import triton
import triton.language as tl

from megadeberta.ops.attention.triton_tiles import (
    load_rows,
    load_window,
    product,
    tile_kept,
    tile_scores,
    tile_visible,
    write_skewed,
)

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
UNCOMPILED = ["first_head", "threshold", "samples_each", "batch"]  # their values are no reason to compile again


@triton.jit
def _program(num_tiles, num_heads):
    """Tile, sample and head of a program; the last two in 64 bits, as sample times stride may pass 2^31 elements."""
    program = tl.program_id(0)
    number = program // num_tiles
    return program % num_tiles, (number // num_heads).to(tl.int64), (number % num_heads).to(tl.int64)


@triton.jit
def _slots_of(SLOTS, rows, b, num_queries, num_keys, HAS_SLOTS: tl.constexpr):
    """Row of Q of every position of a tile, and whether there is one."""
    slots = rows
    if HAS_SLOTS:
        slots = tl.load(SLOTS + b * num_keys + rows, mask=rows < num_keys, other=num_queries)
    return slots, slots < num_queries


@triton.jit
def _range_of(BEGIN, END, slots, valid, b, num_queries, num_keys, HAS_MASK: tl.constexpr):
    """First visible key of every row of a tile, and one past the last."""
    if HAS_MASK:
        begin = tl.load(BEGIN + b * num_queries + slots, mask=valid, other=0)
        end = tl.minimum(tl.load(END + b * num_queries + slots, mask=valid, other=0), num_keys)
    else:
        begin = tl.zeros_like(slots)
        end = tl.where(valid, num_keys, 0)
    return begin, end


@triton.jit
def _first_visible(begin, end, num_keys):
    """The first column that any row of a tile sees."""
    return tl.min(tl.where(end > begin, begin, num_keys), 0)


@triton.jit
def _key_side(K, V, sk, sv, b, h, columns, num_keys, HEAD: tl.constexpr, D: tl.constexpr):
    """Keys and values ``[BN, D]`` of one head."""
    present = columns < num_keys
    key = load_rows(K + b * sk[0] + h * sk[1], sk[2], columns, present, HEAD, D)
    value = load_rows(V + b * sv[0] + h * sv[1], sv[2], columns, present, HEAD, D)
    return key, value


@triton.jit
def _dense_rows(X, b, h, num_heads, num_rows, HEAD: tl.constexpr):
    """Start and row stride of one head in a dense ``[B, rows, N, H]``."""
    return X + (b * num_rows * num_heads + h) * HEAD, num_heads * HEAD


@triton.jit
def _query_side(Q, DO, LSE, DELTA, sq, b, h, num_heads, num_queries, slots, valid, HEAD: tl.constexpr, D: tl.constexpr):
    """Queries and gradient of the context ``[BM, D]`` of one head, log-sum-exp and delta ``[BM]``."""
    query = load_rows(Q + b * sq[0] + h * sq[1], sq[2], slots, valid, HEAD, D)
    grad_base, grad_stride = _dense_rows(DO, b, h, num_heads, num_queries, HEAD)
    grad_out = load_rows(grad_base, grad_stride, slots, valid, HEAD, D)
    flat = (b * num_heads + h) * num_queries + slots
    # +1e30 makes every weight of a row past the end zero, so that it adds nothing to any sum.
    lse = tl.load(LSE + flat, mask=valid, other=1e30)
    delta = tl.load(DELTA + flat, mask=valid, other=0.0)
    return query, grad_out, lse, delta


@triton.jit
def _store_rows(X, values, b, h, num_heads, num_rows, slots, valid, HEAD: tl.constexpr, D: tl.constexpr):
    base, stride = _dense_rows(X, b, h, num_heads, num_rows, HEAD)
    dims = tl.arange(0, D)
    places = base + slots[:, None] * stride + dims[None, :]
    tl.store(places, values.to(X.dtype.element_ty), mask=valid[:, None] & (dims[None, :] < HEAD))


@triton.jit(do_not_specialize=UNCOMPILED)
def forward_kernel(
    Q, K, V, KR, QR, OUT, LSE, ROWS, BEGIN, END, REAL, SLOTS, SEED, SAMPLES, sq, sk, sv, s_kr, s_qr,
    num_heads, num_queries, num_keys, scale, first_head, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, HAS_MASK: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SLOTS: tl.constexpr,
    EDGE: tl.constexpr, DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, HEAD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Context and log-sum-exp of one query tile: online softmax over the key tiles that any of its rows sees."""
    num_rows = num_keys if HAS_SLOTS else num_queries
    tile, b, h = _program(tl.cdiv(num_rows, BM), num_heads)
    rows = tile * BM + tl.arange(0, BM)
    slots, valid = _slots_of(SLOTS, rows, b, num_queries, num_keys, HAS_SLOTS)
    begin, end = _range_of(BEGIN, END, slots, valid, b, num_queries, num_keys, HAS_MASK)
    if DROPOUT:
        seed, number, head = tl.load(SEED), tl.load(SAMPLES + b).to(tl.int32), (first_head + h).to(tl.int32)
    key_table, query_table = KR + h * s_kr[0], QR + h * s_qr[0]
    query = load_rows(Q + b * sq[0] + h * sq[1], sq[2], slots, valid, HEAD, D)
    # Finite, not -inf: a row that has seen nothing yet would otherwise subtract infinities. Above what hidden keys get,
    # so that their weights vanish.
    best = tl.full([BM], -1e29, tl.float32)
    total = tl.zeros([BM], tl.float32)
    context = tl.zeros([BM, D], tl.float32)
    first_tile = _first_visible(begin, end, num_keys) // BN
    for j in range(first_tile * BN, tl.max(end, 0), BN):
        columns = j + tl.arange(0, BN)
        key, value = _key_side(K, V, sk, sv, b, h, columns, num_keys, HEAD, D)
        scores = (scale * LOG2_E) * tile_scores(
            query, key, tile * BM - j - BN + 1, key_table, query_table, s_kr[1], s_qr[1], ROWS, num_keys,
            C2P, P2C, HEAD, D)  # fmt: skip
        if HAS_MASK or EDGE or HAS_SLOTS:
            visible = tile_visible(begin, end, columns, REAL + b * num_keys, num_keys, HAS_REAL)
            scores = tl.where(visible, scores, -1e30)
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - new_best[:, None])
        shrink = tl.exp2(best - new_best)  # what was added so far counted from the old maximum
        total = total * shrink + tl.sum(weights, 1)
        best = new_best
        if DROPOUT:
            # After the sum: dropout is of the normalised weights. Its scale goes in with the division, at the end.
            kept = tile_kept(seed, number, head, slots, j, threshold, ROUNDS, BN)
            weights = tl.where(kept, weights, 0.0)
        context = context * shrink[:, None] + product(weights.to(value.dtype), value)
    seeing = total > 0
    context = context * (tl.where(seeing, keep_scale / tl.where(seeing, total, 1.0), 0.0))[:, None]
    _store_rows(OUT, context, b, h, num_heads, num_queries, slots, valid, HEAD, D)
    # A row that sees nothing gets +1e30, so that every later exp(score - lse) of it is zero.
    lse = tl.where(seeing, best * LN_2 + tl.log(tl.where(seeing, total, 1.0)), 1e30)
    tl.store(LSE + (b * num_heads + h) * num_queries + slots, lse, mask=valid)


@triton.jit
def _tile_gradient(
    query, key, value, grad_out, lse, delta, begin, end, slots, first, j, key_table, query_table, s_kr, s_qr, ROWS, REAL,
    seed, number, head, num_keys, scale, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, MASKED: tl.constexpr, HAS_REAL: tl.constexpr, DROPOUT: tl.constexpr,
    ROUNDS: tl.constexpr, BN: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Weights that dropout keeps, before its scale, and the gradient of the scaled scores, both ``[BM, BN]`` in fp32.

    dS = P (dP - delta), delta the sum of P dP over a row. That sum is the row's product of context and its gradient,
    dropout included, so no pass over the keys is needed for it (FlashAttention, algorithm 4).
    """
    scores = (scale * LOG2_E) * tile_scores(
        query, key, first, key_table, query_table, s_kr, s_qr, ROWS, num_keys, C2P, P2C, HEAD, D)  # fmt: skip
    weights = tl.exp2(scores - lse[:, None] * LOG2_E)  # the softmax at once: its sum is known
    if MASKED:
        columns = j + tl.arange(0, BN)
        visible = tile_visible(begin, end, columns, REAL, num_keys, HAS_REAL)
        weights = tl.where(visible, weights, 0.0)
    grad_weights = product(grad_out, tl.trans(value))
    kept_weights = weights
    if DROPOUT:
        kept = tile_kept(seed, number, head, slots, j, threshold, ROUNDS, BN)
        kept_weights = tl.where(kept, weights, 0.0)
        grad_weights = tl.where(kept, grad_weights, 0.0) * keep_scale
    return kept_weights, weights * (grad_weights - delta[:, None])


@triton.jit(do_not_specialize=UNCOMPILED)
def query_kernel(
    Q, K, V, KR, QR, DO, DQ, LSE, DELTA, ROWS, BEGIN, END, REAL, SLOTS, SEED, SAMPLES, sq, sk, sv, s_kr, s_qr,
    num_heads, num_queries, num_keys, scale, first_head, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, HAS_MASK: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SLOTS: tl.constexpr,
    EDGE: tl.constexpr, DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, HEAD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradient of one query tile: the forward kernel's loop over key tiles."""
    num_rows = num_keys if HAS_SLOTS else num_queries
    tile, b, h = _program(tl.cdiv(num_rows, BM), num_heads)
    rows = tile * BM + tl.arange(0, BM)
    slots, valid = _slots_of(SLOTS, rows, b, num_queries, num_keys, HAS_SLOTS)
    begin, end = _range_of(BEGIN, END, slots, valid, b, num_queries, num_keys, HAS_MASK)
    seed, number, head = tl.cast(0, tl.int64), 0, 0
    if DROPOUT:
        seed, number, head = tl.load(SEED), tl.load(SAMPLES + b).to(tl.int32), (first_head + h).to(tl.int32)
    key_table, query_table = KR + h * s_kr[0], QR + h * s_qr[0]
    query, grad_out, lse, delta = _query_side(
        Q, DO, LSE, DELTA, sq, b, h, num_heads, num_queries, slots, valid, HEAD, D)  # fmt: skip
    gradient = tl.zeros([BM, D], tl.float32)
    first_tile = _first_visible(begin, end, num_keys) // BN
    for j in range(first_tile * BN, tl.max(end, 0), BN):
        columns = j + tl.arange(0, BN)
        first = tile * BM - j - BN + 1
        key, value = _key_side(K, V, sk, sv, b, h, columns, num_keys, HEAD, D)
        _, grad = _tile_gradient(
            query, key, value, grad_out, lse, delta, begin, end, slots, first, j, key_table, query_table,
            s_kr[1], s_qr[1], ROWS, REAL + b * num_keys, seed, number, head, num_keys, scale, threshold, keep_scale,
            C2P, P2C, HAS_MASK or EDGE or HAS_SLOTS, HAS_REAL, DROPOUT, ROUNDS, BN, HEAD, D)  # fmt: skip
        gradient += product(grad.to(key.dtype), key)
        if C2P:
            # Laid out by distance, the gradient times the table's rows of these distances: no scatter.
            spread = write_skewed(grad, True)
            table = load_window(key_table, s_kr[1], ROWS, num_keys, first, BM + BN, HEAD, D)
            gradient += product(spread.to(table.dtype), table)
    _store_rows(DQ, gradient * scale, b, h, num_heads, num_queries, slots, valid, HEAD, D)


@triton.jit(do_not_specialize=UNCOMPILED)
def key_kernel(
    Q, K, V, KR, QR, DO, DK, DV, LSE, DELTA, ROWS, BEGIN, END, REAL, SLOTS, SEED, SAMPLES, sq, sk, sv, s_kr, s_qr,
    num_heads, num_queries, num_keys, scale, first_head, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, HAS_MASK: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SLOTS: tl.constexpr,
    EDGE: tl.constexpr, DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, HEAD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys and values of one key tile: a loop over the query tiles that see any of its keys."""
    num_rows = num_keys if HAS_SLOTS else num_queries
    tile, b, h = _program(tl.cdiv(num_keys, BN), num_heads)
    j = tile * BN
    columns = j + tl.arange(0, BN)
    seed, number, head = tl.cast(0, tl.int64), 0, 0
    if DROPOUT:
        seed, number, head = tl.load(SEED), tl.load(SAMPLES + b).to(tl.int32), (first_head + h).to(tl.int32)
    key_table, query_table = KR + h * s_kr[0], QR + h * s_qr[0]
    key, value = _key_side(K, V, sk, sv, b, h, columns, num_keys, HEAD, D)
    grad_key = tl.zeros([BN, D], tl.float32)
    grad_value = tl.zeros([BN, D], tl.float32)
    for i in range(0, num_rows, BM):
        rows = i + tl.arange(0, BM)
        slots, valid = _slots_of(SLOTS, rows, b, num_queries, num_keys, HAS_SLOTS)
        begin, end = _range_of(BEGIN, END, slots, valid, b, num_queries, num_keys, HAS_MASK)
        # Which queries see a key is in no tensor, so every query tile is asked; most of the work is behind the answer.
        if (tl.max(end, 0) > j) & (_first_visible(begin, end, num_keys) < j + BN):
            first = i - j - BN + 1
            query, grad_out, lse, delta = _query_side(
                Q, DO, LSE, DELTA, sq, b, h, num_heads, num_queries, slots, valid, HEAD, D)  # fmt: skip
            kept_weights, grad = _tile_gradient(
                query, key, value, grad_out, lse, delta, begin, end, slots, first, j, key_table, query_table,
                s_kr[1], s_qr[1], ROWS, REAL + b * num_keys, seed, number, head, num_keys, scale, threshold, keep_scale,
                C2P, P2C, HAS_MASK or EDGE or HAS_SLOTS, HAS_REAL, DROPOUT, ROUNDS, BN, HEAD, D)  # fmt: skip
            grad_value += product(tl.trans(kept_weights).to(grad_out.dtype), grad_out)
            grad_key += product(tl.trans(grad).to(query.dtype), query)
            if P2C:
                spread = write_skewed(tl.trans(grad), False)
                table = load_window(query_table, s_qr[1], ROWS, num_keys, first, BM + BN, HEAD, D)
                grad_key += product(spread.to(table.dtype), table)
    present = columns < num_keys
    _store_rows(DK, grad_key * scale, b, h, num_heads, num_keys, columns, present, HEAD, D)
    _store_rows(DV, grad_value * keep_scale, b, h, num_heads, num_keys, columns, present, HEAD, D)


@triton.jit(do_not_specialize=UNCOMPILED)
def table_kernel(
    Q, K, V, KR, QR, DO, DKR, DQR, LSE, DELTA, ROWS, BEGIN, END, REAL, SLOTS, SEED, SAMPLES, sq, sk, sv, s_kr, s_qr,
    batch, samples_each, num_heads, num_queries, num_keys, num_windows, scale, first_head, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, HAS_MASK: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SLOTS: tl.constexpr,
    EDGE: tl.constexpr, DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, HEAD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients by distance of one window of one head, summed over some samples: ``[windows, shares, N, WD, H]``.

    The windows are those of the tile diagonals, so each tile of scores is computed once; the longest come first, so
    that the last programs are short. The samples of a share are added up on the chip: a table gradient is written once
    for each share, not each sample.
    """
    WD: tl.constexpr = BM + BN
    num_rows = num_keys if HAS_SLOTS else num_queries
    per_window = tl.num_programs(0) // num_windows
    window, part = tl.program_id(0) // per_window, tl.program_id(0) % per_window
    share, h = part // num_heads, (part % num_heads).to(tl.int64)
    diagonal = tl.where(window % 2 == 1, (window + 1) // 2, -(window // 2))  # query tile minus key tile
    first = diagonal * BM - BN + 1
    key_table, query_table = KR + h * s_kr[0], QR + h * s_qr[0]
    seed, head = tl.cast(0, tl.int64), 0
    if DROPOUT:
        seed, head = tl.load(SEED), (first_head + h).to(tl.int32)
    grad_key_table = tl.zeros([WD, D], tl.float32)
    grad_query_table = tl.zeros([WD, D], tl.float32)
    low = tl.maximum(diagonal, 0) * BM
    high = tl.minimum(num_rows, num_keys + diagonal * BM)
    for sample in range(share * samples_each, tl.minimum((share + 1) * samples_each, batch)):
        b = tl.cast(sample, tl.int64)
        number = 0
        if DROPOUT:
            number = tl.load(SAMPLES + b).to(tl.int32)
        for i in range(low, high, BM):
            j = i - diagonal * BM
            rows, columns = i + tl.arange(0, BM), j + tl.arange(0, BN)
            slots, valid = _slots_of(SLOTS, rows, b, num_queries, num_keys, HAS_SLOTS)
            begin, end = _range_of(BEGIN, END, slots, valid, b, num_queries, num_keys, HAS_MASK)
            if (tl.max(end, 0) > j) & (_first_visible(begin, end, num_keys) < j + BN):
                query, grad_out, lse, delta = _query_side(
                    Q, DO, LSE, DELTA, sq, b, h, num_heads, num_queries, slots, valid, HEAD, D)  # fmt: skip
                key, value = _key_side(K, V, sk, sv, b, h, columns, num_keys, HEAD, D)
                _, grad = _tile_gradient(
                    query, key, value, grad_out, lse, delta, begin, end, slots, first, j, key_table, query_table,
                    s_kr[1], s_qr[1], ROWS, REAL + b * num_keys, seed, number, head, num_keys, scale, threshold,
                    keep_scale, C2P, P2C, HAS_MASK or EDGE or HAS_SLOTS, HAS_REAL, DROPOUT, ROUNDS, BN, HEAD, D,
                )  # fmt: skip
                if C2P:
                    by_row = write_skewed(grad, True)
                    grad_key_table += product(tl.trans(by_row).to(query.dtype), query)
                if P2C:
                    by_column = write_skewed(tl.trans(grad), False)
                    grad_query_table += product(tl.trans(by_column).to(key.dtype), key)
    dims = tl.arange(0, D)
    entry = tl.program_id(0).to(tl.int64) * WD + tl.arange(0, WD)
    out = entry[:, None] * HEAD + dims[None, :]
    if C2P:
        tl.store(DKR + out, grad_key_table * scale, mask=dims[None, :] < HEAD)
    if P2C:
        tl.store(DQR + out, grad_query_table * scale, mask=dims[None, :] < HEAD)
