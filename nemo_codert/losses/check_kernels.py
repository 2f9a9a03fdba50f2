"""The compiled kernels that check the float32 sums of the additive loss on the CPU, against sums in float64.

All are in one file, as in `lattice_kernels`. Imports numpy, numba, `compiled`.
"""

# B batch, T encoder frames, V vocabulary without blank, M prediction states, K token columns (the targets' and last
# the blank's)

import numba
import numpy as np

from nemo_codert.losses.compiled import compiled


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


@numba.njit(nogil=True, fastmath={"reassoc"})
def _add_rows(rows: np.ndarray, sums: np.ndarray) -> None:
    """Add all rows [T, V+1] to sums [V+1] float64, four at a time: the sums are read and written less often."""
    whole = len(rows) // 4 * 4
    for t in range(0, whole, 4):
        one, two, three, four = rows[t], rows[t + 1], rows[t + 2], rows[t + 3]
        for v in range(len(sums)):
            sums[v] += np.float64(one[v]) + np.float64(two[v]) + (np.float64(three[v]) + np.float64(four[v]))
    for t in range(whole, len(rows)):
        one = rows[t]
        for v in range(len(sums)):
            sums[v] += np.float64(one[v])


@compiled
def balance_kernel(
    tolerance: float,
    sizes: np.ndarray,
    classes: np.ndarray,
    largest: np.ndarray,
    encoder: np.ndarray,
    prediction: np.ndarray,
    wrong: np.ndarray,
) -> None:
    """Fill wrong [B] bool: the gradients of some class that is no token have not the same sum over encoder
    [B, T, V+1] as over prediction [B, M, V+1], as they should.

    tolerance: relative to the sums, of gradients that all have one sign, and to largest [B]. sizes: [B, 2] int64,
    frames and tokens. classes: [B, K], the tokens and the blank, whose gradients are no float32 sums.
    """
    num_classes = encoder.shape[2]
    for b in range(len(sizes)):
        frames, states = np.zeros(num_classes), np.zeros(num_classes)
        _add_rows(encoder[b, : sizes[b, 0]], frames)
        _add_rows(prediction[b, : sizes[b, 1] + 1], states)
        for k in range(classes.shape[1]):
            frames[classes[b, k]] = states[classes[b, k]] = 0.0
        wrong[b] = False
        for v in range(num_classes):
            wrong[b] |= abs(frames[v] - states[v]) > tolerance * max(abs(frames[v]), abs(states[v]), largest[b])
