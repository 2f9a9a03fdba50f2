"""The RNN-T forward-backward in float64 on a CUDA device, as Numba-CUDA kernels (compiled at the first call).

Forward and backward variables are computed side by side, with two blocks for each utterance and a thread for each
state, one anti-diagonal of the lattice at a time. Imports torch and numba's CUDA half, which only a GPU needs.
"""

# B batch, T encoder frames, U target tokens, M = U + 1 prediction states

import math
import warnings
from typing import Any

import torch
from numba import cuda, float64

warnings.filterwarnings("ignore", message=".*Grid size.*under-utilization")  # few utterances are few blocks

WARP = 32  # threads
MOST_STATES = 512  # most threads of a block: with 512 each can have 128 registers
CELL_THREADS = 256  # threads of a block of `occupancies_kernel`, whose cells are independent

Array = Any  # Numba's view of device memory


@cuda.jit(device=True)
def log_sum(x: float, y: float) -> float:
    """Return log(e^x + e^y); -inf for two -inf, NaN for a NaN."""
    difference = x - y
    if difference > 0:
        return x + math.log1p(math.exp(-difference))
    if difference <= 0:
        return y + math.log1p(math.exp(difference))
    return x if x == y else x + y  # two infinities of one sign, or a NaN


@cuda.jit(device=True)
def _ways_in(log_probs: Array, b: int, t: int, u: int, tokens: int, backward: bool) -> tuple[float, float]:
    """Return log-probabilities of the blank and of the label that enter node (t, u), or leave it if backward.

    0 where there is no such step: the term it belongs to is then -inf or left out.
    """
    if backward:
        return log_probs[1, b, t, u], log_probs[0, b, t, u] if u < tokens else 0.0
    return log_probs[1, b, t - 1, u] if t > 0 else 0.0, log_probs[0, b, t, u - 1] if u > 0 else 0.0


@cuda.jit
def variables_kernel(log_probs: Array, lengths: Array, variables: Array) -> None:
    """Fill variables [2, B, T, M] with log-probabilities of reaching (t, u), and of ending from there.

    log_probs: [2, B, T, M] float64, of labels (not read in the last state) and of blanks. lengths: [2, B] int64, of
    frames and of tokens; nothing beyond them is read or written. Grid: (B, 2), the second block of an utterance for
    the backward variables, which are forward variables of the reversed lattice.
    """
    b, i = cuda.blockIdx.x, cuda.threadIdx.x  # i: number of the state, counted from the end at which the block begins
    backward = cuda.blockIdx.y == 1
    frames, tokens = lengths[0, b], lengths[1, b]
    before = cuda.shared.array((2, MOST_STATES), float64)  # values of this diagonal and the one before, in turns
    value = 0.0 if i == 0 else -math.inf  # value of this state, in the frame before
    t = frames - 1 if backward else 0
    u = tokens - i if backward else i
    step = -1 if backward else 1
    by_blank, by_label = 0.0, 0.0
    if i <= tokens:
        by_blank, by_label = _ways_in(log_probs, b, t, u, tokens, backward)
    for diagonal in range(frames + tokens):
        if i <= tokens and i <= diagonal < i + frames:
            value, label_now = value + by_blank, by_label
            if diagonal + 1 < i + frames:  # prefetch: loaded now, the next frame's values do not stall its step
                by_blank, by_label = _ways_in(log_probs, b, t + step, u, tokens, backward)
            if i > 0:
                value = log_sum(value, before[(diagonal + 1) & 1, i - 1] + label_now)
            before[diagonal & 1, i] = value
            variables[cuda.blockIdx.y, b, t, u] = value
            t += step
        cuda.syncthreads()


@cuda.jit
def occupancies_kernel(log_probs: Array, lengths: Array, variables: Array) -> None:
    """Overwrite log_probs with the occupancies of labels and blanks, 0 beyond the lengths.

    Arguments are those of `variables_kernel`, variables as filled by it. Grid: a thread for each cell [B, T, M].
    """
    num_frames, num_states = log_probs.shape[2], log_probs.shape[3]
    cell = cuda.grid(1)
    b, t, u = cell // (num_frames * num_states), cell // num_states % num_frames, cell % num_states
    if b >= log_probs.shape[1]:
        return
    last_frame, tokens = lengths[0, b] - 1, lengths[1, b]
    label, blank = 0.0, 0.0
    if t <= last_frame and u <= tokens:
        start = variables[0, b, t, u] - variables[1, b, 0, 0]
        if u < tokens:
            label = math.exp(start + log_probs[0, b, t, u] + variables[1, b, t, u + 1])
        if t < last_frame:
            blank = math.exp(start + log_probs[1, b, t, u] + variables[1, b, t + 1, u])
        elif u == tokens:
            blank = math.exp(start + log_probs[1, b, t, u])
    log_probs[0, b, t, u], log_probs[1, b, t, u] = label, blank


def cuda_occupancies(
    label: torch.Tensor, blank: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `lattice_occupancies` of float64 CUDA tensors on torch's stream, without waiting for the device.

    M is at most `MOST_STATES`.
    """
    batch, _, num_states = blank.shape
    log_probs = blank.new_empty(2, *blank.shape)
    log_probs[0, :, :, :-1], log_probs[1] = label, blank
    variables, lengths = torch.empty_like(log_probs), torch.stack((encoded_lengths, target_lengths))
    with cuda.gpus[blank.device.index]:
        stream = cuda.external_stream(torch.cuda.current_stream(blank.device).cuda_stream)
        # Three arrays in place of seven: Numba needs some 0.05 ms for each.
        arrays = [cuda.as_cuda_array(each, sync=False) for each in (log_probs, lengths, variables)]
        variables_kernel[(batch, 2), WARP * math.ceil(num_states / WARP), stream](*arrays)
        occupancies_kernel[math.ceil(blank.numel() / CELL_THREADS), CELL_THREADS, stream](*arrays)
    return -variables[1, :, 0, 0], log_probs[0, :, :, :-1], log_probs[1]
