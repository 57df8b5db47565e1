"""Triton kernels of disentangled attention: one forward, three backward, none with atomics.

Every backward kernel owns what it writes, so results do not depend on the order of programs: queries by query tile,
keys and values by key tile, table gradients by window of distances. Each recomputes the tile of scores.

Arguments: capitals are tensors. ``sq``, ``sk``, ... are the strides of (sample, head, row); the last dimension is
dense. ``ROWS`` holds the table row of every distance, that of distance 0 at ``center``. In the place of what is absent
stands a tensor that is never read, behind a flag of compile time. Programs: axis 0 is the tile, axis 1 sample and head.

Shapes: B batch · N heads · Q query rows · L keys · BM, BN, WD, D as in triton_tiles.py.
"""

import triton
import triton.language as tl

from megadeberta.ops.attention.triton_tiles import (
    at_consecutive_positions,
    by_distance_of_columns,
    by_distance_of_rows,
    load_rows,
    load_window,
    product,
    tile_kept,
    tile_scores,
    tile_visible,
)


@triton.jit
def _row_facts(BEGIN, END, POS, first_row, rows, valid, num_keys, HAS_MASK: tl.constexpr, HAS_POSITIONS: tl.constexpr):
    """Visible range and position of every row of a tile, and the range of positions over the tile."""
    if HAS_MASK:
        begin = tl.load(BEGIN + first_row + rows, mask=valid, other=0)
        end = tl.minimum(tl.load(END + first_row + rows, mask=valid, other=0), num_keys)
    else:
        begin = tl.zeros_like(rows)
        end = tl.where(valid, num_keys, 0)
    if HAS_POSITIONS:
        positions = tl.load(POS + first_row + rows, mask=valid, other=0)
        # Rows past the end must not widen the range: each window of distances in it costs two products.
        lowest = tl.min(tl.where(valid, positions, num_keys), 0)
        highest = tl.max(tl.where(valid, positions, -1), 0)
    else:
        positions = rows
        lowest = tl.min(rows, 0)
        highest = tl.max(rows, 0)
    return begin, end, positions, lowest, highest


@triton.jit
def _first_visible(begin, end, num_keys):
    """The first column that any row of a tile sees."""
    return tl.min(tl.where(end > begin, begin, num_keys), 0)


@triton.jit
def _key_side(K, V, sk, sv, b, h, columns, num_keys, dims, head_size):
    """Keys and values ``[BN, D]`` of one head."""
    present = columns < num_keys
    key = load_rows(K + b * sk[0] + h * sk[1], sk[2], columns, present, dims, head_size)
    value = load_rows(V + b * sv[0] + h * sv[1], sv[2], columns, present, dims, head_size)
    return key, value


@triton.jit
def _query_side(Q, DO, LSE, DELTA, sq, sdo, b, h, num_heads, num_queries, rows, valid, dims, head_size):
    """Queries and gradient of the context ``[BM, D]`` of one head, log-sum-exp and delta ``[BM]``."""
    query = load_rows(Q + b * sq[0] + h * sq[1], sq[2], rows, valid, dims, head_size)
    grad_out = load_rows(DO + b * sdo[0] + h * sdo[1], sdo[2], rows, valid, dims, head_size)
    flat = (b * num_heads + h) * num_queries + rows
    # +1e30 makes every weight of a row past the end zero, so that it adds nothing to any sum.
    lse = tl.load(LSE + flat, mask=valid, other=1e30)
    delta = tl.load(DELTA + flat, mask=valid, other=0.0)
    return query, grad_out, lse, delta


@triton.jit
def forward_kernel(
    Q, K, V, KR, QR, OUT, LSE, ROWS, BEGIN, END, REAL, POS, DRAWS,
    sq, sk, sv, so, s_kr, s_qr, num_heads, num_queries, num_keys, center, head_size, scale,
    first_head, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, HAS_MASK: tl.constexpr, HAS_REAL: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Context and log-sum-exp of one query tile: online softmax over the key tiles that any of its rows sees."""
    WD: tl.constexpr = BM + BN
    sample, head = tl.program_id(1) // num_heads, tl.program_id(1) % num_heads
    rows, dims = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    valid = rows < num_queries
    # Offsets in 64 bits: sample times stride may pass 2^31 elements.
    b, h = sample.to(tl.int64), head.to(tl.int64)
    begin, end, positions, lowest, highest = _row_facts(
        BEGIN, END, POS, b * num_queries, rows, valid, num_keys, HAS_MASK, HAS_POSITIONS)  # fmt: skip
    tables, strides = (KR + h * s_kr[0], QR + h * s_qr[0]), (s_kr[1], s_qr[1])
    query = load_rows(Q + b * sq[0] + h * sq[1], sq[2], rows, valid, dims, head_size)
    # Finite, not -inf: a row that has seen nothing yet would otherwise subtract infinities.
    best = tl.full([BM], -1e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    context = tl.zeros([BM, D], tl.float32)
    first_tile = _first_visible(begin, end, num_keys) // BN
    for j in range(first_tile * BN, tl.max(end, 0), BN):
        columns = j + tl.arange(0, BN)
        key, value = _key_side(K, V, sk, sv, b, h, columns, num_keys, dims, head_size)
        # The distances that the tile meets: from its lowest row at its last column to its highest row at its first.
        scores = scale * tile_scores(
            query, key, positions, columns, lowest - j - BN + 1, highest - j + 1, tables, strides, ROWS, center, dims,
            head_size, C2P, P2C, WD)  # fmt: skip
        visible = tile_visible(begin, end, columns, REAL + b * num_keys, num_keys, HAS_REAL)
        scores = tl.where(visible, scores, -1e30)
        new_best = tl.maximum(best, tl.max(scores, 1))
        # Once more by ``visible``: in a row that sees nothing, exp(-1e30 + 1e30) is 1.
        weights = tl.where(visible, tl.exp(scores - new_best[:, None]), 0.0)
        shrink = tl.exp(best - new_best)  # what was added so far counted from the old maximum
        total = total * shrink + tl.sum(weights, 1)
        best = new_best
        if DROPOUT:
            # After the sum: dropout is of the normalised weights. Its scale goes in with the division, at the end.
            kept = tile_kept(
                DRAWS, sample, first_head + head, rows, j, threshold, ROUNDS, BN)  # fmt: skip
            weights = tl.where(kept, weights, 0.0)
        context = context * shrink[:, None] + product(weights.to(value.dtype), value)
    seeing = total > 0
    context = context * (tl.where(seeing, keep_scale / tl.where(seeing, total, 1.0), 0.0))[:, None]
    out = OUT + b * so[0] + h * so[1] + rows[:, None] * so[2] + dims[None, :]
    tl.store(out, context.to(OUT.dtype.element_ty), mask=valid[:, None] & (dims[None, :] < head_size))
    # A row that sees nothing gets +1e30, so that every later exp(score - lse) of it is zero.
    lse = tl.where(seeing, best + tl.log(tl.where(seeing, total, 1.0)), 1e30)
    tl.store(LSE + (b * num_heads + head) * num_queries + rows, lse, mask=valid)


@triton.jit
def _tile_gradient(
    query, key, value, grad_out, lse, delta, begin, end, positions, lowest, highest, rows, j,
    tables, strides, ROWS, REAL, DRAWS, sample, head, num_keys, center, head_size, scale, threshold, keep_scale, dims,
    C2P: tl.constexpr, P2C: tl.constexpr, HAS_REAL: tl.constexpr, DROPOUT: tl.constexpr, ROUNDS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Dropped weights and the gradient of the unscaled scores of one tile, both ``[BM, BN]`` in fp32.

    dS = P (dP - delta), delta the sum of P dP over a row. That sum is the row's product of context and its gradient,
    dropout included, so no pass over the keys is needed for it (FlashAttention, algorithm 4).
    """
    columns = j + tl.arange(0, BN)
    scores = scale * tile_scores(
        query, key, positions, columns, lowest - j - BN + 1, highest - j + 1, tables, strides, ROWS, center, dims,
        head_size, C2P, P2C, BM + BN)  # fmt: skip
    visible = tile_visible(begin, end, columns, REAL, num_keys, HAS_REAL)
    weights = tl.where(visible, tl.exp(scores - lse[:, None]), 0.0)  # the softmax at once: its sum is known
    grad_weights = product(grad_out, tl.trans(value))
    dropped = weights
    if DROPOUT:
        kept = tile_kept(DRAWS, sample, head, rows, j, threshold, ROUNDS, BN)
        factor = tl.where(kept, keep_scale, 0.0)
        dropped = weights * factor
        grad_weights = grad_weights * factor
    return dropped, weights * (grad_weights - delta[:, None]) * scale


@triton.jit
def query_kernel(
    Q, K, V, KR, QR, DO, DQ, LSE, DELTA, ROWS, BEGIN, END, REAL, POS, DRAWS,
    sq, sk, sv, sdo, sdq, s_kr, s_qr, num_heads, num_queries, num_keys, center, head_size, scale,
    first_head, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, HAS_MASK: tl.constexpr, HAS_REAL: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradient of one query tile: the forward kernel's loop over key tiles."""
    WD: tl.constexpr = BM + BN
    sample, head = tl.program_id(1) // num_heads, tl.program_id(1) % num_heads
    rows, dims = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    valid = rows < num_queries
    b, h = sample.to(tl.int64), head.to(tl.int64)
    begin, end, positions, lowest, highest = _row_facts(
        BEGIN, END, POS, b * num_queries, rows, valid, num_keys, HAS_MASK, HAS_POSITIONS)  # fmt: skip
    tables, strides = (KR + h * s_kr[0], QR + h * s_qr[0]), (s_kr[1], s_qr[1])
    query, grad_out, lse, delta = _query_side(
        Q, DO, LSE, DELTA, sq, sdo, b, h, num_heads, num_queries, rows, valid, dims, head_size)  # fmt: skip
    gradient = tl.zeros([BM, D], tl.float32)
    first_tile = _first_visible(begin, end, num_keys) // BN
    for j in range(first_tile * BN, tl.max(end, 0), BN):
        columns = j + tl.arange(0, BN)
        key, value = _key_side(K, V, sk, sv, b, h, columns, num_keys, dims, head_size)
        _, grad = _tile_gradient(
            query, key, value, grad_out, lse, delta, begin, end, positions, lowest, highest, rows, j,
            tables, strides, ROWS, REAL + b * num_keys, DRAWS, sample, first_head + head,
            num_keys, center, head_size, scale, threshold, keep_scale, dims,
            C2P, P2C, HAS_REAL, DROPOUT, ROUNDS, BM, BN)  # fmt: skip
        gradient += product(grad.to(key.dtype), key)
        if C2P:
            # Laid out by distance, the gradient times the table's rows of these distances: no scatter. One window
            # covers the tile unless its rows have positions of their own.
            for first in range(lowest - j - BN + 1, highest - j + 1, WD):
                spread = by_distance_of_rows(grad, positions, j, first, WD)
                table = load_window(tables[0], strides[0], ROWS, center, first, dims, head_size, WD)
                gradient += product(spread.to(table.dtype), table)
    out = DQ + b * sdq[0] + h * sdq[1] + rows[:, None] * sdq[2] + dims[None, :]
    tl.store(out, gradient.to(DQ.dtype.element_ty), mask=valid[:, None] & (dims[None, :] < head_size))


@triton.jit
def key_kernel(
    Q, K, V, KR, QR, DO, DK, DV, LSE, DELTA, ROWS, BEGIN, END, REAL, POS, DRAWS,
    sq, sk, sv, sdo, sdk, sdv, s_kr, s_qr, num_heads, num_queries, num_keys, center, head_size, scale,
    first_head, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, HAS_MASK: tl.constexpr, HAS_REAL: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys and values of one key tile: a loop over the query tiles that see any of its keys."""
    WD: tl.constexpr = BM + BN
    sample, head = tl.program_id(1) // num_heads, tl.program_id(1) % num_heads
    j, dims = tl.program_id(0) * BN, tl.arange(0, D)
    columns = j + tl.arange(0, BN)
    present = columns < num_keys
    b, h = sample.to(tl.int64), head.to(tl.int64)
    tables, strides = (KR + h * s_kr[0], QR + h * s_qr[0]), (s_kr[1], s_qr[1])
    key, value = _key_side(K, V, sk, sv, b, h, columns, num_keys, dims, head_size)
    grad_key = tl.zeros([BN, D], tl.float32)
    grad_value = tl.zeros([BN, D], tl.float32)
    for i in range(0, num_queries, BM):
        rows = i + tl.arange(0, BM)
        valid = rows < num_queries
        begin, end, positions, lowest, highest = _row_facts(
            BEGIN, END, POS, b * num_queries, rows, valid, num_keys, HAS_MASK, HAS_POSITIONS)  # fmt: skip
        # Which queries see a key is in no tensor, so every query tile is asked; most of the work is behind the answer.
        if (tl.max(end, 0) > j) & (_first_visible(begin, end, num_keys) < j + BN):
            query, grad_out, lse, delta = _query_side(
                Q, DO, LSE, DELTA, sq, sdo, b, h, num_heads, num_queries, rows, valid, dims, head_size)  # fmt: skip
            dropped, grad = _tile_gradient(
                query, key, value, grad_out, lse, delta, begin, end, positions, lowest, highest, rows, j,
                tables, strides, ROWS, REAL + b * num_keys, DRAWS, sample, first_head + head,
                num_keys, center, head_size, scale, threshold, keep_scale, dims,
                C2P, P2C, HAS_REAL, DROPOUT, ROUNDS, BM, BN)  # fmt: skip
            grad_value += product(tl.trans(dropped).to(grad_out.dtype), grad_out)
            grad_key += product(tl.trans(grad).to(query.dtype), query)
            if P2C:
                # A key's diagonal goes down the rows, which have to be at consecutive positions: one step where they
                # are, else a step for every BM positions between the lowest and the highest.
                for p in range(lowest, highest + 1, BM):
                    dense = grad
                    if HAS_POSITIONS:
                        dense = at_consecutive_positions(grad, positions, valid, p)
                    spread = by_distance_of_columns(dense, p, columns, p - j - BN + 1, WD)
                    table = load_window(tables[1], strides[1], ROWS, center, p - j - BN + 1, dims, head_size, WD)
                    grad_key += product(tl.trans(spread).to(table.dtype), table)
    mask = present[:, None] & (dims[None, :] < head_size)
    out_key = DK + b * sdk[0] + h * sdk[1] + columns[:, None] * sdk[2] + dims[None, :]
    out_value = DV + b * sdv[0] + h * sdv[1] + columns[:, None] * sdv[2] + dims[None, :]
    tl.store(out_key, grad_key.to(DK.dtype.element_ty), mask=mask)
    tl.store(out_value, grad_value.to(DV.dtype.element_ty), mask=mask)


@triton.jit
def table_kernel(
    Q, K, V, KR, QR, DO, DKR, DQR, LSE, DELTA, ROWS, BEGIN, END, REAL, POS, DRAWS,
    sq, sk, sv, sdo, s_kr, s_qr, batch, samples_each, num_heads, num_queries, num_keys, first_window, num_windows,
    center, head_size, scale, first_head, threshold, keep_scale,
    C2P: tl.constexpr, P2C: tl.constexpr, HAS_MASK: tl.constexpr, HAS_REAL: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients by distance of one window of one head, summed over some samples: ``[shares, N, windows, WD, D]``.

    For consecutive rows the windows are those of the tile diagonals (BM = BN), so each tile of scores is computed once.
    For rows with positions of their own the windows lie side by side, and a tile counts in each that it meets.

    The samples of a share are added up on the chip: a table gradient is written once for each of them, not each sample.
    """
    WD: tl.constexpr = BM + BN
    window, head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    dims, h = tl.arange(0, D), tl.program_id(1).to(tl.int64)
    first = (window + first_window) * (WD if HAS_POSITIONS else BM) - (0 if HAS_POSITIONS else BN - 1)
    tables, strides = (KR + h * s_kr[0], QR + h * s_qr[0]), (s_kr[1], s_qr[1])
    grad_key_table = tl.zeros([WD, D], tl.float32)
    grad_query_table = tl.zeros([WD, D], tl.float32)
    for sample in range(share * samples_each, tl.minimum((share + 1) * samples_each, batch)):
        b = tl.cast(sample, tl.int64)
        for i in range(0, num_queries, BM):
            rows = i + tl.arange(0, BM)
            valid = rows < num_queries
            begin, end, positions, lowest, highest = _row_facts(
                BEGIN, END, POS, b * num_queries, rows, valid, num_keys, HAS_MASK, HAS_POSITIONS)  # fmt: skip
            query, grad_out, lse, delta = _query_side(
                Q, DO, LSE, DELTA, sq, sdo, b, h, num_heads, num_queries, rows, valid, dims, head_size)  # fmt: skip
            if HAS_POSITIONS:
                # The columns that some row of the tile meets at a distance of the window.
                low_tile = tl.maximum(lowest - first - WD + 1, 0) // BN
                high = tl.minimum(highest - first + 1, num_keys)
            else:
                # The one key tile on the window's diagonal; none, if that would be before the first.
                low_tile = tl.maximum(i // BM - (window + first_window), 0)
                high = tl.minimum((i // BM - (window + first_window)) * BN + 1, num_keys)
            low = tl.maximum(low_tile * BN, _first_visible(begin, end, num_keys) // BN * BN)
            for j in range(low, tl.minimum(high, tl.max(end, 0)), BN):
                columns = j + tl.arange(0, BN)
                key, value = _key_side(K, V, sk, sv, b, h, columns, num_keys, dims, head_size)
                _, grad = _tile_gradient(
                    query, key, value, grad_out, lse, delta, begin, end, positions, lowest, highest, rows, j,
                    tables, strides, ROWS, REAL + b * num_keys, DRAWS, sample, first_head + head,
                    num_keys, center, head_size, scale, threshold, keep_scale, dims,
                    C2P, P2C, HAS_REAL, DROPOUT, ROUNDS, BM, BN)  # fmt: skip
                if C2P:
                    by_row = by_distance_of_rows(grad, positions, j, first, WD)
                    grad_key_table += product(tl.trans(by_row).to(query.dtype), query)
                if P2C:
                    for p in range(lowest, highest + 1, BM):
                        dense = grad
                        if HAS_POSITIONS:
                            dense = at_consecutive_positions(grad, positions, valid, p)
                        by_column = by_distance_of_columns(dense, p, columns, first, WD)
                        grad_query_table += product(by_column.to(key.dtype), key)
    entry = ((share * num_heads + head) * num_windows + window) * WD + tl.arange(0, WD)
    out = entry.to(tl.int64)[:, None] * head_size + dims[None, :]
    if C2P:
        tl.store(DKR + out, grad_key_table, mask=dims[None, :] < head_size)
    if P2C:
        tl.store(DQR + out, grad_query_table, mask=dims[None, :] < head_size)
