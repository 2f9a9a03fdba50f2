"""Compiled CPU kernels of the RNN-T recursion, in float64, and of the check of targets.

Imports numpy, `compile_cache`.
"""

# B batch, T encoder frames, U target tokens, M = U + 1 prediction states

import numpy as np

from nemo_codert.losses.cpu.compile_cache import callee, compiled

# The kernel keeps probabilities as m * RADIX^-k, m a float64 between 1 / RADIX and RADIX: nothing underflows, and a
# step costs multiplications and comparisons, where adding logarithms costs an exponential and a logarithm.
RADIX = 2.0**256
PER_RADIX = 1 / RADIX
LOG_RADIX = 256 * np.log(2.0)
NAN_POWER = -(2**40)  # power of a NaN, so low that `plus` never drops the NaN as the smaller term


@callee
def _normalised(m: float, k: int) -> tuple[float, int]:
    """Return m * RADIX^-k with m back in range, after a product of two mantissas."""
    if m < PER_RADIX:
        return m * RADIX, k + 1
    if m > RADIX:
        return m * PER_RADIX, k - 1
    return m, k


@callee
def _from_log(x: float, exp_x: float) -> tuple[float, int]:
    """Return e^x as mantissa and power; exp_x is used where it neither under- nor overflows."""
    if -LOG_RADIX < x < LOG_RADIX:
        return exp_x, 0
    if x == -np.inf:
        return 0.0, 0
    if np.isnan(x):
        return np.nan, NAN_POWER
    k = int(-x / LOG_RADIX)
    return np.exp(x + k * LOG_RADIX), k


@callee
def times(m: float, k: int, x: float, exp_x: float) -> tuple[float, int]:
    """Return m * RADIX^-k * e^x."""
    factor, power = _from_log(x, exp_x)
    return _normalised(m * factor, k + power)


@callee
def plus(m: float, k: int, n: float, l: int) -> tuple[float, int]:  # noqa: E741
    """Return m * RADIX^-k + n * RADIX^-l; a term two or more powers below the other is dropped."""
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


@callee
def to_float(m: float, k: int) -> float:
    """Return m * RADIX^-k as a float64, for a product of up to four mantissas; 0 where it underflows."""
    if k == 0:
        return m
    if k > 4:
        return m * 0.0
    for _ in range(k):
        m *= PER_RADIX
    for _ in range(min(-k, 4)):
        m *= RADIX
    return m


@callee
def _forward_variables(
    label: np.ndarray,
    blank: np.ndarray,
    exp_label: np.ndarray,
    exp_blank: np.ndarray,
    alpha: np.ndarray,
    power: np.ndarray,
) -> None:
    """Fill alpha and power [T, M] with the probability of reaching (t, u). label [T, >= U], blank [T, >= M]."""
    num_frames, num_states = alpha.shape
    for t in range(num_frames):
        m, k = 1.0, 0  # probability of reaching (t, u - 1), at the head of the inner loop
        for u in range(num_states):
            if t == 0:
                n, l = (1.0, 0) if u == 0 else (0.0, 0)  # noqa: E741
            else:
                n, l = times(alpha[t - 1, u], power[t - 1, u], blank[t - 1, u], exp_blank[t - 1, u])  # noqa: E741
            if u > 0:
                m, k = times(m, k, label[t, u - 1], exp_label[t, u - 1])
                n, l = plus(m, k, n, l)  # noqa: E741
            m, k = n, l
            alpha[t, u], power[t, u] = m, k


@callee
def forward_backward(label: np.ndarray, blank: np.ndarray, exp_label: np.ndarray, exp_blank: np.ndarray) -> float:
    """Return the loss of one utterance, [T, U] and [T, M], and overwrite the exponentials with its occupancies."""
    num_frames, num_states = blank.shape
    num_tokens = num_states - 1
    alpha = np.empty((num_frames, num_states))
    power = np.empty((num_frames, num_states), np.int64)
    _forward_variables(label, blank, exp_label, exp_blank, alpha, power)
    t, u = num_frames - 1, num_tokens
    total, total_power = times(alpha[t, u], power[t, u], blank[t, u], exp_blank[t, u])
    per_total = 1 / total
    beta = np.zeros(num_states)  # backward variables of frame t + 1, overwritten with frame t from the last state
    beta_power = np.zeros(num_states, np.int64)
    beta[num_tokens] = 1.0
    for t in range(num_frames - 1, -1, -1):
        n, l = 0.0, 0  # noqa: E741  backward variable of (t, u + 1)
        for u in range(num_tokens, -1, -1):
            m, k = times(beta[u], beta_power[u], blank[t, u], exp_blank[t, u])
            start, start_power = alpha[t, u] * per_total, power[t, u] - total_power
            exp_blank[t, u] = to_float(start * m, start_power + k)  # the exponential is not needed any more
            if u < num_tokens:
                n, l = times(n, l, label[t, u], exp_label[t, u])  # noqa: E741
                exp_label[t, u] = to_float(start * n, start_power + l)
                m, k = plus(m, k, n, l)
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
    """Fill losses, and overwrite the exponentials with the occupancies; shapes as in `lattice_occupancies`.

    Padding is never read, and gets zeros.
    """
    for b in range(len(encoded_lengths)):
        t, u = encoded_lengths[b], target_lengths[b]
        exp_label[b, t:], exp_label[b, :, u:] = 0.0, 0.0
        exp_blank[b, t:], exp_blank[b, :, u + 1 :] = 0.0, 0.0
        losses[b] = forward_backward(
            label[b, :t, :u], blank[b, :t, : u + 1], exp_label[b, :t, :u], exp_blank[b, :t, : u + 1]
        )


@compiled
def target_kernel(
    blank: int, num_classes: int, targets: np.ndarray, target_lengths: np.ndarray, given: np.ndarray
) -> int:
    """Copy the targets within the lengths to given, both [B, U] int64, and count the invalid ones.

    Invalid targets are the blank and numbers that are not a class.
    """
    faults = 0
    for b in range(len(targets)):
        for u in range(min(target_lengths[b], targets.shape[1])):
            target = targets[b, u]
            given[b, u] = target
            if target == blank or target < 0 or target >= num_classes:
                faults += 1
    return faults
