"""The additive loss and its gradients on the CPU, compiled, on torch's threads: an utterance each.

Thread i of n takes every n-th utterance, from i on. Imports numpy, numba, `blas_kernels`, `compiled`,
`exponential_kernels`, `lattice_kernels`, `torch_threads`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns: the targets' and last the blank's. Arrays of a side are described as the encoder's; the prediction's have M
# in the place of T.

import math
from typing import Any, NamedTuple

import numba
import numpy as np

from nemo_codert.losses.blas_kernels import add_product
from nemo_codert.losses.compiled import callee, compiled
from nemo_codert.losses.exponential_kernels import exp_float32, exp_float64
from nemo_codert.losses.lattice_kernels import PER_RADIX, RADIX, forward_backward
from nemo_codert.losses.torch_threads import on_torch_threads

CLASSES_PER_PRODUCT = 256  # or nearly: longer float32 sums are carried on in float64
TERMS_PER_PRODUCT = 32  # at most, of the float32 sums over frames and over states that gradients are
ROW_ELEMENTS = 2**17  # of a gradient at a time, with at least 32 rows: half a megabyte
SMALLEST_FACTOR = 1e-150  # of a probability: two of them have a product with all its digits


class SideArrays(NamedTuple):
    """What is kept of one side of an additive joint, within the lengths. A row's largest logit is taken off the others
    where it is far from 0."""

    exp: np.ndarray  # [B, T, V+1], exponentials; the prediction's 0 for the tokens
    exp_columns: np.ndarray  # [B, T, K] float64, of the tokens; the prediction's 0 in all but the first of a class
    taken: np.ndarray  # [B, T, K] float64, what the occupancies take off the gradient


class Limits(NamedTuple):
    """Where float32 may be trusted; see `additive_precision`."""

    unshifted: float  # how far from 0 the largest logit of a row may be that is not taken off it
    smallest_sum: float  # of a cell of Z
    trusted_share: float  # of what a cell of Z could be
    trusted_sums: float  # relative error of the sums of Z's rows and columns; inf: not checked


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
    """Fill exp [V+1] with the exponentials of a row less the shift."""
    if exp.itemsize == 4:
        for v in range(len(row)):
            exp[v] = exp_float32(np.float32(row[v]) - np.float32(shift))
    else:
        for v in range(len(row)):
            exp[v] = exp_float64(np.float64(row[v]) - np.float64(shift))


@callee
def _take_row(
    row: np.ndarray,
    classes: np.ndarray,
    unshifted: float,
    exp: np.ndarray,
    columns: np.ndarray,
    exp_columns: np.ndarray,
) -> tuple[float, bool]:
    """Fill exp [V+1], columns [K] and exp_columns [K] from logits [V+1]; the largest logit, and whether it was taken
    off."""
    largest = _largest(row)
    shifted = not abs(largest) <= unshifted
    shift = largest if shifted else row.dtype.type(0.0)
    for k in range(len(classes)):
        columns[k] = np.float64(row[classes[k]]) - np.float64(shift)
    _exponentiate(columns, 0.0, exp_columns)
    _exponentiate(row, shift, exp)
    return largest, shifted


@callee
def _first_columns(targets: np.ndarray, blank: int, first: np.ndarray, classes: np.ndarray) -> None:
    """Fill first and classes [K] of an utterance with targets [U]."""
    last = len(first) - 1
    for k in range(last + 1):
        classes[k] = targets[k] if k < last else blank
        first[k] = k
        for j in range(k):
            if classes[j] == classes[k]:
                first[k] = j
                break


@callee
def _take_encoder(
    logits: np.ndarray,
    classes: np.ndarray,
    unshifted: float,
    exp: np.ndarray,
    columns: np.ndarray,
    exp_columns: np.ndarray,
    bounds: np.ndarray,
) -> None:
    """From logits [>= T, V+1] of an utterance fill exp [>= T, V+1], columns [T, K] with the tokens' logits, exp_columns
    [>= T, K], and bounds [T] of what a row multiplies Z with."""
    for t in range(len(bounds)):
        largest, shifted = _take_row(logits[t], classes, unshifted, exp[t], columns[t], exp_columns[t])
        bounds[t] = 1.0 if shifted else np.exp(max(np.float64(largest), 0.0))


@callee
def _take_prediction(
    logits: np.ndarray,
    classes: np.ndarray,
    first: np.ndarray,
    unshifted: float,
    exp: np.ndarray,
    columns: np.ndarray,
    exp_columns: np.ndarray,
    bounds: np.ndarray,
) -> None:
    """The same of the other side, where one column stands for each class, and the tokens have no part in exp."""
    for u in range(len(bounds)):
        _, shifted = _take_row(logits[u], classes, unshifted, exp[u], columns[u], exp_columns[u])
        for k in range(len(classes)):
            exp[u, classes[k]] = 0.0
            if first[k] != k:
                exp_columns[u, k] = 0.0
        bounds[u] = 1.0 if shifted else _largest(exp[u])


@callee
def _normaliser(encoder: SideArrays, prediction: SideArrays, b: int, z: np.ndarray) -> None:
    """Fill z [T, M] of an utterance, without the shifts: the tokens' part from their float64 columns."""
    t, m = z.shape
    add_product(encoder.exp_columns[b, :t], prediction.exp_columns[b, :m].T, 0.0, z)
    left, right = encoder.exp[b, :t], prediction.exp[b, :m].T
    product = np.empty((t, m), left.dtype)
    num_classes = left.shape[1]
    per_product = math.ceil(num_classes / max(round(num_classes / CLASSES_PER_PRODUCT), 1))
    for start in range(0, num_classes, per_product):
        add_product(left[:, start : start + per_product], right[start : start + per_product], 0.0, product)
        for frame in range(t):
            for state in range(m):
                z[frame, state] += product[frame, state]


# ---- is Z exact? ---------------------------------------------------------------------------------------------------


@callee
def _distrusted(z: np.ndarray, frames: np.ndarray, states: np.ndarray, limits: Limits) -> bool:
    """Whether terms that were lost or rounded in the exponentials could matter in a cell of z [T, M]: it is too small,
    or too small a share of what it could be, by the bounds of frames [T] and states [M]."""
    distrusted = False
    for t in range(z.shape[0]):
        share = limits.trusted_share * frames[t]
        for u in range(z.shape[1]):
            distrusted |= z[t, u] < max(share * states[u], limits.smallest_sum)
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
    encoder: np.ndarray,
    prediction: np.ndarray,
    exp_encoder: np.ndarray,
    exp_prediction: np.ndarray,
    columns: np.ndarray,
    per_z: np.ndarray,
    log_probs: np.ndarray,
    probs: np.ndarray,
) -> None:
    """Fill probs [T, N], of a step from each of N states, and log_probs where the recursion needs them, else with 0.

    encoder, exp_encoder: [T, K], the tokens' logits and their exponentials. prediction, exp_prediction: [M, K].
    columns: [N], the step's. per_z: [T, M].
    """
    num_frames, num_states = probs.shape
    factors, digits = np.empty(num_states), True
    for u in range(num_states):
        factors[u] = exp_prediction[u, columns[u]]
        digits &= factors[u] > SMALLEST_FACTOR
    for t in range(num_frames):
        plain = digits
        for u in range(num_states):
            factor = exp_encoder[t, columns[u]]
            probability = factor * factors[u] * per_z[t, u]
            plain &= (factor > SMALLEST_FACTOR) & (probability > PER_RADIX) & (probability < RADIX)
            probs[t, u], log_probs[t, u] = probability, 0.0
        if not plain:  # or NaN
            for u in range(num_states):
                logit = encoder[t, columns[u]] + prediction[u, columns[u]]
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
    targets: np.ndarray,
    blank: int,
    scale: float,
    limits: Limits,
    encoder_logits: np.ndarray,
    prediction_logits: np.ndarray,
    encoder: SideArrays,
    prediction: SideArrays,
    first: np.ndarray,
    classes: np.ndarray,
    weight: np.ndarray,
    rounded: np.ndarray,
    losses: np.ndarray,
    redo: np.ndarray,
) -> None:
    num_columns = first.shape[1]
    for b in range(thread, len(losses), threads):
        t, m = sizes[b, 0], sizes[b, 1] + 1
        _first_columns(targets[b], blank, first[b], classes[b])
        frames, states = np.empty((t, num_columns)), np.empty((m, num_columns))
        of_frames, of_states, z = np.empty(t), np.empty(m), weight[b, :t, :m]
        exps = encoder.exp[b], frames, encoder.exp_columns[b], of_frames
        _take_encoder(encoder_logits[b], classes[b], limits.unshifted, *exps)
        exps = prediction.exp[b], states, prediction.exp_columns[b], of_states
        _take_prediction(prediction_logits[b], classes[b], first[b], limits.unshifted, *exps)
        _normaliser(encoder, prediction, b, z)
        redo[b] = _distrusted(z, of_frames, of_states, limits) or (
            limits.trusted_sums < np.inf and _inexact(encoder, prediction, b, z, limits.trusted_sums)
        )
        if redo[b]:
            continue
        encoder.taken[b], prediction.taken[b] = 0.0, 0.0
        log_label, label = np.empty((t, m)), np.zeros((t, m))  # no label leaves the last state
        log_blank, blanks, blank_columns = np.empty((t, m)), np.empty((t, m)), np.empty(m, np.int64)
        for state in range(m):
            blank_columns[state] = first[b, -1]
        for frame in range(t):
            for state in range(m):
                z[frame, state] = 1 / z[frame, state]
        columns = frames, states, encoder.exp_columns[b], prediction.exp_columns[b]
        _step_probabilities(*columns, first[b, : m - 1], z, log_label[:, :-1], label[:, :-1])
        _step_probabilities(*columns, blank_columns, z, log_blank[:, :], blanks[:, :])
        losses[b] = scale * forward_backward(log_label[:, :-1], log_blank, label[:, :-1], blanks)
        taken = encoder.taken[b], prediction.taken[b]
        _weights(label, blanks, scale, first[b], z, rounded[b, :t, :m], *taken)


@compiled
def additive_kernel(threads: int, *arguments: Any) -> None:
    """Losses [B] of an additive joint, and what its gradients are made of for an upstream gradient of 1.

    Then sizes: [B, 2] int64, frames and tokens. targets: [B, U]. blank: its class. scale: of the losses and of the
    labels' occupancies. limits. encoder_logits, prediction_logits: [B, T, V+1] and [B, M, V+1].
    Filled within the lengths: encoder and prediction; first and classes [B, K] int64, the first column of each
    column's class, and the class; weight [B, T, M] float64, occupancies / Z, and rounded [B, T, M] the same in the
    exponentials' type; losses [B] float64; and redo [B] bool: the utterances that float32 gets wrong, which have no
    part in the others.
    """
    on_torch_threads(_additive, arguments, threads)


# ---- the gradient --------------------------------------------------------------------------------------------------


@callee
def _add_products(left: np.ndarray, right: np.ndarray, result: np.ndarray) -> None:
    """Fill result [I, V+1] with left [I, K] @ right [K, V+1], some terms at a time.

    A float32 sum loses terms 2^25 times smaller than itself: of 31 beside a large one at most 31 * 2^-25, 9e-7 of it.
    Every further piece rounds once more, one way or the other.
    """
    for start in range(0, left.shape[1], TERMS_PER_PRODUCT):
        add_product(
            left[:, start : start + TERMS_PER_PRODUCT],
            right[start : start + TERMS_PER_PRODUCT],
            0.0 if start == 0 else 1.0,
            result,
        )


@callee
def _side_gradient(
    weight: np.ndarray,
    rounded: np.ndarray,
    upstream: float,
    first: np.ndarray,
    classes: np.ndarray,
    side: SideArrays,
    other: SideArrays,
    b: int,
    gradient: np.ndarray,
) -> None:
    """Fill gradient [T, V+1] of a side's logits; weight, rounded: [t, m], within the lengths. Some rows at a time, which
    stay in a cache until they are finished."""
    (length, others), (num_rows, num_classes) = weight.shape, gradient.shape
    gradient[length:] = 0.0
    scale = gradient.dtype.type(upstream)
    most = max(ROW_ELEMENTS // num_classes, 32)
    products = np.empty((most, len(first)))
    for start in range(0, length, most):
        end = min(start + most, length)
        rows = gradient[start:end]
        _add_products(rounded[start:end], other.exp[b, :others], rows)
        add_product(weight[start:end], other.exp_columns[b, :others], 0.0, products[: end - start])
        for t in range(start, end):
            row, factors = gradient[t], side.exp[b, t]
            for v in range(num_classes):
                row[v] *= factors[v] * scale
            for k in range(len(first)):
                if first[k] == k:
                    value = products[t - start, k] * side.exp_columns[b, t, k] + side.taken[b, t, k]
                    row[classes[k]] = upstream * value


@callee
def _gradients(
    thread: int,
    threads: int,
    sizes: np.ndarray,
    redo: np.ndarray,
    upstream: np.ndarray,
    first: np.ndarray,
    classes: np.ndarray,
    weight: np.ndarray,
    rounded: np.ndarray,
    encoder: SideArrays,
    prediction: SideArrays,
    of_encoder: np.ndarray,
    of_prediction: np.ndarray,
) -> None:
    for b in range(thread, len(sizes), threads):
        if redo[b]:
            continue
        t, m = sizes[b, 0], sizes[b, 1] + 1
        exact, near, tokens = weight[b, :t, :m], rounded[b, :t, :m], (upstream[b], first[b], classes[b])
        if of_encoder.shape[1] > 0:
            _side_gradient(exact, near, *tokens, encoder, prediction, b, of_encoder[b])
        if of_prediction.shape[1] > 0:
            _side_gradient(exact.T, near.T, *tokens, prediction, encoder, b, of_prediction[b])


@compiled
def gradient_kernel(threads: int, *arguments: Any) -> None:
    """The gradients of both sides' logits.

    Then sizes: [B, 2] int64. redo: [B] bool, those to leave out. upstream: [B] float64. first, classes, weight,
    rounded, encoder, prediction: what `additive_kernel` has left. Filled: of_encoder [B, T, V+1] and of_prediction
    [B, M, V+1], unless it has no rows.
    """
    on_torch_threads(_gradients, arguments, threads)
