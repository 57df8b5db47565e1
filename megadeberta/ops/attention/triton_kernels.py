"""Triton kernels of disentangled attention: one forward, three backward, none with atomics.

Every backward kernel owns what it writes, so results do not depend on the order of programs: queries by query tile,
keys and values by key tile, table gradients by window of distances. Each recomputes the tile of scores.

Arguments: capitals are tensors. ``sq``, ``sk``, ``sv`` are the strides of (sample, head, row) of queries, keys and
values, ``s_kr``, ``s_qr`` those of (head, row) of the tables; their last dimension is dense. OUT, DO, DQ, DK and DV are
dense ``[B, rows, N, H]``, LSE and DELTA ``[B, N, Q]``. ``ROWS`` ``[2 L - 1]`` holds the table row of every distance. In
the place of what is absent stands a tensor that is never read, behind a flag of compile time.

Query rows are consecutive positions. Where they are not (HAS_SLOTS), tiles go over the positions all the same, and
``SLOTS`` ``[B, L]`` has the row of Q at every position, Q where there is none. Dropout draws by row of Q. EDGE: the
last tile of queries or keys has places past the end.

Programs are numbered along one axis (the others end at 65 535): tiles first, then heads, then samples.

Shapes: B batch · N heads · Q query rows · L keys · H head size · BM, BN, WD, D as in triton_tiles.py.
"""

import triton
import triton.language as tl

from megadeberta.ops.attention.triton_tiles import (
    distance_in_window,
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
def _consecutive(origin, count, S: tl.constexpr):
    """Rows ``origin ..`` of ``count``, as ``load_rows`` takes them."""
    places = tl.arange(0, S)
    return origin, places, origin + places < count


@triton.jit
def _query_rows(SLOTS, origin, b, num_queries, num_keys, HAS_SLOTS: tl.constexpr, S: tl.constexpr):
    """Rows of Q of the positions ``origin ..``."""
    if HAS_SLOTS:
        positions = origin + tl.arange(0, S)
        slots = tl.load(SLOTS + b * num_keys + positions, mask=positions < num_keys, other=num_queries)
        return tl.cast(0, tl.int32), slots, slots < num_queries
    return _consecutive(origin, num_queries, S)


@triton.jit
def _range_of(BEGIN, END, rows, b, num_queries, num_keys, HAS_MASK: tl.constexpr):
    """First visible key of every row of a tile, and one past the last."""
    origin, places, valid = rows
    if HAS_MASK:
        begin = tl.load(BEGIN + b * num_queries + origin + places, mask=valid, other=0)
        end = tl.minimum(tl.load(END + b * num_queries + origin + places, mask=valid, other=0), num_keys)
    else:
        begin = places * 0
        end = tl.where(valid, num_keys, 0)
    return begin, end


@triton.jit
def _first_visible(begin, end, num_keys):
    """The first column that any row of a tile sees."""
    return tl.min(tl.where(end > begin, begin, num_keys), 0)


@triton.jit
def _any_sees(begin, end, j, num_keys, HIDDEN: tl.constexpr, BN: tl.constexpr):
    """Whether any row of a tile sees any key of the tile from ``j`` on; HIDDEN: it may be that none does."""
    if HIDDEN:
        return (tl.max(end, 0) > j) & (_first_visible(begin, end, num_keys) < j + BN)
    return num_keys > j


@triton.jit
def _key_side(K, V, sk, sv, b, h, columns, WHOLE: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr):
    """Keys and values ``[BN, D]`` of one head."""
    key = load_rows(K + b * sk[0] + h * sk[1], sk[2], columns, WHOLE, HEAD, D)
    value = load_rows(V + b * sv[0] + h * sv[1], sv[2], columns, WHOLE, HEAD, D)
    return key, value


@triton.jit
def _windows(
    KR, QR, s_kr, s_qr, h, ROWS, num_keys, first,
    C2P: tl.constexpr, P2C: tl.constexpr, WD: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Rows ``[WD, D]`` of both tables for the distances from ``first`` on; something unused for an absent one."""
    key_window, query_window = first, first
    if C2P:
        key_window = load_window(KR + h * s_kr[0], s_kr[1], ROWS, num_keys, first, WD, HEAD, D)
    if P2C:
        query_window = load_window(QR + h * s_qr[0], s_qr[1], ROWS, num_keys, first, WD, HEAD, D)
    return key_window, query_window


@triton.jit
def _dense_rows(X, b, h, num_heads, num_rows, HEAD: tl.constexpr):
    """Start and row stride of one head in a dense ``[B, rows, N, H]``."""
    return X + (b * num_rows * num_heads + h) * HEAD, num_heads * HEAD


@triton.jit
def _query_side(
    Q, DO, LSE, DELTA, sq, b, h, num_heads, num_queries, rows, WHOLE: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr
):
    """Queries and gradient of the context ``[BM, D]`` of one head, log-sum-exp and delta ``[BM]``."""
    origin, places, valid = rows
    query = load_rows(Q + b * sq[0] + h * sq[1], sq[2], rows, WHOLE, HEAD, D)
    grad_base, grad_stride = _dense_rows(DO, b, h, num_heads, num_queries, HEAD)
    grad_out = load_rows(grad_base, grad_stride, rows, WHOLE, HEAD, D)
    flat = (b * num_heads + h) * num_queries + origin
    # +1e30 makes every weight of a row past the end zero, so that it adds nothing to any sum.
    lse = tl.load(LSE + flat + places, mask=valid, other=1e30)
    delta = tl.load(DELTA + flat + places, mask=valid, other=0.0)
    return query, grad_out, lse, delta


@triton.jit
def _store_rows(X, values, b, h, num_heads, num_rows, rows, HEAD: tl.constexpr, D: tl.constexpr):
    """Write ``[S, D]`` at ``rows`` of one head in a dense ``[B, rows, N, H]``."""
    origin, places, valid = rows
    base, stride = _dense_rows(X, b, h, num_heads, num_rows, HEAD)
    dims = tl.arange(0, D)
    pointers = base + tl.cast(origin, tl.int64) * stride + (places[:, None] * stride + dims[None, :])
    tl.store(pointers, values.to(X.dtype.element_ty), mask=valid[:, None] & (dims[None, :] < HEAD))


@triton.jit(do_not_specialize=UNCOMPILED)
def forward_kernel(
    Q, K, V, KR, QR, OUT, LSE, ROWS, BEGIN, END, REAL, SLOTS, SEED, SAMPLES, sq, sk, sv, s_kr, s_qr,
    num_heads, num_queries, num_keys, scale, first_head, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, HAS_MASK: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SLOTS: tl.constexpr,
    EDGE: tl.constexpr, DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, HEAD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Context and log-sum-exp of one query tile: online softmax over the key tiles that any of its rows sees."""
    WHOLE: tl.constexpr = not EDGE and not HAS_SLOTS
    num_rows = num_keys if HAS_SLOTS else num_queries
    tile, b, h = _program(tl.cdiv(num_rows, BM), num_heads)
    rows = _query_rows(SLOTS, tile * BM, b, num_queries, num_keys, HAS_SLOTS, BM)
    begin, end = _range_of(BEGIN, END, rows, b, num_queries, num_keys, HAS_MASK)
    if DROPOUT:
        seed, number, head = tl.load(SEED), tl.load(SAMPLES + b).to(tl.int32), (first_head + h).to(tl.int32)
    query = load_rows(Q + b * sq[0] + h * sq[1], sq[2], rows, WHOLE, HEAD, D)
    # Finite, not -inf: a row that has seen nothing yet would otherwise subtract infinities. Above what hidden keys get,
    # so that their weights vanish.
    best = tl.full([BM], -1e29, tl.float32)
    total = tl.zeros([BM], tl.float32)
    context = tl.zeros([BM, D], tl.float32)
    first_tile = _first_visible(begin, end, num_keys) // BN
    for j in tl.range(first_tile * BN, tl.max(end, 0), BN, disable_licm=True):
        key, value = _key_side(K, V, sk, sv, b, h, _consecutive(j, num_keys, BN), not EDGE, HEAD, D)
        key_window, query_window = _windows(
            KR, QR, s_kr, s_qr, h, ROWS, num_keys, tile * BM - j - BN + 1, C2P, P2C, BM + BN, HEAD, D)  # fmt: skip
        scores = (scale * LOG2_E) * tile_scores(query, key, key_window, query_window, C2P, P2C)
        if HAS_MASK or not WHOLE:
            visible = tile_visible(begin, end, j + tl.arange(0, BN), REAL + b * num_keys, num_keys, HAS_REAL)
            scores = tl.where(visible, scores, -1e30)
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - new_best[:, None])
        shrink = tl.exp2(best - new_best)  # what was added so far counted from the old maximum
        total = total * shrink + tl.sum(weights, 1)
        best = new_best
        if DROPOUT:
            # After the sum: dropout is of the normalised weights. Its scale goes in with the division, at the end.
            kept = tile_kept(seed, number, head, rows[0] + rows[1], j, threshold, ROUNDS, BN)
            weights = tl.where(kept, weights, 0.0)
        context = context * shrink[:, None] + product(weights.to(value.dtype), value)
    seeing = total > 0
    context = context * (tl.where(seeing, keep_scale / tl.where(seeing, total, 1.0), 0.0))[:, None]
    _store_rows(OUT, context, b, h, num_heads, num_queries, rows, HEAD, D)
    # A row that sees nothing gets +1e30, so that every later exp(score - lse) of it is zero.
    lse = tl.where(seeing, best * LN_2 + tl.log(tl.where(seeing, total, 1.0)), 1e30)
    tl.store(LSE + (b * num_heads + h) * num_queries + rows[0] + rows[1], lse, mask=rows[2])


@triton.jit
def _tile_gradient(
    query, key, value, grad_out, key_window, query_window, lse, delta, begin, end, numbers, j, REAL,
    seed, number, head, num_keys, scale, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, MASKED: tl.constexpr, HAS_REAL: tl.constexpr, DROPOUT: tl.constexpr,
    ROUNDS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Weights that dropout keeps, before its scale, and the gradient of the scaled scores, ``[BM, BN]`` in fp32.

    dS = P (dP - delta), delta the sum of P dP over a row. That sum is the row's product of context and its gradient,
    dropout included, so no pass over the keys is needed for it (FlashAttention, algorithm 4).
    """
    scores = tile_scores(query, key, key_window, query_window, C2P, P2C)
    # The softmax at once: its sum is known.
    weights = tl.exp2(scores * (scale * LOG2_E) - (lse * LOG2_E)[:, None])
    if MASKED:
        weights = tl.where(tile_visible(begin, end, j + tl.arange(0, BN), REAL, num_keys, HAS_REAL), weights, 0.0)
    grad_weights = product(grad_out, tl.trans(value))
    kept_weights = weights
    if DROPOUT:
        kept = tile_kept(seed, number, head, numbers, j, threshold, ROUNDS, BN)
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
    WHOLE: tl.constexpr = not EDGE and not HAS_SLOTS
    num_rows = num_keys if HAS_SLOTS else num_queries
    tile, b, h = _program(tl.cdiv(num_rows, BM), num_heads)
    rows = _query_rows(SLOTS, tile * BM, b, num_queries, num_keys, HAS_SLOTS, BM)
    begin, end = _range_of(BEGIN, END, rows, b, num_queries, num_keys, HAS_MASK)
    seed, number, head = tl.cast(0, tl.int64), 0, 0
    if DROPOUT:
        seed, number, head = tl.load(SEED), tl.load(SAMPLES + b).to(tl.int32), (first_head + h).to(tl.int32)
    query, grad_out, lse, delta = _query_side(
        Q, DO, LSE, DELTA, sq, b, h, num_heads, num_queries, rows, WHOLE, HEAD, D)  # fmt: skip
    gradient = tl.zeros([BM, D], tl.float32)
    first_tile = _first_visible(begin, end, num_keys) // BN
    for j in tl.range(first_tile * BN, tl.max(end, 0), BN, disable_licm=True):
        key, value = _key_side(K, V, sk, sv, b, h, _consecutive(j, num_keys, BN), not EDGE, HEAD, D)
        key_window, query_window = _windows(
            KR, QR, s_kr, s_qr, h, ROWS, num_keys, tile * BM - j - BN + 1, C2P, P2C, BM + BN, HEAD, D)  # fmt: skip
        _, grad = _tile_gradient(
            query, key, value, grad_out, key_window, query_window, lse, delta, begin, end, rows[0] + rows[1], j,
            REAL + b * num_keys, seed, number, head, num_keys, scale, threshold, keep_scale,
            C2P, P2C, HAS_MASK or not WHOLE, HAS_REAL, DROPOUT, ROUNDS, BN)  # fmt: skip
        gradient += product(grad.to(key.dtype), key)
        if C2P:
            # Laid out by distance, the gradient times the table's rows of these distances: no scatter.
            gradient += product(write_skewed(grad, True).to(key.dtype), key_window)
    _store_rows(DQ, gradient * scale, b, h, num_heads, num_queries, rows, HEAD, D)


@triton.jit(do_not_specialize=UNCOMPILED)
def key_kernel(
    Q, K, V, KR, QR, DO, DK, DV, LSE, DELTA, ROWS, BEGIN, END, REAL, SLOTS, SEED, SAMPLES, sq, sk, sv, s_kr, s_qr,
    num_heads, num_queries, num_keys, scale, first_head, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, HAS_MASK: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SLOTS: tl.constexpr,
    EDGE: tl.constexpr, DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, HEAD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys and values of one key tile: a loop over the query tiles that see any of its keys."""
    WHOLE: tl.constexpr = not EDGE and not HAS_SLOTS
    num_rows = num_keys if HAS_SLOTS else num_queries
    tile, b, h = _program(tl.cdiv(num_keys, BN), num_heads)
    j = tile * BN
    columns = _consecutive(j, num_keys, BN)
    seed, number, head = tl.cast(0, tl.int64), 0, 0
    if DROPOUT:
        seed, number, head = tl.load(SEED), tl.load(SAMPLES + b).to(tl.int32), (first_head + h).to(tl.int32)
    key, value = _key_side(K, V, sk, sv, b, h, columns, not EDGE, HEAD, D)
    grad_key = tl.zeros([BN, D], tl.float32)
    grad_value = tl.zeros([BN, D], tl.float32)
    for i in tl.range(0, num_rows, BM, disable_licm=True):
        rows = _query_rows(SLOTS, i, b, num_queries, num_keys, HAS_SLOTS, BM)
        begin, end = _range_of(BEGIN, END, rows, b, num_queries, num_keys, HAS_MASK)
        # Which queries see a key is in no tensor, so every query tile is asked; most of the work is behind the answer.
        if _any_sees(begin, end, j, num_keys, HAS_MASK or HAS_SLOTS, BN):
            query, grad_out, lse, delta = _query_side(
                Q, DO, LSE, DELTA, sq, b, h, num_heads, num_queries, rows, WHOLE, HEAD, D)  # fmt: skip
            key_window, query_window = _windows(
                KR, QR, s_kr, s_qr, h, ROWS, num_keys, i - j - BN + 1, C2P, P2C, BM + BN, HEAD, D)  # fmt: skip
            kept_weights, grad = _tile_gradient(
                query, key, value, grad_out, key_window, query_window, lse, delta, begin, end, rows[0] + rows[1], j,
                REAL + b * num_keys, seed, number, head, num_keys, scale, threshold, keep_scale,
                C2P, P2C, HAS_MASK or not WHOLE, HAS_REAL, DROPOUT, ROUNDS, BN)  # fmt: skip
            grad_value += product(tl.trans(kept_weights.to(grad_out.dtype)), grad_out)
            grad_key += product(tl.trans(grad.to(query.dtype)), query)
            if P2C:
                grad_key += product(write_skewed(tl.trans(grad), False).to(query.dtype), query_window)
    _store_rows(DK, grad_key * scale, b, h, num_heads, num_keys, columns, HEAD, D)
    _store_rows(DV, grad_value * keep_scale, b, h, num_heads, num_keys, columns, HEAD, D)


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
    WHOLE: tl.constexpr = not EDGE and not HAS_SLOTS
    num_rows = num_keys if HAS_SLOTS else num_queries
    per_window = tl.num_programs(0) // num_windows
    window, part = tl.program_id(0) // per_window, tl.program_id(0) % per_window
    share, h = part // num_heads, (part % num_heads).to(tl.int64)
    diagonal = tl.where(window % 2 == 1, (window + 1) // 2, -(window // 2))  # query tile minus key tile
    key_window, query_window = _windows(
        KR, QR, s_kr, s_qr, h, ROWS, num_keys, diagonal * BM - BN + 1, C2P, P2C, WD, HEAD, D)  # fmt: skip
    seed, head = tl.cast(0, tl.int64), 0
    if DROPOUT:
        seed, head = tl.load(SEED), (first_head + h).to(tl.int32)
    grad_key_table = tl.zeros([WD, D], tl.float32)
    grad_query_table = tl.zeros([WD, D], tl.float32)
    low = tl.maximum(diagonal, 0) * BM
    high = tl.minimum(num_rows, num_keys + diagonal * BM)
    for sample in tl.range(share * samples_each, tl.minimum((share + 1) * samples_each, batch), disable_licm=True):
        b = tl.cast(sample, tl.int64)
        number = 0
        if DROPOUT:
            number = tl.load(SAMPLES + b).to(tl.int32)
        for i in tl.range(low, high, BM, disable_licm=True):
            j = i - diagonal * BM
            rows = _query_rows(SLOTS, i, b, num_queries, num_keys, HAS_SLOTS, BM)
            columns = _consecutive(j, num_keys, BN)
            begin, end = _range_of(BEGIN, END, rows, b, num_queries, num_keys, HAS_MASK)
            if _any_sees(begin, end, j, num_keys, HAS_MASK or HAS_SLOTS, BN):
                query, grad_out, lse, delta = _query_side(
                    Q, DO, LSE, DELTA, sq, b, h, num_heads, num_queries, rows, WHOLE, HEAD, D)  # fmt: skip
                key, value = _key_side(K, V, sk, sv, b, h, columns, not EDGE, HEAD, D)
                _, grad = _tile_gradient(
                    query, key, value, grad_out, key_window, query_window, lse, delta, begin, end, rows[0] + rows[1], j,
                    REAL + b * num_keys, seed, number, head, num_keys, scale, threshold, keep_scale,
                    C2P, P2C, HAS_MASK or not WHOLE, HAS_REAL, DROPOUT, ROUNDS, BN)  # fmt: skip
                if C2P:
                    by_row = write_skewed(grad, True)
                    grad_key_table += product(tl.trans(by_row).to(query.dtype), query)
                if P2C:
                    by_column = write_skewed(tl.trans(grad), False)
                    grad_query_table += product(tl.trans(by_column).to(key.dtype), key)
    dims = tl.arange(0, D)
    entry = tl.program_id(0).to(tl.int64) * WD + distance_in_window(WD)
    out = entry[:, None] * HEAD + dims[None, :]
    if C2P:
        tl.store(DKR + out, grad_key_table * scale, mask=dims[None, :] < HEAD)
    if P2C:
        tl.store(DQR + out, grad_query_table * scale, mask=dims[None, :] < HEAD)
