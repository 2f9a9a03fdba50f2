"""Compiled CPU kernels of the additive loss and its gradients, on torch's threads.

Thread i of n computes every n-th utterance, starting with utterance i. Imports numpy, `blas`, `compile_cache`,
`lattice_kernels`, `normaliser_kernels`, `openmp`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns: the targets' and last the blank's. Arrays of a side are described as the encoder's; the prediction's
# have M in the place of T.

from typing import Any

import numpy as np

from nemo_codert.losses.cpu.blas import fill_product
from nemo_codert.losses.cpu.compile_cache import callee, compiled
from nemo_codert.losses.cpu.lattice_kernels import PER_RADIX, RADIX, forward_backward
from nemo_codert.losses.cpu.normaliser_kernels import (
    Limits,
    SideArrays,
    distrusted,
    first_columns,
    inexact,
    normaliser,
    take_encoder,
    take_prediction,
)
from nemo_codert.losses.cpu.openmp import on_torch_threads

TERMS_PER_PRODUCT = 32  # most terms of one float32 sum over frames or over states, in the gradients
ROW_ELEMENTS = 2**16  # elements of a gradient that are computed at a time (but at least 32 rows): 256 KiB of float32
SMALLEST_FACTOR = 1e-150  # smallest factor of a probability: the product of two such factors loses no digits


# ---- the normaliser ------------------------------------------------------------------------------------------------


@callee
def take_utterance(
    b: int,
    targets: np.ndarray,
    blank: int,
    first: np.ndarray,
    classes: np.ndarray,
    limits: Limits,
    encoder_logits: np.ndarray,
    prediction_logits: np.ndarray,
    encoder: SideArrays,
    prediction: SideArrays,
    frames: np.ndarray,
    states: np.ndarray,
    z: np.ndarray,
) -> bool:
    """Fill both sides of utterance b, and return whether it needs float64.

    targets: [U]. first, classes: [K], filled. encoder_logits: [>= T, V+1]. prediction_logits: [>= M, V+1]. frames: [T,
    K], filled with the tokens' logits, and states: [M, K]. z: [T, M], filled.
    """
    first_columns(targets, blank, first, classes)
    of_frames, of_states = np.empty(len(frames)), np.empty(len(states))
    exps = encoder.exp[b], frames, encoder.exp_columns[b], of_frames
    take_encoder(encoder_logits, classes, limits.unshifted, *exps)
    exps = prediction.exp[b], states, prediction.exp_columns[b], of_states
    take_prediction(prediction_logits, classes, first, limits.unshifted, *exps)
    normaliser(encoder, prediction, b, z)
    return distrusted(z, of_frames, of_states, limits) or (
        limits.trusted_sums < np.inf and inexact(encoder, prediction, b, z, limits.trusted_sums)
    )


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
    """Fill probs [T, N] of a step from each of N states, and log_probs where the recursion needs them, else with 0.

    encoder, exp_encoder: [T, K], the tokens' logits and their exponentials. prediction, exp_prediction: [M, K].
    columns: [N], the column of the step from each state. per_z: [T, M], 1 / Z.
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
def weights(
    label: np.ndarray,
    blank: np.ndarray,
    scale: float,
    first: np.ndarray,
    per_z: np.ndarray,
    rounded: np.ndarray,
    encoder_taken: np.ndarray,
    prediction_taken: np.ndarray,
) -> None:
    """Turn the occupancies [T, M] of an utterance into factors of its gradients; scale multiplies the labels'.

    per_z: 1 / Z, overwritten with the occupancies / Z, and rounded filled with them. encoder_taken: [>= T, K], and
    prediction_taken: [>= M, K], 0 before, lose the occupancies of the tokens.
    """
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
        prediction_taken[u, first[u]] -= of_label[u]  # of_label is 0 in the last state
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
        frames, states = np.empty((t, num_columns)), np.empty((m, num_columns))
        z, tokens = weight[b, :t, :m], (targets[b], blank, first[b], classes[b])
        logits = encoder_logits[b], prediction_logits[b]
        redo[b] = take_utterance(b, *tokens, limits, *logits, encoder, prediction, frames, states, z)
        if redo[b]:
            continue
        encoder.taken[b], prediction.taken[b] = 0.0, 0.0
        log_label, label = np.empty((t, m)), np.zeros((t, m))  # label stays 0 in the last state
        log_blank, blanks, blank_columns = np.empty((t, m)), np.empty((t, m)), np.empty(m, np.int64)
        for state in range(m):
            blank_columns[state] = first[b, -1]
        for frame in range(t):
            for state in range(m):
                z[frame, state] = 1 / z[frame, state]
        columns = frames, states, encoder.exp_columns[b], prediction.exp_columns[b]
        _step_probabilities(*columns, first[b, : m - 1], z, log_label[:, :-1], label[:, :-1])
        # Views of whole arrays too: the same types as above, so that the function is compiled once.
        _step_probabilities(*columns, blank_columns, z, log_blank[:, :], blanks[:, :])
        losses[b] = scale * forward_backward(log_label[:, :-1], log_blank, label[:, :-1], blanks)
        taken = encoder.taken[b], prediction.taken[b]
        weights(label, blanks, scale, first[b], z, rounded[b, :t, :m], *taken)


@compiled
def additive_kernel(threads: int, *arguments: Any) -> None:
    """Compute the losses of an additive joint, and the factors of its gradients for an upstream gradient of 1.

    The arguments are those of `_additive` after the first two.

    Args:
        threads: number of threads.
        sizes: [B, 2] int64, frames and tokens.
        targets: [B, U] int64.
        blank: class of the blank.
        scale: multiplies the losses and the labels' occupancies.
        limits: limits of float32.
        encoder_logits: [B, T, V+1].
        prediction_logits: [B, M, V+1].
        encoder, prediction: filled within the lengths.
        first, classes: [B, K] int64, filled: the first column of each column's class, and the class.
        weight: [B, T, M] float64, filled within the lengths with occupancies / Z.
        rounded: [B, T, M], filled with weight in the exponentials' type.
        losses: [B] float64, filled.
        redo: [B] bool, filled: True for utterances that need float64, of which nothing else is filled.
    """
    on_torch_threads(_additive, arguments, threads)


# ---- the gradient --------------------------------------------------------------------------------------------------


@callee
def _fill_product(left: np.ndarray, right: np.ndarray, result: np.ndarray, piece: np.ndarray) -> None:
    """Fill result [I, V+1] with left [I, K] @ right [K, V+1]; piece: [I, V+1], scratch memory.

    Adds at most 32 terms per BLAS call (beta = 0): float32 drops addends below 2^-25 of the sum, so 31 of them lose at
    most 9e-7. Adding up the pieces rounds once per piece, in either direction.
    """
    for start in range(0, left.shape[1], TERMS_PER_PRODUCT):
        terms, rows = left[:, start : start + TERMS_PER_PRODUCT], right[start : start + TERMS_PER_PRODUCT]
        if start == 0:
            fill_product(terms, rows, result)
        else:
            fill_product(terms, rows, piece)
            for i in range(result.shape[0]):
                for v in range(result.shape[1]):
                    result[i, v] += piece[i, v]


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
    """Fill gradient [T, V+1] of a side's logits; weight, rounded: [t, m], within the lengths.

    Some rows are computed at a time, which stay in the processor's cache until they are finished.
    """
    (length, others), num_classes = weight.shape, gradient.shape[1]
    gradient[length:] = 0.0
    scale = gradient.dtype.type(upstream)
    most = min(max(ROW_ELEMENTS // num_classes, 32), length)
    products, piece = np.empty((most, len(first))), np.empty((most, num_classes), gradient.dtype)
    for start in range(0, length, most):
        end = min(start + most, length)
        rows = gradient[start:end]
        _fill_product(rounded[start:end], other.exp[b, :others], rows, piece[: end - start])
        fill_product(weight[start:end], other.exp_columns[b, :others], products[: end - start])
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
    """Compute the gradients of both sides' logits.

    The arguments are those of `_gradients` after the first two.

    Args:
        threads: number of threads.
        sizes: [B, 2] int64, frames and tokens.
        redo: [B] bool, utterances to skip.
        upstream: [B] float64.
        first, classes, weight, rounded, encoder, prediction: as filled by `additive_kernel`.
        of_encoder: [B, T, V+1], filled, unless it has no rows.
        of_prediction: [B, M, V+1], filled, unless it has no rows.
    """
    on_torch_threads(_gradients, arguments, threads)
