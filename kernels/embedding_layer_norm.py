"""Sum of the embeddings, layer norm and dropout in one, in Triton."""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block_of, on_device, partition, rounded, row_mean, row_tile, row_tile_of, steps
from .philox import drop, threshold_of

# Numbers that change from call to call must not make Triton recompile.
_VARYING = ("rows", "size", "site", "leading", "padding_idx", "position_padding_idx")


@triton.jit
def _embedded(
    ids, position_ids, word, position, token_type, words, positions, t, columns, inside,
    HIDDEN: tl.constexpr, HAS_TYPE: tl.constexpr,
):  # fmt: skip
    """The sum of the rows that the tokens t name, 0 outside; an id out of range names none."""
    real = inside & (columns < HIDDEN)
    id_ = tl.load(ids + t, mask=inside, other=0)
    place = tl.load(position_ids + t, mask=inside, other=0)
    x = tl.load(word + id_ * HIDDEN + columns, mask=real & (id_ >= 0) & (id_ < words), other=0.0)
    known = real & (place >= 0) & (place < positions)
    x += tl.load(position + place * HIDDEN + columns, mask=known, other=0.0)
    if HAS_TYPE:
        x += tl.load(token_type + columns + t * 0, mask=real, other=0.0)
    return x


@triton.jit
def _normal(x, real, HIDDEN: tl.constexpr, EPS: tl.constexpr):
    """(x - mean) / standard deviation, and 1 / standard deviation."""
    centred = tl.where(real, x - row_mean(x, HIDDEN), 0.0)
    rstd = tl.rsqrt(row_mean(centred * centred, HIDDEN) + EPS)
    return centred * rstd, rstd


@triton.jit(do_not_specialize=_VARYING)
def _forward_kernel(
    ids, position_ids, word, position, token_type, gain, bias, seed, y, y_low, words, positions,
    rows, site,
    HIDDEN: tl.constexpr, EPS: tl.constexpr, THRESHOLD: tl.constexpr, HAS_TYPE: tl.constexpr,
    HAS_LOW: tl.constexpr, ROWS: tl.constexpr, COUNTERS: tl.constexpr,
):  # fmt: skip
    lanes, counters, columns = row_tile(COUNTERS)
    t = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    real = (t < rows) & (columns < HIDDEN)
    x = _embedded(
        ids, position_ids, word, position, token_type, words, positions, t, columns, t < rows,
        HIDDEN, HAS_TYPE,
    )  # fmt: skip
    normal, _ = _normal(x, real, HIDDEN, EPS)
    # Vectors are read as tiles of ROWS equal rows, in the layout that they are used in.
    vector = columns + t * 0
    result = normal * tl.load(gain + vector, mask=real, other=0.0)
    result += tl.load(bias + vector, mask=real, other=0.0)
    result = drop(result, seed, site, t, counters, lanes, THRESHOLD)
    at = t.to(tl.int64) * HIDDEN + columns
    tl.store(y + at, result, mask=real)
    if HAS_LOW:
        tl.store(y_low + at, rounded(result, y_low.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=_VARYING)
def _backward_kernel(
    grad, grad_low, ids, position_ids, word, position, token_type, gain, seed, grad_sum, partial,
    words, positions, rows, size, site, leading,
    HIDDEN: tl.constexpr, EPS: tl.constexpr, THRESHOLD: tl.constexpr, HAS_TYPE: tl.constexpr,
    HAS_LOW: tl.constexpr, ROWS: tl.constexpr, COUNTERS: tl.constexpr,
):  # fmt: skip
    # One program: `size` rows in order, and their part of the sums over rows.
    lanes, counters, columns = row_tile(COUNTERS)
    acc_type = grad.dtype.element_ty
    grad_gain = tl.zeros((ROWS, 8, COUNTERS), acc_type)
    grad_bias = tl.zeros((ROWS, 8, COUNTERS), acc_type)
    grad_type = tl.zeros((ROWS, 8, COUNTERS), acc_type)
    begin = tl.program_id(0) * size
    end = tl.minimum(begin + size, rows)
    for start in steps(begin, end, ROWS):
        t = (start + tl.arange(0, ROWS))[:, None, None]
        real = (t < end) & (columns < HIDDEN)
        at = t.to(tl.int64) * HIDDEN + columns
        dy = tl.load(grad + at, mask=real, other=0.0)
        if HAS_LOW:
            dy += tl.load(grad_low + at, mask=real, other=0.0).to(acc_type)
        dy = drop(dy, seed, site, t + leading, counters, lanes, THRESHOLD)
        x = _embedded(
            ids, position_ids, word, position, token_type, words, positions, t, columns, t < end,
            HIDDEN, HAS_TYPE,
        )  # fmt: skip
        normal, rstd = _normal(x, real, HIDDEN, EPS)
        grad_bias += dy
        grad_gain += dy * normal
        dy *= tl.load(gain + columns + t * 0, mask=real, other=0.0)
        dx = rstd * (dy - row_mean(dy, HIDDEN) - normal * row_mean(dy * normal, HIDDEN))
        dx = tl.where(real, dx, 0.0)
        tl.store(grad_sum + at, dx, mask=real)
        grad_type += dx
    to = partial + tl.program_id(0).to(tl.int64) * (3 * HIDDEN) + columns
    tl.store(to, tl.sum(grad_gain, 0)[None], mask=columns < HIDDEN)
    tl.store(to + HIDDEN, tl.sum(grad_bias, 0)[None], mask=columns < HIDDEN)
    tl.store(to + 2 * HIDDEN, tl.sum(grad_type, 0)[None], mask=columns < HIDDEN)


@triton.jit(do_not_specialize=_VARYING)
def _segments_kernel(
    keys, order, grad_sum, grad_word, grad_position, words, positions, rows,
    padding_idx, position_padding_idx,
    HIDDEN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Adds up, in order, the gradients that go to each row of the tables: one program per sorted
    key, which does something only if the key is the first of its kind.

    keys (2 * rows,) are sorted: ids, and `words` + position; order holds the index of each before.
    """
    at = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = columns < HIDDEN
    key = tl.load(keys + at)
    first = (at == 0) | (tl.load(keys + tl.maximum(at - 1, 0)) != key)
    is_word = key < words
    table_row = tl.where(is_word, key, key - words)
    padding = tl.where(is_word, padding_idx, position_padding_idx)
    known = (key >= 0) & (table_row < tl.where(is_word, words, positions))
    if first & known & (table_row != padding):
        total = tl.zeros((BLOCK_T, BLOCK_H), grad_sum.dtype.element_ty)
        more = 1
        while more != 0:
            places = at + tl.arange(0, BLOCK_T)
            same = places < 2 * rows
            same = same & (tl.load(keys + places, mask=same, other=0) == key)
            token = tl.load(order + places, mask=same, other=0) % rows
            value = grad_sum + token[:, None] * HIDDEN + columns[None, :]
            total += tl.load(value, mask=same[:, None] & inside[None, :], other=0.0)
            more = tl.min(same.to(tl.int32), 0)
            at += BLOCK_T
        to = table_row.to(tl.int64) * HIDDEN + columns
        if is_word:
            before = tl.load(grad_word + to, mask=inside, other=0.0)
            tl.store(grad_word + to, before + tl.sum(total, 0), mask=inside)
        else:
            before = tl.load(grad_position + to, mask=inside, other=0.0)
            tl.store(grad_position + to, before + tl.sum(total, 0), mask=inside)


@triton.jit
def _sums_kernel(
    order, starts, to, grad_sum, table,
    HIDDEN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Adds the rows of one segment, in order, to one row of the table, which `to` names for the
    segment's first token: segment s is tokens order[starts[s] : starts[s + 1]]."""
    begin = tl.load(starts + tl.program_id(0))
    end = tl.load(starts + tl.program_id(0) + 1)
    if begin < end:
        columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
        inside = columns < HIDDEN
        total = tl.zeros((BLOCK_T, BLOCK_H), grad_sum.dtype.element_ty)
        for start in steps(begin, end, BLOCK_T):
            places = start + tl.arange(0, BLOCK_T)
            token = tl.load(order + places, mask=places < end, other=0).to(tl.int64)
            value = grad_sum + token[:, None] * HIDDEN + columns[None, :]
            total += tl.load(value, mask=(places < end)[:, None] & inside[None, :], other=0.0)
        row = tl.load(to + tl.load(order + begin)).to(tl.int64)
        at = table + row * HIDDEN + columns
        tl.store(at, tl.load(at, mask=inside, other=0.0) + tl.sum(total, 0), mask=inside)


def embedding_layer_norm(
    input_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    gain: Tensor,
    bias: Tensor,
    eps: float,
    p: float,
    seed: Tensor | None,
    site: int,
    y: Tensor,
    y_low: Tensor | None,
) -> None:
    """Writes y (T, H) = dropout(LN(word[id] + position[position_id] + token_type)) and y_low,
    rounded.

    An id or a position that names no row reads nothing, and counts as a row of zeros.
    """
    rows, hidden = y.shape
    if y.numel() == 0:
        return
    tile = row_tile_of(hidden, y.dtype)
    with on_device(y):
        _forward_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            input_ids,
            position_ids,
            word,
            position,
            y if token_type is None else token_type,
            gain,
            bias,
            y if seed is None else seed,
            y,
            y if y_low is None else y_low,
            word.shape[0],
            position.shape[0],
            rows,
            site,
            HIDDEN=hidden,
            EPS=eps,
            THRESHOLD=threshold_of(p, seed),
            HAS_TYPE=token_type is not None,
            HAS_LOW=y_low is not None,
            **tile,
        )


def embedding_layer_norm_backward(
    grad: Tensor,
    grad_low: Tensor | None,
    input_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    gain: Tensor,
    eps: float,
    p: float,
    seed: Tensor | None,
    site: int,
    leading: int,
    word_rows: Tensor | None,
    padding_row: int,
    position_padding_idx: int,
    grad_word: Tensor,
    grad_position: Tensor,
    grad_token_type: Tensor | None,
    grad_vectors: Tensor,
    segments: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Writes the gradients of gain and bias (2, H); adds the gradients of the tables to what is
    there.

    Tokens' gradients go to rows word_rows (T,) of grad_word, by default their ids; row padding_row
    gets none. Tokens are sorted by row on the device, unless `segments` gives their order: order
    (T,) and starts (S + 1,) int32 of the words, then of the positions. Tokens in neither, such as
    those of padding rows, add nothing.
    """
    rows, hidden = grad.shape
    if grad.numel() == 0:
        grad_vectors.zero_()
        return
    tile = row_tile_of(hidden, grad.dtype)
    parts, size = partition(rows, tile["ROWS"], 256)
    partial = grad.new_empty(parts, 3, hidden)
    grad_sum = torch.empty_like(grad)
    words, positions = word.shape[0], position.shape[0]
    with on_device(grad):
        _backward_kernel[(parts,)](
            grad,
            grad if grad_low is None else grad_low,
            input_ids,
            position_ids,
            word,
            position,
            grad if token_type is None else token_type,
            gain,
            grad if seed is None else seed,
            grad_sum,
            partial,
            words,
            positions,
            rows,
            size,
            site,
            leading,
            HIDDEN=hidden,
            EPS=eps,
            THRESHOLD=threshold_of(p, seed),
            HAS_TYPE=token_type is not None,
            HAS_LOW=grad_low is not None,
            **tile,
        )
        block_h = block_of(hidden, 256)
        to = input_ids if word_rows is None else word_rows
        if segments is not None:
            places = ((to, grad_word), (position_ids, grad_position))
            for (rows_of, table), order, starts in zip(
                places, segments[::2], segments[1::2], strict=True
            ):
                _sums_kernel[(starts.shape[0] - 1, triton.cdiv(hidden, block_h))](
                    order,
                    starts,
                    rows_of,
                    grad_sum,
                    table,
                    HIDDEN=hidden,
                    BLOCK_T=16,
                    BLOCK_H=block_h,
                )
        else:
            # Both tables in one sort; 32 bits are half the passes of 64.
            table_rows = grad_word.shape[0]
            keys = torch.cat([to.int(), position_ids.int() + table_rows])
            keys, order = torch.sort(keys, stable=True)
            _segments_kernel[(2 * rows, triton.cdiv(hidden, block_h))](
                keys,
                order,
                grad_sum,
                grad_word,
                grad_position,
                table_rows,
                positions,
                rows,
                padding_row,
                position_padding_idx,
                HIDDEN=hidden,
                BLOCK_T=16,
                BLOCK_H=block_h,
            )
    torch.sum(partial[:, :2], 0, out=grad_vectors)
    if grad_token_type is not None:
        grad_token_type += partial[:, 2].sum(0)
