"""Run by test_on_cuda in a process of its own: the CUDA kernels of the recursion in Numba's simulator."""

import math
import os
import sys

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # read when numba is imported

import torch

from nemo_codert.losses.cuda.lattice_kernels import occupancies_kernel, variables_kernel
from nemo_codert.losses.cuda.tdt_kernels import tdt_occupancies_kernel, tdt_variables_kernel
from nemo_codert.losses.lattice import lattice_occupancies
from nemo_codert.losses.tdt_lattice import _torch_occupancies


def simulate(batch: int, num_frames: int, num_tokens: int) -> None:
    """Compare losses and occupancies of random ragged lattices with the CPU's; a label or two is impossible."""
    num_states = num_tokens + 1
    log_probs = 3 * torch.randn(2, batch, num_frames, num_states, dtype=torch.float64) - 4
    log_probs[0, :, 0, :1] = -math.inf if num_frames > 1 else 0.0
    lengths = torch.stack([torch.randint(1, most + 1, (batch,)) for most in (num_frames, num_states)])
    lengths[:, 0] = torch.tensor([num_frames, num_states])
    lengths[1] -= 1  # tokens
    expected = lattice_occupancies(log_probs[0, :, :, :-1], log_probs[1], *lengths)
    log_probs[0, :, :, -1] = math.nan  # no label leaves the last state
    variables = torch.full_like(log_probs, math.nan)
    arrays = [each.numpy() for each in (log_probs, lengths, variables)]
    variables_kernel[(batch, 2), 32](*arrays)
    occupancies_kernel[math.ceil(variables[0].numel() / 16), 16](*arrays)
    results = -variables[1, :, 0, 0], log_probs[0, :, :, :-1], log_probs[1]
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-12)


def simulate_tdt(batch: int, num_frames: int, num_tokens: int, durations: tuple[int, ...]) -> None:
    """Compare losses and occupancies of random ragged TDT lattices with torch's."""
    num_states = num_tokens + 1
    log_probs = 2 * torch.randn(batch, num_frames, num_states, 2 + len(durations), dtype=torch.float64) - 3
    lengths = torch.stack([torch.randint(1, most + 1, (batch,)) for most in (num_frames, num_states)])
    lengths[:, 0] = torch.tensor([num_frames, num_states])
    lengths[1] -= 1  # tokens
    expected = _torch_occupancies(log_probs, *lengths, durations)
    log_probs[:, :, -1, 0] = math.nan  # no label leaves the last state
    variables = torch.full((2, *log_probs.shape[:3]), math.nan, dtype=torch.float64)
    arrays = [each.numpy() for each in (log_probs, lengths, torch.tensor(durations), variables)]
    tdt_variables_kernel[(batch, 2), 32](*arrays)
    tdt_occupancies_kernel[math.ceil(variables[0].numel() / 16), 16](*arrays)
    for result, wanted in zip((-variables[1, :, 0, 0], log_probs), expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-12)


if __name__ == "__main__":
    torch.manual_seed(0)
    for sizes in ((3, 5, 3), (1, 1, 0), (2, 1, 2), (3, 4, 0)):
        simulate(*sizes)
    for sizes, durations in (
        ((3, 5, 3), (0, 1, 2)),
        ((1, 1, 0), (0, 1)),
        ((2, 4, 0), (1, 2)),
        ((2, 7, 2), (2, 0, 1, 9)),
    ):
        simulate_tdt(*sizes, durations)
    sys.stdout.write("as on the CPU")
