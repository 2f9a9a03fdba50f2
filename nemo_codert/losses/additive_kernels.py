"""What the additive loss does on the CPU before, between and after its products, compiled, on torch's threads.

An utterance each: thread i of n takes every n-th, from i on. Imports numpy, numba, `compiled`, `exponential_kernels`,
`lattice_kernels`, `torch_threads`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns: the targets' and last the blank's. Arrays of a side are described as the encoder's; the prediction's have M
# in the place of T.

from typing import Any, NamedTuple

import numba
import numpy as np

from nemo_codert.losses.compiled import callee, compiled
from nemo_codert.losses.exponential_kernels import exp_float32
from nemo_codert.losses.lattice_kernels import PER_RADIX, RADIX, forward_backward
from nemo_codert.losses.torch_threads import on_torch_threads

SMALLEST_FACTOR = 1e-150  # of a probability: two of them have a product with all its digits


class SideArrays(NamedTuple):
    """One side of an additive joint. Where a row's largest logit is far from 0, that is taken off all but `logits`."""

    logits: np.ndarray  # [B, T, V+1]
    exp: np.ndarray  # [B, T, V+1], exponentials, 0 beyond the lengths; the prediction's 0 for the tokens
    bounds: np.ndarray  # [B, T] float64, of what a row multiplies Z with; not set beyond the lengths
    columns: np.ndarray  # [B, T, K] float64, the tokens' logits, -inf beyond the lengths; the prediction's also in all
    # but the first column of a class
    exp_columns: np.ndarray  # [B, T, K] float64, their exponentials
    taken: np.ndarray  # [B, T, K] float64, what the occupancies take off the gradient


# ---- before the products -------------------------------------------------------------------------------------------


@numba.njit(nogil=True, fastmath={"nnan", "nsz"})  # else several at a time cannot be compared; a NaN shows in the sums
def _largest(row: np.ndarray) -> float:
    """The largest number of a row [V+1]; four at a time, which need not wait for each other."""
    quarter = len(row) // 4
    first, second, third, fourth = row[0], row[0], row[0], row[0]
    for v in range(quarter):
        first = max(first, row[v])
        second = max(second, row[v + quarter])
        third = max(third, row[v + 2 * quarter])
        fourth = max(fourth, row[v + 3 * quarter])
    for v in range(4 * quarter, len(row)):
        first = max(first, row[v])
    return max(max(first, second), max(third, fourth))


@callee
def _exponentiate(row: np.ndarray, shift: float, exp: np.ndarray) -> None:
    """Fill exp [V+1] with those of a row less the shift."""
    if exp.itemsize == 4:
        for v in range(len(row)):
            exp[v] = exp_float32(np.float32(row[v]) - np.float32(shift))
    else:
        for v in range(len(row)):
            exp[v] = np.exp(np.float64(row[v] - shift))


@callee
def _take_row(
    row: np.ndarray, classes: np.ndarray, unshifted: float, exp: np.ndarray, columns: np.ndarray
) -> tuple[float, bool]:
    """Fill exp [V+1] and columns [K] from logits [V+1]; the largest logit, and whether it was taken off."""
    largest = _largest(row)
    shifted = not abs(largest) <= unshifted
    shift = largest if shifted else row.dtype.type(0.0)
    for k in range(len(classes)):
        columns[k] = np.float64(row[classes[k]]) - np.float64(shift)
    _exponentiate(row, shift, exp)
    return largest, shifted


@callee
def _fill_sides(
    thread: int,
    threads: int,
    sizes: np.ndarray,
    targets: np.ndarray,
    blank: int,
    unshifted: float,
    encoder: SideArrays,
    prediction: SideArrays,
    first: np.ndarray,
    classes: np.ndarray,
) -> None:
    last = first.shape[1] - 1
    for b in range(thread, len(sizes), threads):
        for k in range(last + 1):
            classes[b, k] = targets[b, k] if k < last else blank
            first[b, k] = k
            for j in range(k):
                if classes[b, j] == classes[b, k]:
                    first[b, k] = j
                    break
        for side, length in ((encoder, sizes[b, 0]), (prediction, sizes[b, 1] + 1)):
            side.exp[b, length:], side.columns[b, length:] = 0.0, -np.inf
        for t in range(sizes[b, 0]):
            rows = encoder.logits[b, t], classes[b], unshifted, encoder.exp[b, t], encoder.columns[b, t]
            largest, shifted = _take_row(*rows)
            encoder.bounds[b, t] = 1.0 if shifted else np.exp(max(np.float64(largest), 0.0))
        for u in range(sizes[b, 1] + 1):
            exp, columns = prediction.exp[b, u], prediction.columns[b, u]
            _, shifted = _take_row(prediction.logits[b, u], classes[b], unshifted, exp, columns)
            for k in range(last + 1):
                exp[classes[b, k]] = 0.0
                if first[b, k] != k:
                    columns[k] = -np.inf
            prediction.bounds[b, u] = 1.0 if shifted else _largest(exp)


@compiled
def side_kernel(threads: int, *arguments: Any) -> None:
    """Exponentials of both sides of an additive joint, and the logits of the tokens.

    Then sizes: [B, 2] int64, frames and tokens. targets: [B, U]. blank: its class. unshifted: how far from 0 the
    largest logit of a row may be that is not taken off it. encoder, prediction: the sides, of which exp, bounds and
    columns are filled. Filled too: first and classes [B, K] int64, the first column of each column's class, and the
    class.
    """
    on_torch_threads(_fill_sides, arguments, threads)


@callee
def _sum(thread: int, threads: int, products: np.ndarray, z: np.ndarray) -> None:
    for b in range(thread, len(z), threads):
        for n in range(len(products)):
            for t in range(z.shape[1]):
                for u in range(z.shape[2]):
                    z[b, t, u] += products[n, b, t, u]


@compiled
def sum_kernel(threads: int, *arguments: Any) -> None:
    """Add products [N, B, T, M] to z [B, T, M] float64."""
    on_torch_threads(_sum, arguments, threads)


# ---- is Z exact? ---------------------------------------------------------------------------------------------------


@callee
def _distrusted(encoder: SideArrays, prediction: SideArrays, b: int, z: np.ndarray, lost: float, share: float) -> bool:
    """Whether terms that were lost or rounded in the exponentials could matter in a cell of z [T, M]: it is below
    `lost`, or a lesser share of what it could be (`smallest_sum` and `trusted_share` of `additive_precision`)."""
    distrusted = False
    for t in range(z.shape[0]):
        frame = share * encoder.bounds[b, t]
        for u in range(z.shape[1]):
            distrusted |= z[t, u] < max(frame * prediction.bounds[b, u], lost)
    return distrusted


@numba.njit(nogil=True, fastmath={"reassoc", "contract"})  # else a sum cannot be taken several terms at a time
def _walk(rows: np.ndarray, weights: np.ndarray, sums: np.ndarray, others: np.ndarray, products: np.ndarray) -> None:
    """Add the sum of weights [T] times rows [T, V+1] to sums [V+1], and the rows' products with others [V+1] to
    products [T]; float64. Four rows at a time: sums and others are read less often."""
    whole = len(rows) // 4 * 4
    for t in range(0, whole, 4):
        row0, row1, row2, row3 = rows[t], rows[t + 1], rows[t + 2], rows[t + 3]
        weight0, weight1, weight2, weight3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        product0 = product1 = product2 = product3 = 0.0
        for v in range(len(sums)):
            value0, value1 = np.float64(row0[v]), np.float64(row1[v])
            value2, value3 = np.float64(row2[v]), np.float64(row3[v])
            sums[v] += (weight0 * value0 + weight1 * value1) + (weight2 * value2 + weight3 * value3)
            other = others[v]
            product0 += value0 * other
            product1 += value1 * other
            product2 += value2 * other
            product3 += value3 * other
        products[t] += product0
        products[t + 1] += product1
        products[t + 2] += product2
        products[t + 3] += product3
    for t in range(whole, len(rows)):
        row, weight, product = rows[t], weights[t], 0.0
        for v in range(len(sums)):
            value = np.float64(row[v])
            sums[v] += weight * value
            product += value * others[v]
        products[t] += product


@callee
def _add_checksums(
    encoder: np.ndarray,
    prediction: np.ndarray,
    per_frame: np.ndarray,
    per_state: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
) -> None:
    """Add what the product of encoder [T, V+1] and prediction [M, V+1] sums up to: rows [T] times per_state [M],
    columns [M] times per_frame [T].

    Half of two walks is thrown away: that costs less than to read the encoder's rows, the longest, twice.
    """
    frames, states, unused = np.zeros(encoder.shape[1]), np.zeros(encoder.shape[1]), np.zeros(encoder.shape[1])
    none = np.zeros(len(prediction))
    _walk(prediction, per_state, states, unused, none)
    _walk(encoder, per_frame, frames, states, rows)
    none[:] = 0.0
    _walk(prediction, none, unused, frames, columns)


@callee
def _agree(found: np.ndarray, exact: np.ndarray, tolerance: float) -> bool:
    """All sums found are exact, up to the relative tolerance; False for NaN."""
    agree = True
    for i in range(len(found)):
        agree &= abs(found[i] - exact[i]) <= tolerance * exact[i]
    return agree


@callee
def _inexact(encoder: SideArrays, prediction: SideArrays, b: int, z: np.ndarray, tolerance: float) -> bool:
    """Whether the sum of a row or column of z [T, M] is off by more than tolerance (relative), or not a number.

    The sums are checked as those of any matrix product can be, by a product with the sum of the other side's rows. All
    cells of the first frame weigh the same, and all of the first state: what is wrong in every cell of a row or column
    shows, whichever cells are large. A float32 sum loses the terms that are some 10^7 times smaller than the largest,
    hundreds of which may be a millionth of it: as in every cell of a frame whose encoder is nearly certain of a class
    that is no token.
    """
    t, m = z.shape
    per_state, per_frame = 1 / z[0], 1 / z[:, 0]
    rows, columns, found_rows, found_columns = np.zeros(t), np.zeros(m), np.zeros(t), np.zeros(m)
    _walk(z, per_frame, found_columns, per_state, found_rows)
    _add_checksums(encoder.exp[b, :t], prediction.exp[b, :m], per_frame, per_state, rows, columns)
    _add_checksums(encoder.exp_columns[b, :t], prediction.exp_columns[b, :m], per_frame, per_state, rows, columns)
    return not (_agree(found_rows, rows, tolerance) and _agree(found_columns, columns, tolerance))


# ---- the recursion -------------------------------------------------------------------------------------------------


@callee
def _step_probabilities(
    encoder: SideArrays,
    prediction: SideArrays,
    b: int,
    columns: np.ndarray,
    per_z: np.ndarray,
    log_probs: np.ndarray,
    probs: np.ndarray,
) -> None:
    """Fill probs [T, N], of a step from each of N states, and log_probs where the recursion needs them, else with 0.

    columns: [N], the step's. per_z: [T, M].
    """
    num_frames, num_states = probs.shape
    factors, digits = np.empty(num_states), True
    for u in range(num_states):
        factors[u] = prediction.exp_columns[b, u, columns[u]]
        digits &= factors[u] > SMALLEST_FACTOR
    for t in range(num_frames):
        plain = digits
        for u in range(num_states):
            factor = encoder.exp_columns[b, t, columns[u]]
            probability = factor * factors[u] * per_z[t, u]
            plain &= (factor > SMALLEST_FACTOR) & (probability > PER_RADIX) & (probability < RADIX)
            probs[t, u], log_probs[t, u] = probability, 0.0
        if not plain:  # or NaN
            for u in range(num_states):
                logit = encoder.columns[b, t, columns[u]] + prediction.columns[b, u, columns[u]]
                log_probs[t, u] = logit + np.log(per_z[t, u])
                probs[t, u] = np.exp(log_probs[t, u])


@callee
def _weights(
    label: np.ndarray,
    blank: np.ndarray,
    scale: float,
    first: np.ndarray,
    per_z: np.ndarray,
    rounded: np.ndarray,
    encoder_taken: np.ndarray,
    prediction_taken: np.ndarray,
) -> None:
    """From occupancies [T, M], of which the labels' are scaled, to what `additive_kernel` leaves of an utterance."""
    num_frames, num_states = blank.shape
    last = first[-1]
    of_label, of_blank = np.zeros(num_states), np.zeros(num_states)
    for t in range(num_frames):
        blanks = 0.0
        for u in range(num_states):
            label[t, u] *= scale
            blanks += blank[t, u]
            of_blank[u] += blank[t, u]
            of_label[u] += label[t, u]
            per_z[t, u] *= blank[t, u] + label[t, u]
            rounded[t, u] = per_z[t, u]
        for u in range(num_states - 1):
            encoder_taken[t, first[u]] -= label[t, u]
        encoder_taken[t, last] -= blanks
    for u in range(num_states):
        prediction_taken[u, first[u]] -= of_label[u]  # 0 in the last state
        prediction_taken[u, last] -= of_blank[u]


@callee
def _additive(
    thread: int,
    threads: int,
    sizes: np.ndarray,
    scale: float,
    limits: tuple[float, float, float],
    encoder: SideArrays,
    prediction: SideArrays,
    first: np.ndarray,
    z: np.ndarray,
    rounded: np.ndarray,
    losses: np.ndarray,
    redo: np.ndarray,
) -> None:
    lost, share, tolerance = limits
    for b in range(thread, len(losses), threads):
        t, m = sizes[b, 0], sizes[b, 1] + 1
        cells = z[b, :t, :m]
        redo[b] = _distrusted(encoder, prediction, b, cells, lost, share) or (
            tolerance < np.inf and _inexact(encoder, prediction, b, cells, tolerance)
        )
        encoder.taken[b], prediction.taken[b] = 0.0, 0.0
        if redo[b]:
            z[b], rounded[b] = 0.0, 0.0
            continue
        z[b, t:], z[b, :, m:], rounded[b, t:], rounded[b, :, m:] = 0.0, 0.0, 0.0, 0.0
        log_label, label = np.empty((t, m)), np.zeros((t, m))  # no label leaves the last state
        log_blank, blank, blank_columns = np.empty((t, m)), np.empty((t, m)), np.empty(m, np.int64)
        for state in range(m):
            blank_columns[state] = first[b, -1]
        for frame in range(t):
            for state in range(m):
                cells[frame, state] = 1 / cells[frame, state]
        _step_probabilities(encoder, prediction, b, first[b, : m - 1], cells, log_label[:, :-1], label[:, :-1])
        _step_probabilities(encoder, prediction, b, blank_columns, cells, log_blank[:, :], blank[:, :])
        losses[b] = scale * forward_backward(log_label[:, :-1], log_blank, label[:, :-1], blank)
        taken = encoder.taken[b], prediction.taken[b]
        _weights(label, blank, scale, first[b], cells, rounded[b, :t, :m], *taken)


@compiled
def additive_kernel(threads: int, *arguments: Any) -> None:
    """Losses [B] of an additive joint, and what its gradients are made of for an upstream gradient of 1.

    Then sizes: [B, 2] int64, frames and tokens. scale: of the losses and of the labels' occupancies. limits: the sum
    below which a cell of Z is distrusted, the share of what it could be likewise, and the tolerance of the sums of Z's
    rows and columns (inf: not checked). encoder, prediction: the sides, of which `taken` is filled. first: [B, K]
    int64. z: [B, T, M] float64, the normaliser, becomes occupancies / Z, and rounded [B, T, M] the same in the
    exponentials' type, both 0 beyond the lengths. Filled are losses [B] float64, and redo [B] bool: the utterances
    that float32 gets wrong, which have no part in the others.
    """
    on_torch_threads(_additive, arguments, threads)


# ---- after the products --------------------------------------------------------------------------------------------


@callee
def _gradient(
    thread: int,
    threads: int,
    upstream: np.ndarray,
    first: np.ndarray,
    classes: np.ndarray,
    products: np.ndarray,
    exp: np.ndarray,
    exp_columns: np.ndarray,
    taken: np.ndarray,
    gradient: np.ndarray,
) -> None:
    for b in range(thread, len(gradient), threads):
        scale = gradient.dtype.type(upstream[b])
        for t in range(gradient.shape[1]):
            row, factors = gradient[b, t], exp[b, t]
            for v in range(len(row)):
                row[v] *= factors[v] * scale
            for k in range(len(first[b])):
                if first[b, k] == k:
                    value = products[b, t, k] * exp_columns[b, t, k] + taken[b, t, k]
                    row[classes[b, k]] = upstream[b] * value


@compiled
def gradient_kernel(threads: int, *arguments: Any) -> None:
    """From products with the other side's exponentials to the gradient of one side's logits.

    Then upstream: [B] float64. first, classes: [B, K]. products: [B, T, K] float64, of the tokens. exp, exp_columns,
    taken: see `SideArrays`. gradient: [B, T, V+1], the product of all classes, which becomes the gradient.
    """
    on_torch_threads(_gradient, arguments, threads)
