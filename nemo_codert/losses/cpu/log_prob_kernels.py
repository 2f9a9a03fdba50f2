"""Compiled CPU kernels of the log-probabilities of an additive joint and of their gradients, on torch's threads.

For recursions other than the RNN-T's; the normaliser and the products are those of `additive_kernels`. Imports numpy,
`additive_kernels`, `compile_cache`, `normaliser_kernels`, `openmp`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, K = U + 1 token
# columns: the targets' and last the blank's

from typing import Any

import numpy as np

from nemo_codert.losses.cpu.additive_kernels import take_utterance, weights
from nemo_codert.losses.cpu.compile_cache import callee, compiled
from nemo_codert.losses.cpu.normaliser_kernels import Limits, SideArrays
from nemo_codert.losses.cpu.openmp import on_torch_threads


@callee
def _log_probs(
    thread: int,
    threads: int,
    sizes: np.ndarray,
    targets: np.ndarray,
    blank: int,
    limits: Limits,
    encoder_logits: np.ndarray,
    prediction_logits: np.ndarray,
    encoder: SideArrays,
    prediction: SideArrays,
    first: np.ndarray,
    classes: np.ndarray,
    per_z: np.ndarray,
    label: np.ndarray,
    blanks: np.ndarray,
    redo: np.ndarray,
) -> None:
    num_columns = first.shape[1]
    for b in range(thread, len(redo), threads):
        t, m = sizes[b, 0], sizes[b, 1] + 1
        label[b], blanks[b] = 0.0, 0.0
        frames, states = np.empty((t, num_columns)), np.empty((m, num_columns))
        z, tokens = per_z[b, :t, :m], (targets[b], blank, first[b], classes[b])
        logits = encoder_logits[b], prediction_logits[b]
        redo[b] = take_utterance(b, *tokens, limits, *logits, encoder, prediction, frames, states, z)
        if redo[b]:
            continue
        for frame in range(t):
            for state in range(m):
                log_z = np.log(z[frame, state])
                z[frame, state] = 1 / z[frame, state]
                blanks[b, frame, state] = frames[frame, -1] + states[state, -1] - log_z
                if state < m - 1:
                    label[b, frame, state] = frames[frame, state] + states[state, state] - log_z


@compiled
def log_prob_kernel(threads: int, *arguments: Any) -> None:
    """Compute the log-probabilities of labels and blanks of an additive joint.

    The arguments are those of `_log_probs` after the first two.

    Args:
        threads: number of threads.
        sizes: [B, 2] int64, frames and tokens.
        targets: [B, U] int64.
        blank: class of the blank.
        limits: limits of float32.
        encoder_logits: [B, T, V+1].
        prediction_logits: [B, M, V+1].
        encoder, prediction: filled within the lengths.
        first, classes: [B, K] int64, filled: the first column of each column's class, and the class.
        per_z: [B, T, M] float64, filled within the lengths with 1 / Z.
        label: [B, T, U] float64, filled; 0 beyond the lengths.
        blanks: [B, T, M] float64, filled; 0 beyond the lengths.
        redo: [B] bool, filled: True for utterances that need float64, whose log-probabilities are 0.
    """
    on_torch_threads(_log_probs, arguments, threads)


@callee
def _factors(
    thread: int,
    threads: int,
    sizes: np.ndarray,
    redo: np.ndarray,
    label_upstream: np.ndarray,
    blank_upstream: np.ndarray,
    first: np.ndarray,
    weight: np.ndarray,
    rounded: np.ndarray,
    encoder: SideArrays,
    prediction: SideArrays,
) -> None:
    for b in range(thread, len(redo), threads):
        if redo[b]:
            continue
        t, m = sizes[b, 0], sizes[b, 1] + 1
        label, blanks = np.zeros((t, m)), np.empty((t, m))  # label stays 0 in the last state
        for frame in range(t):
            for state in range(m):
                blanks[frame, state] = -blank_upstream[b, frame, state]
                if state < m - 1:
                    label[frame, state] = -label_upstream[b, frame, state]
        encoder.taken[b], prediction.taken[b] = 0.0, 0.0
        taken = encoder.taken[b], prediction.taken[b]
        weights(label, blanks, 1.0, first[b], weight[b, :t, :m], rounded[b, :t, :m], *taken)


@compiled
def factor_kernel(threads: int, *arguments: Any) -> None:
    """Compute what `additive_kernels.gradient_kernel` needs, for given gradients of the log-probabilities.

    The arguments are those of `_factors` after the first two.

    Args:
        threads: number of threads.
        sizes: [B, 2] int64, frames and tokens.
        redo: [B] bool, utterances to skip.
        label_upstream: [B, T, U] float64.
        blank_upstream: [B, T, M] float64.
        first: [B, K] int64, as filled by `log_prob_kernel`.
        weight: [B, T, M] float64, 1 / Z, overwritten with the factors.
        rounded: [B, T, M], filled with weight in the exponentials' type.
        encoder, prediction: as filled by `log_prob_kernel`; `taken` is filled.
    """
    on_torch_threads(_factors, arguments, threads)
