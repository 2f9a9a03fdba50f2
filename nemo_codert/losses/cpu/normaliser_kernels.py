"""The normaliser of an utterance of an additive lattice, `Z[t,u] = sum_v exp(E[t,v]) exp(G[u,v])`, and its checks.

Compiled functions for kernels on the CPU. Imports numpy, numba, `blas`, `compile_cache`, `exponentials`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns: the targets' and last the blank's. Arrays of a side are described as the encoder's; the prediction's
# have M in the place of T.

import math
from typing import NamedTuple

import numba
import numpy as np

from nemo_codert.losses.cpu.blas import fill_product
from nemo_codert.losses.cpu.compile_cache import callee
from nemo_codert.losses.cpu.exponentials import exp_float32, exp_float64

CLASSES_PER_PRODUCT = 256  # classes of one float32 product, or nearly; the products are added up in float64


class SideArrays(NamedTuple):
    """Arrays of one side of an additive joint that the backward pass needs, filled within the lengths.

    The largest logit of a row is subtracted from the row where it is far from 0.
    """

    exp: np.ndarray  # [B, T, V+1], exponentials; 0 for the tokens on the prediction side
    exp_columns: np.ndarray  # [B, T, K] float64, exponentials of the tokens; the prediction's 0 for repeated classes
    taken: np.ndarray  # [B, T, K] float64, occupancies to add to the gradient, negative


class Limits(NamedTuple):
    """Limits of float32; see `additive_float64`."""

    unshifted: float  # largest absolute row maximum that is not subtracted from its row
    smallest_sum: float  # smallest trusted cell of Z
    trusted_share: float  # smallest trusted ratio of a cell of Z to its bound
    trusted_sums: float  # largest relative error of the sums of Z's rows and columns; inf: not checked


# fastmath: vector instructions compare several numbers at a time only then. A NaN still shows in the sums.
@numba.njit(nogil=True, fastmath={"nnan", "nsz"})
def row_maximum(row: np.ndarray) -> float:
    """Return the largest number of a row [V+1]; four independent comparisons at a time."""
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
def exponentiate(row: np.ndarray, shift: float, exp: np.ndarray) -> None:
    """Fill exp [V+1] with the exponentials of a row minus the shift."""
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
    """Fill exp [V+1], columns [K] and exp_columns [K] from logits [V+1].

    Returns the largest logit, and whether it was subtracted.
    """
    largest = row_maximum(row)
    shifted = not abs(largest) <= unshifted
    shift = largest if shifted else row.dtype.type(0.0)
    for k in range(len(classes)):
        columns[k] = np.float64(row[classes[k]]) - np.float64(shift)
    exponentiate(columns, 0.0, exp_columns)
    exponentiate(row, shift, exp)
    return largest, shifted


@callee
def first_columns(targets: np.ndarray, blank: int, first: np.ndarray, classes: np.ndarray) -> None:
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
def take_encoder(
    logits: np.ndarray,
    classes: np.ndarray,
    unshifted: float,
    exp: np.ndarray,
    columns: np.ndarray,
    exp_columns: np.ndarray,
    bounds: np.ndarray,
) -> None:
    """Fill the encoder side of an utterance, given its logits [>= T, V+1].

    Filled: exp [>= T, V+1], columns [T, K] with the tokens' logits, exp_columns [>= T, K], and bounds [T], the largest
    factor of each row in Z.
    """
    for t in range(len(bounds)):
        largest, shifted = _take_row(logits[t], classes, unshifted, exp[t], columns[t], exp_columns[t])
        bounds[t] = 1.0 if shifted else np.exp(max(np.float64(largest), 0.0))


@callee
def take_prediction(
    logits: np.ndarray,
    classes: np.ndarray,
    first: np.ndarray,
    unshifted: float,
    exp: np.ndarray,
    columns: np.ndarray,
    exp_columns: np.ndarray,
    bounds: np.ndarray,
) -> None:
    """Fill the prediction side as `take_encoder` does, and zero the token columns of exp and repeated exp_columns."""
    for u in range(len(bounds)):
        _, shifted = _take_row(logits[u], classes, unshifted, exp[u], columns[u], exp_columns[u])
        for k in range(len(classes)):
            exp[u, classes[k]] = 0.0
            if first[k] != k:
                exp_columns[u, k] = 0.0
        bounds[u] = 1.0 if shifted else row_maximum(exp[u])


@callee
def add_product(left: np.ndarray, right: np.ndarray, total: np.ndarray) -> None:
    """Add left [T, V+1] @ right [M, V+1]^T to total [T, M] float64, some classes at a time."""
    product = np.empty(total.shape, left.dtype)
    num_classes = left.shape[1]
    per_product = math.ceil(num_classes / max(round(num_classes / CLASSES_PER_PRODUCT), 1))
    for start in range(0, num_classes, per_product):
        fill_product(left[:, start : start + per_product], right[:, start : start + per_product].T, product)
        for frame in range(total.shape[0]):
            for state in range(total.shape[1]):
                total[frame, state] += product[frame, state]


@callee
def normaliser(encoder: SideArrays, prediction: SideArrays, b: int, z: np.ndarray) -> None:
    """Fill z [T, M] of an utterance, without the shifts: the tokens' part from their float64 columns."""
    t, m = z.shape
    fill_product(encoder.exp_columns[b, :t], prediction.exp_columns[b, :m].T, z)
    add_product(encoder.exp[b, :t], prediction.exp[b, :m], z)


@callee
def distrusted(z: np.ndarray, frames: np.ndarray, states: np.ndarray, limits: Limits) -> bool:
    """Return whether terms lost or rounded in the exponentials could matter in a cell of z [T, M].

    They could where the cell is too small, or too small against its bound, the product of frames [T] and states [M].
    """
    found = False
    for t in range(z.shape[0]):
        share = limits.trusted_share * frames[t]
        for u in range(z.shape[1]):
            found |= z[t, u] < max(share * states[u], limits.smallest_sum)
    return found


@numba.njit(nogil=True, fastmath={"reassoc", "contract"})  # vector instructions sum several terms at a time only so
def _walk(rows: np.ndarray, weights: np.ndarray, sums: np.ndarray, others: np.ndarray, products: np.ndarray) -> None:
    """Add weights [T] @ rows [T, V+1] to sums [V+1], and rows @ others [V+1] to products [T]; float64.

    Four rows at a time, so that sums and others are read less often.
    """
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
    """Add the weighted row and column sums of Z = encoder [T, V+1] @ prediction [M, V+1]^T.

    Added to rows [T]: Z @ per_state [M]; to columns [M]: per_frame [T] @ Z. Two of the three walks compute one result
    that is not used, which costs less than reading the encoder's rows twice.
    """
    frames, states, unused = np.zeros(encoder.shape[1]), np.zeros(encoder.shape[1]), np.zeros(encoder.shape[1])
    none = np.zeros(len(prediction))
    _walk(prediction, per_state, states, unused, none)
    _walk(encoder, per_frame, frames, states, rows)
    none[:] = 0.0
    _walk(prediction, none, unused, frames, columns)


@callee
def _agree(found: np.ndarray, exact: np.ndarray, tolerance: float) -> bool:
    """Return whether all sums found are exact, up to the relative tolerance; False for NaN."""
    agree = True
    for i in range(len(found)):
        agree &= abs(found[i] - exact[i]) <= tolerance * exact[i]
    return agree


@callee
def inexact(encoder: SideArrays, prediction: SideArrays, b: int, z: np.ndarray, tolerance: float) -> bool:
    """Return whether the sum of a row or column of z [T, M] is off by more than tolerance (relative), or NaN.

    A row sum of a matrix product equals the product with the sum of the other side's rows. The cells are weighted so
    that all cells of the first frame, and all of the first state, weigh the same: an error in every cell of a row or
    column then shows whichever cells are large. A float32 sum loses terms some 10^7 times smaller than the largest,
    hundreds of which may amount to a millionth: for example in every cell of a frame in which the encoder is nearly
    certain of a class that is not a token.
    """
    t, m = z.shape
    per_state, per_frame = 1 / z[0], 1 / z[:, 0]
    rows, columns, found_rows, found_columns = np.zeros(t), np.zeros(m), np.zeros(t), np.zeros(m)
    _walk(z, per_frame, found_columns, per_state, found_rows)
    _add_checksums(encoder.exp[b, :t], prediction.exp[b, :m], per_frame, per_state, rows, columns)
    _add_checksums(encoder.exp_columns[b, :t], prediction.exp_columns[b, :m], per_frame, per_state, rows, columns)
    return not (_agree(found_rows, rows, tolerance) and _agree(found_columns, columns, tolerance))
