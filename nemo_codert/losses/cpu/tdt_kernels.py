"""Compiled CPU kernel of the TDT recursion, in float64. Imports numpy, `compile_cache`, `lattice_kernels`."""

# B batch, T encoder frames, U target tokens, M = U + 1 prediction states, N durations. The 2 + N numbers of a node are
# those of the next label, of the blank, and of each duration.

import numpy as np

from nemo_codert.losses.cpu.compile_cache import callee, compiled
from nemo_codert.losses.cpu.lattice_kernels import LOG_RADIX, plus, times, to_float

LABEL, BLANK, FIRST_DURATION = 0, 1, 2  # places of a node's numbers


@callee
def _exists(step: int, duration: int, t: int, u: int, frames: int, last: int) -> bool:
    """Return whether an arc leaves node (t, u): a label that ends within the frames, or a blank above 0 frames.

    A blank may also end an utterance, from the last state, which no label leaves.
    """
    if step == LABEL:
        return t + duration < frames
    return duration > 0 and (t + duration < frames or (t + duration == frames and u == last))


@callee
def _forward_variables(
    log_probs: np.ndarray, probs: np.ndarray, durations: np.ndarray, alpha: np.ndarray, power: np.ndarray
) -> None:
    """Fill alpha and power [T+1, M] with the probability of reaching (t, u); (T, U) is the end of the utterance."""
    frames, last = log_probs.shape[0], log_probs.shape[1] - 1
    alpha[:], power[:] = 0.0, 0
    alpha[0, 0] = 1.0
    for t in range(frames):
        for u in range(last + 1):
            for step in range(BLANK if u == last else LABEL, BLANK + 1):
                m, k = times(alpha[t, u], power[t, u], log_probs[t, u, step], probs[t, u, step])
                for i in range(len(durations)):
                    if _exists(step, durations[i], t, u, frames, last):
                        place = FIRST_DURATION + i
                        n, l = times(m, k, log_probs[t, u, place], probs[t, u, place])  # noqa: E741
                        end, state = t + durations[i], u + 1 if step == LABEL else u
                        n, l = plus(alpha[end, state], power[end, state], n, l)  # noqa: E741
                        alpha[end, state], power[end, state] = n, l


@callee
def _forward_backward(log_probs: np.ndarray, probs: np.ndarray, durations: np.ndarray) -> float:
    """Return the loss of one utterance, [T, M, 2 + N], and overwrite probs with its occupancies."""
    frames, last = log_probs.shape[0], log_probs.shape[1] - 1
    alpha, power = np.empty((frames + 1, last + 1)), np.empty((frames + 1, last + 1), np.int64)
    _forward_variables(log_probs, probs, durations, alpha, power)
    total, total_power = alpha[frames, last], power[frames, last]
    per_total = 1 / total
    beta, beta_power = np.zeros(alpha.shape), np.zeros(alpha.shape, np.int64)
    beta[frames, last] = 1.0
    occupancies = np.empty(log_probs.shape[2])
    for t in range(frames - 1, -1, -1):
        for u in range(last, -1, -1):
            start, start_power = alpha[t, u] * per_total, power[t, u] - total_power
            m, k = 0.0, 0  # backward variable of (t, u)
            occupancies[:] = 0.0
            for step in range(BLANK if u == last else LABEL, BLANK + 1):
                head, head_power = times(start, start_power, log_probs[t, u, step], probs[t, u, step])
                n, l = 0.0, 0  # noqa: E741  probability of ending after the label or the blank, any duration
                for i in range(len(durations)):
                    if _exists(step, durations[i], t, u, frames, last):
                        end, state, place = t + durations[i], u + 1 if step == LABEL else u, FIRST_DURATION + i
                        tail, tail_power = times(
                            beta[end, state], beta_power[end, state], log_probs[t, u, place], probs[t, u, place]
                        )
                        occupancy = to_float(head * tail, head_power + tail_power)
                        occupancies[step] += occupancy
                        occupancies[place] += occupancy
                        n, l = plus(n, l, tail, tail_power)  # noqa: E741
                n, l = times(n, l, log_probs[t, u, step], probs[t, u, step])  # noqa: E741
                m, k = plus(m, k, n, l)
            beta[t, u], beta_power[t, u] = m, k
            probs[t, u] = occupancies
    return total_power * LOG_RADIX - np.log(total)


@compiled
def tdt_kernel(
    log_probs: np.ndarray,
    probs: np.ndarray,
    durations: np.ndarray,
    encoded_lengths: np.ndarray,
    target_lengths: np.ndarray,
    losses: np.ndarray,
) -> None:
    """Fill losses [B], and overwrite probs, the exponentials of log_probs [B, T, M, 2 + N], with the occupancies.

    The labels' numbers in the last state are not read. Padding is not read either, and gets zeros.
    """
    for b in range(len(encoded_lengths)):
        t, m = encoded_lengths[b], target_lengths[b] + 1
        probs[b, t:], probs[b, :, m:] = 0.0, 0.0
        losses[b] = _forward_backward(log_probs[b, :t, :m], probs[b, :t, :m], durations)
