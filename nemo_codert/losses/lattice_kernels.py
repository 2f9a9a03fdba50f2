"""The compiled kernels of the RNN-T losses on the CPU: forward-backward in float64, of any and of an additive lattice.

All are in one file, by which `compiled` knows a kernel's code, callees included. Imports numpy, numba, `compiled`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns: the targets' and last the blank's

import numba
import numpy as np

from nemo_codert.losses.compiled import compiled

# The kernel keeps probabilities as m * RADIX^-k, m a float64 between 1 / RADIX and RADIX: nothing underflows, and a
# step costs multiplications and comparisons, where adding logarithms costs an exponential and a logarithm.
RADIX = 2.0**256
PER_RADIX = 1 / RADIX
LOG_RADIX = 256 * np.log(2.0)
NAN_POWER = -(2**40)  # so small that no sum drops a NaN as the lesser term
SMALLEST_FACTOR = 1e-150  # of a probability: two of them have a product with all its digits


@numba.njit(nogil=True)
def _normalised(m: float, k: int) -> tuple[float, int]:
    """m * RADIX^-k with m back in range, after a product of two mantissas."""
    if m < PER_RADIX:
        return m * RADIX, k + 1
    if m > RADIX:
        return m * PER_RADIX, k - 1
    return m, k


@numba.njit(nogil=True)
def _from_log(x: float, exp_x: float) -> tuple[float, int]:
    """e^x; exp_x is right where it neither under- nor overflows."""
    if -LOG_RADIX < x < LOG_RADIX:
        return exp_x, 0
    if x == -np.inf:
        return 0.0, 0
    if np.isnan(x):
        return np.nan, NAN_POWER
    k = int(-x / LOG_RADIX)
    return np.exp(x + k * LOG_RADIX), k


@numba.njit(nogil=True)
def _times(m: float, k: int, x: float, exp_x: float) -> tuple[float, int]:
    """m * RADIX^-k * e^x."""
    factor, power = _from_log(x, exp_x)
    return _normalised(m * factor, k + power)


@numba.njit(nogil=True)
def _plus(m: float, k: int, n: float, l: int) -> tuple[float, int]:  # noqa: E741
    """m * RADIX^-k + n * RADIX^-l; a term 2^256 times smaller than the other's least is dropped."""
    if k == l:
        return m + n, k
    if m == 0:
        return n, l
    if n == 0:
        return m, k
    if k == l - 1:
        return m + n * PER_RADIX, k
    if k == l + 1:
        return n + m * PER_RADIX, l
    return (m, k) if k < l else (n, l)


@numba.njit(nogil=True)
def _to_float(m: float, k: int) -> float:
    """m * RADIX^-k for a product of up to four mantissas; 0 where that underflows."""
    if k == 0:
        return m
    if k > 4:
        return m * 0.0
    for _ in range(k):
        m *= PER_RADIX
    for _ in range(min(-k, 4)):
        m *= RADIX
    return m


@numba.njit(nogil=True)
def _forward_variables(
    label: np.ndarray,
    blank: np.ndarray,
    exp_label: np.ndarray,
    exp_blank: np.ndarray,
    alpha: np.ndarray,
    power: np.ndarray,
) -> None:
    """Fill alpha and power [T, M]: probability of having reached (t, u). label [T, >= U], blank [T, >= M]."""
    num_frames, num_states = alpha.shape
    for t in range(num_frames):
        m, k = 1.0, 0  # of (t, u - 1) at the head of the inner loop
        for u in range(num_states):
            if t == 0:
                n, l = (1.0, 0) if u == 0 else (0.0, 0)  # noqa: E741
            else:
                n, l = _times(alpha[t - 1, u], power[t - 1, u], blank[t - 1, u], exp_blank[t - 1, u])  # noqa: E741
            if u > 0:
                m, k = _times(m, k, label[t, u - 1], exp_label[t, u - 1])
                n, l = _plus(m, k, n, l)  # noqa: E741
            m, k = n, l
            alpha[t, u], power[t, u] = m, k


@numba.njit(nogil=True)
def _forward_backward(label: np.ndarray, blank: np.ndarray, exp_label: np.ndarray, exp_blank: np.ndarray) -> float:
    """The loss of one utterance, [T, U] and [T, M]; its occupancies take the place of the exponentials."""
    num_frames, num_states = blank.shape
    num_tokens = num_states - 1
    alpha = np.empty((num_frames, num_states))
    power = np.empty((num_frames, num_states), np.int64)
    _forward_variables(label, blank, exp_label, exp_blank, alpha, power)
    t, u = num_frames - 1, num_tokens
    total, total_power = _times(alpha[t, u], power[t, u], blank[t, u], exp_blank[t, u])
    per_total = 1 / total
    beta = np.zeros(num_states)  # of frame t + 1, overwritten with frame t from the last state on
    beta_power = np.zeros(num_states, np.int64)
    beta[num_tokens] = 1.0
    for t in range(num_frames - 1, -1, -1):
        n, l = 0.0, 0  # noqa: E741  of (t, u + 1)
        for u in range(num_tokens, -1, -1):
            m, k = _times(beta[u], beta_power[u], blank[t, u], exp_blank[t, u])
            start, start_power = alpha[t, u] * per_total, power[t, u] - total_power
            exp_blank[t, u] = _to_float(start * m, start_power + k)  # no longer needed as what it was
            if u < num_tokens:
                n, l = _times(n, l, label[t, u], exp_label[t, u])  # noqa: E741
                exp_label[t, u] = _to_float(start * n, start_power + l)
                m, k = _plus(m, k, n, l)
            n, l = m, k  # noqa: E741
            beta[u], beta_power[u] = m, k
    return total_power * LOG_RADIX - np.log(total)


@compiled
def lattice_kernel(
    label: np.ndarray,
    blank: np.ndarray,
    exp_label: np.ndarray,
    exp_blank: np.ndarray,
    encoded_lengths: np.ndarray,
    target_lengths: np.ndarray,
    losses: np.ndarray,
) -> None:
    """Fill losses, and put the occupancies in the place of the exponentials; shapes as in `lattice_occupancies`.

    Padding is never read, and gets zeros.
    """
    for b in range(len(encoded_lengths)):
        t, u = encoded_lengths[b], target_lengths[b]
        exp_label[b, t:], exp_label[b, :, u:] = 0.0, 0.0
        exp_blank[b, t:], exp_blank[b, :, u + 1 :] = 0.0, 0.0
        losses[b] = _forward_backward(
            label[b, :t, :u], blank[b, :t, : u + 1], exp_label[b, :t, :u], exp_blank[b, :t, : u + 1]
        )


@compiled
def target_kernel(
    blank: int, num_classes: int, targets: np.ndarray, target_lengths: np.ndarray, given: np.ndarray
) -> int:
    """Copy the targets within the lengths to given, both [B, U] int64; how many of them are the blank or no class."""
    faults = 0
    for b in range(len(targets)):
        for u in range(min(target_lengths[b], targets.shape[1])):
            target = targets[b, u]
            given[b, u] = target
            if target == blank or target < 0 or target >= num_classes:
                faults += 1
    return faults


@compiled
def column_kernel(
    targets: np.ndarray,
    blank: int,
    sizes: np.ndarray,
    encoder_logits: np.ndarray,
    encoder_shifts: np.ndarray,
    exp_encoder: np.ndarray,
    encoder: np.ndarray,
    prediction_logits: np.ndarray,
    prediction_shifts: np.ndarray,
    exp_prediction: np.ndarray,
    prediction: np.ndarray,
    classes: np.ndarray,
    first: np.ndarray,
) -> None:
    """Take the token columns out of an additive joint's logits [B, T, V+1] and [B, M, V+1].

    targets: [B, U]. sizes: [B, 2] int64, frames and tokens. The shifts [B, T, 1] and [B, M, 1] are taken off.
    Filled: encoder [B, T, K] and prediction [B, M, K] float64, -inf beyond the lengths, the prediction's in all but
    the first column of a class too; classes and first [B, K] int64, the column's class and the first of that class.
    exp_encoder and exp_prediction [B, T, V+1], [B, M, V+1] become 0 beyond the lengths, the latter for the tokens too.
    """
    last = first.shape[1] - 1
    for b in range(len(sizes)):
        num_frames, num_states = sizes[b, 0], sizes[b, 1] + 1
        exp_encoder[b, num_frames:], exp_prediction[b, num_states:] = 0.0, 0.0
        encoder[b, num_frames:], prediction[b, num_states:] = -np.inf, -np.inf
        for k in range(last + 1):
            classes[b, k] = targets[b, k] if k < last else blank
            first[b, k] = k
            for j in range(k):
                if classes[b, j] == classes[b, k]:
                    first[b, k] = j
                    break
        for t in range(num_frames):
            for k in range(last + 1):
                logit = np.float64(encoder_logits[b, t, classes[b, k]])
                encoder[b, t, k] = logit - encoder_shifts[b, t, 0]
        for u in range(num_states):
            for k in range(last + 1):
                logit = np.float64(prediction_logits[b, u, classes[b, k]])
                prediction[b, u, k] = logit - prediction_shifts[b, u, 0] if first[b, k] == k else -np.inf
                exp_prediction[b, u, classes[b, k]] = 0.0


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


@numba.njit(nogil=True)
def _add_checksums(
    encoder: np.ndarray,
    prediction: np.ndarray,
    per_frame: np.ndarray,
    per_state: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
) -> None:
    """Add what the product of encoder [T, V+1] and prediction [M, V+1] sums up to: rows [T] times per_state [M],
    columns [M] times per_frame [T]."""
    frames, states, unused = np.zeros(encoder.shape[1]), np.zeros(encoder.shape[1]), np.zeros(encoder.shape[1])
    none = np.zeros(len(prediction))
    _walk(prediction, per_state, states, unused, none)
    _walk(encoder, per_frame, frames, states, rows)
    none[:] = 0.0
    _walk(prediction, none, unused, frames, columns)


@numba.njit(nogil=True)
def _agree(found: np.ndarray, exact: np.ndarray, tolerance: float) -> bool:
    """All sums found are exact, up to the relative tolerance; False for NaN."""
    agree = True
    for i in range(len(found)):
        agree &= abs(found[i] - exact[i]) <= tolerance * exact[i]
    return agree


@compiled
def checksum_kernel(
    tolerance: float,
    sizes: np.ndarray,
    exp_encoder: np.ndarray,
    exp_prediction: np.ndarray,
    encoder: np.ndarray,
    prediction: np.ndarray,
    z: np.ndarray,
    wrong: np.ndarray,
) -> None:
    """Fill wrong [B] bool: the sum of a row or column of z is off by more than tolerance (relative), or not a number.

    sizes: [B, 2] int64, frames and tokens. exp_encoder, exp_prediction: [B, T, V+1] and [B, M, V+1], of which z
    [B, T, M] float64 is the product, plus that of the token columns encoder [B, T, K] and prediction [B, M, K]. The
    sums are checked as those of any matrix product can be, by a product with the sum of the other side's rows. All
    cells of the first frame weigh the same, and all of the first state: what is wrong in every cell of a row or
    column shows, whichever cells are large.
    """
    for b in range(len(sizes)):
        t, m = sizes[b, 0], sizes[b, 1] + 1
        per_state, per_frame = 1 / z[b, 0, :m], 1 / z[b, :t, 0]
        rows, columns, found_rows, found_columns = np.zeros(t), np.zeros(m), np.zeros(t), np.zeros(m)
        _walk(z[b, :t, :m], per_frame, found_columns, per_state, found_rows)
        _add_checksums(exp_encoder[b, :t], exp_prediction[b, :m], per_frame, per_state, rows, columns)
        _add_checksums(encoder[b, :t], prediction[b, :m], per_frame, per_state, rows, columns)
        wrong[b] = not (_agree(found_rows, rows, tolerance) and _agree(found_columns, columns, tolerance))


@numba.njit(nogil=True)
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
    """Fill probs [T, N], of a step from each of N states, and log_probs where `_from_log` needs them, else with 0.

    encoder, exp_encoder: [T, K]. prediction, exp_prediction: [M, K]. columns: [N], the step's. per_z: [T, M].
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
                log_probs[t, u] = encoder[t, columns[u]] + prediction[u, columns[u]] + np.log(per_z[t, u])
                probs[t, u] = np.exp(log_probs[t, u])


@numba.njit(nogil=True)
def _weights(
    label: np.ndarray,
    blank: np.ndarray,
    first: np.ndarray,
    per_z: np.ndarray,
    encoder_taken: np.ndarray,
    prediction_taken: np.ndarray,
) -> None:
    """From occupancies [T, U] and [T, M] to what `additive_kernel` leaves of an utterance."""
    num_frames, num_states = blank.shape
    last = first[-1]
    of_label, of_blank = np.zeros(num_states), np.zeros(num_states)
    for t in range(num_frames):
        blanks = 0.0
        for u in range(num_states):
            blanks += blank[t, u]
            of_blank[u] += blank[t, u]
            per_z[t, u] *= blank[t, u] + label[t, u]
            of_label[u] += label[t, u]
        for u in range(num_states - 1):
            encoder_taken[t, first[u]] -= label[t, u]
        encoder_taken[t, last] -= blanks
    for u in range(num_states):
        prediction_taken[u, first[u]] -= of_label[u]  # 0 in the last state
        prediction_taken[u, last] -= of_blank[u]


@compiled
def additive_kernel(
    sizes: np.ndarray,
    label_scale: float,
    encoder: np.ndarray,
    prediction: np.ndarray,
    exp_encoder: np.ndarray,
    exp_prediction: np.ndarray,
    first: np.ndarray,
    z: np.ndarray,
    losses: np.ndarray,
    encoder_taken: np.ndarray,
    prediction_taken: np.ndarray,
) -> None:
    """Losses [B] of an additive joint, and what its gradients are made of for an upstream gradient of 1; all float64.

    sizes: [B, 2] int64, frames and tokens; 0 frames leave an utterance out. label_scale: of the labels' occupancies.
    encoder, prediction: logits of the token columns [B, T, K] and [B, M, K]; exp_encoder, exp_prediction: their
    exponentials, the prediction's in the first column of a class alone. first: [B, K] int64, that column.
    Filled are losses; z [B, T, M], which was the normaliser, with occupancies / z; encoder_taken [B, T, K] and
    prediction_taken [B, M, K], zeros before, with what the occupancies take off the gradients. Padding is never read,
    and of z it becomes 0.
    """
    for b in range(len(losses)):
        t, u = sizes[b]
        z[b, t:], z[b, :, u + 1 :] = 0.0, 0.0
        if t == 0:
            continue
        log_label, label = np.empty((t, u + 1)), np.zeros((t, u + 1))  # no label leaves the last state
        log_blank, blank = np.empty((t, u + 1)), np.empty((t, u + 1))
        for frame in range(t):
            for state in range(u + 1):
                z[b, frame, state] = 1 / z[b, frame, state]
        columns = encoder[b, :t], prediction[b], exp_encoder[b, :t], exp_prediction[b]
        _step_probabilities(*columns, first[b, :u], z[b], log_label[:, :u], label[:, :u])
        _step_probabilities(*columns, np.full(u + 1, first[b, -1]), z[b], log_blank, blank)
        losses[b] = _forward_backward(log_label[:, :u], log_blank, label[:, :u], blank)
        label *= label_scale
        _weights(label, blank, first[b], z[b], encoder_taken[b], prediction_taken[b])


@compiled
def token_kernel(
    upstream: np.ndarray,
    first: np.ndarray,
    classes: np.ndarray,
    normaliser_part: np.ndarray,
    exp_columns: np.ndarray,
    taken: np.ndarray,
    gradient: np.ndarray,
) -> None:
    """Fill in the gradient [B, T, V+1] of one side's logits where the classes [B, K] are its tokens and the blank.

    upstream: [B] float64. first: [B, K]. normaliser_part, exp_columns, taken: [B, T, K] float64, the normaliser's part
    without this side's exponentials, these, and what the occupancies take off for an upstream gradient of 1.
    """
    for b in range(gradient.shape[0]):
        for t in range(gradient.shape[1]):
            for k in range(len(first[b])):
                if first[b, k] == k:
                    value = normaliser_part[b, t, k] * exp_columns[b, t, k] + upstream[b] * taken[b, t, k]
                    gradient[b, t, classes[b, k]] = value
