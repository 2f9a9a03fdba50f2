"""The TDT forward-backward in float64 on a CUDA device, as Numba-CUDA kernels (compiled at the first call).

Blocks and threads as in `lattice_kernels`: two blocks for each utterance, a thread for each state, one anti-diagonal
at a time. An arc may start several diagonals before, so values are read from the device's memory. Imports torch,
numba's CUDA half, which only a GPU needs, and `lattice_kernels`.
"""

# B batch, T encoder frames, U target tokens, M = U + 1 prediction states, N durations. The 2 + N numbers of a node are
# those of the next label, of the blank, and of each duration.

import math
from functools import lru_cache

import torch
from numba import cuda

from nemo_codert.losses.cuda.lattice_kernels import CELL_THREADS, WARP, Array, log_sum

LABEL, BLANK, FIRST_DURATION = 0, 1, 2  # places of a node's numbers


@cuda.jit(device=True)
def _reached(log_probs: Array, variables: Array, durations: Array, b: int, t: int, u: int) -> float:
    """Return the log-probability of reaching node (t, u), given those of all nodes before."""
    value = 0.0 if t == 0 and u == 0 else -math.inf
    for i in range(len(durations)):
        before = t - durations[i]
        if before < 0:
            continue
        if durations[i] > 0:
            arc = log_probs[b, before, u, BLANK] + log_probs[b, before, u, FIRST_DURATION + i]
            value = log_sum(value, variables[0, b, before, u] + arc)
        if u > 0:
            arc = log_probs[b, before, u - 1, LABEL] + log_probs[b, before, u - 1, FIRST_DURATION + i]
            value = log_sum(value, variables[0, b, before, u - 1] + arc)
    return value


@cuda.jit(device=True)
def _rest(variables: Array, step: int, duration: int, b: int, t: int, u: int, frames: int, tokens: int) -> float:
    """Return the log-probability of ending after an arc from node (t, u), -inf where there is no such arc."""
    end = t + duration
    if step == LABEL:
        return variables[1, b, end, u + 1] if u < tokens and end < frames else -math.inf
    if duration == 0 or end > frames:
        return -math.inf
    if end == frames:
        return 0.0 if u == tokens else -math.inf
    return variables[1, b, end, u]


@cuda.jit
def tdt_variables_kernel(log_probs: Array, lengths: Array, durations: Array, variables: Array) -> None:
    """Fill variables [2, B, T, M] with log-probabilities of reaching (t, u), and of ending from there.

    log_probs: [B, T, M, 2 + N] float64; labels are not read in the last state. lengths: [2, B] int64, of frames and of
    tokens; nothing beyond them is read or written. durations: [N] int64. Grid: (B, 2), the second block of an
    utterance for the backward variables.
    """
    b, u = cuda.blockIdx.x, cuda.threadIdx.x
    backward = cuda.blockIdx.y == 1
    frames, tokens = lengths[0, b], lengths[1, b]
    diagonals = frames + tokens
    for diagonal in range(diagonals):
        t = (diagonals - 1 - diagonal if backward else diagonal) - u
        if u <= tokens and 0 <= t < frames:
            if backward:
                value = -math.inf
                for i in range(len(durations)):
                    for step in range(2):
                        rest = _rest(variables, step, durations[i], b, t, u, frames, tokens)
                        if rest != -math.inf:
                            arc = log_probs[b, t, u, step] + log_probs[b, t, u, FIRST_DURATION + i]
                            value = log_sum(value, arc + rest)
                variables[1, b, t, u] = value
            else:
                variables[0, b, t, u] = _reached(log_probs, variables, durations, b, t, u)
        cuda.syncthreads()


@cuda.jit
def tdt_occupancies_kernel(log_probs: Array, lengths: Array, durations: Array, variables: Array) -> None:
    """Overwrite log_probs with the occupancies of labels, blanks and durations, 0 beyond the lengths.

    Arguments are those of `tdt_variables_kernel`, variables as filled by it. Grid: a thread for each cell [B, T, M].
    """
    num_frames, num_states = log_probs.shape[1], log_probs.shape[2]
    cell = cuda.grid(1)
    b, t, u = cell // (num_frames * num_states), cell // num_states % num_frames, cell % num_states
    if b >= log_probs.shape[0]:
        return
    frames, tokens = lengths[0, b], lengths[1, b]
    valid = t < frames and u <= tokens
    start = variables[0, b, t, u] - variables[1, b, 0, 0] if valid else 0.0
    of_label, of_blank = 0.0, 0.0
    for i in range(len(durations)):
        occupancy = 0.0
        if valid:
            for step in range(2):
                rest = _rest(variables, step, durations[i], b, t, u, frames, tokens)
                if rest != -math.inf:
                    arc = log_probs[b, t, u, step] + log_probs[b, t, u, FIRST_DURATION + i]
                    share = math.exp(start + arc + rest)
                    occupancy += share
                    if step == LABEL:
                        of_label += share
                    else:
                        of_blank += share
        log_probs[b, t, u, FIRST_DURATION + i] = occupancy
    log_probs[b, t, u, LABEL], log_probs[b, t, u, BLANK] = of_label, of_blank


@lru_cache
def _on_device(durations: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return durations [N] int64; the host waits for the copy of the first call only."""
    return torch.tensor(durations, device=device)


def cuda_tdt_occupancies(
    log_probs: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor, durations: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return losses [B] and occupancies of float64 CUDA tensors on torch's stream, without waiting for the device.

    log_probs: [B, T, M, 2 + N], overwritten; M is at most `lattice_kernels.MOST_STATES`.
    """
    batch, num_frames, num_states, _ = log_probs.shape
    variables = log_probs.new_empty(2, batch, num_frames, num_states)
    lengths = torch.stack((encoded_lengths, target_lengths))
    steps = _on_device(durations, log_probs.device)
    with cuda.gpus[log_probs.device.index]:
        stream = cuda.external_stream(torch.cuda.current_stream(log_probs.device).cuda_stream)
        arrays = [cuda.as_cuda_array(each, sync=False) for each in (log_probs, lengths, steps, variables)]
        tdt_variables_kernel[(batch, 2), WARP * math.ceil(num_states / WARP), stream](*arrays)
        cells = math.ceil(batch * num_frames * num_states / CELL_THREADS)
        tdt_occupancies_kernel[cells, CELL_THREADS, stream](*arrays)
    return -variables[1, :, 0, 0], log_probs
