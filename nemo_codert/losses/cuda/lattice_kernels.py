"""The RNN-T forward-backward in float64 on a CUDA device, as Numba-CUDA kernels (compiled at the first call).

Forward and backward variables run side by side, a block for each of an utterance, a thread for each state, an
anti-diagonal of the lattice at a time. Imports torch and numba's CUDA half; kept apart, so that only a GPU needs it.
"""

# B batch, T encoder frames, U target tokens, M = U + 1 prediction states

import math
import warnings
from typing import Any

import torch
from numba import cuda, float64

warnings.filterwarnings("ignore", message=".*Grid size.*under-utilization")  # few utterances are few blocks

WARP = 32  # threads
MOST_STATES = 512  # threads of a block, each of which can then have 128 registers
CELL_THREADS = 256  # of a block of the kernel that has no order to keep

Array = Any  # Numba's view of memory on the device


@cuda.jit(device=True)
def _log_sum(x: float, y: float) -> float:
    """log(e^x + e^y); -inf for two of these, NaN for a NaN."""
    difference = x - y
    if difference > 0:
        return x + math.log1p(math.exp(-difference))
    if difference <= 0:
        return y + math.log1p(math.exp(difference))
    return x if x == y else x + y  # two infinities of one sign, or a NaN


@cuda.jit(device=True)
def _ways_in(log_probs: Array, b: int, t: int, u: int, tokens: int, backward: bool) -> tuple[float, float]:
    """Log-probabilities of the blank and of the label by which node (t, u) is entered, or left if backward; 0 where
    there is none: the sum then has nothing to add it to."""
    if backward:
        return log_probs[1, b, t, u], log_probs[0, b, t, u] if u < tokens else 0.0
    return log_probs[1, b, t - 1, u] if t > 0 else 0.0, log_probs[0, b, t, u - 1] if u > 0 else 0.0


@cuda.jit
def variables_kernel(log_probs: Array, lengths: Array, variables: Array) -> None:
    """Fill variables [2, B, T, M], logarithms: of having reached (t, u), and of ending from there.

    log_probs: [2, B, T, M] float64, of labels (nothing in the last state) and of blanks. lengths: [2, B] int64, of
    frames and of tokens. Beyond them nothing is read or written. Grid: (B, 2), the second block of an utterance for
    the backward variables, which are the forward ones from the other end.
    """
    b, i = cuda.blockIdx.x, cuda.threadIdx.x  # i: of the state, from the end that is begun at
    backward = cuda.blockIdx.y == 1
    frames, tokens = lengths[0, b], lengths[1, b]
    before = cuda.shared.array((2, MOST_STATES), float64)  # of this diagonal and of the one before, in turns
    value = 0.0 if i == 0 else -math.inf  # of this state, in the frame before
    t = frames - 1 if backward else 0
    u = tokens - i if backward else i
    step = -1 if backward else 1
    by_blank, by_label = 0.0, 0.0
    if i <= tokens:
        by_blank, by_label = _ways_in(log_probs, b, t, u, tokens, backward)
    for diagonal in range(frames + tokens):
        if i <= tokens and i <= diagonal < i + frames:
            value, label_now = value + by_blank, by_label
            if diagonal + 1 < i + frames:  # asked for now, the next frame's are here when that comes
                by_blank, by_label = _ways_in(log_probs, b, t + step, u, tokens, backward)
            if i > 0:
                value = _log_sum(value, before[(diagonal + 1) & 1, i - 1] + label_now)
            before[diagonal & 1, i] = value
            variables[cuda.blockIdx.y, b, t, u] = value
            t += step
        cuda.syncthreads()


@cuda.jit
def occupancies_kernel(log_probs: Array, lengths: Array, variables: Array) -> None:
    """Put the occupancies of labels and blanks in the place of log_probs, 0 beyond the lengths.

    As `variables_kernel` left them. Grid: a thread for each cell [B, T, M].
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
    """`lattice_occupancies` of float64 CUDA tensors, M at most `MOST_STATES`, on torch's stream; no host waits."""
    batch, _, num_states = blank.shape
    log_probs = blank.new_empty(2, *blank.shape)
    log_probs[0, :, :, :-1], log_probs[1] = label, blank
    variables, lengths = torch.empty_like(log_probs), torch.stack((encoded_lengths, target_lengths))
    with cuda.gpus[blank.device.index]:
        stream = cuda.external_stream(torch.cuda.current_stream(blank.device).cuda_stream)
        # Few arrays: Numba takes some 0.05 ms for each.
        arrays = [cuda.as_cuda_array(each, sync=False) for each in (log_probs, lengths, variables)]
        variables_kernel[(batch, 2), WARP * math.ceil(num_states / WARP), stream](*arrays)
        occupancies_kernel[math.ceil(blank.numel() / CELL_THREADS), CELL_THREADS, stream](*arrays)
    return -variables[1, :, 0, 0], log_probs[0, :, :, :-1], log_probs[1]
