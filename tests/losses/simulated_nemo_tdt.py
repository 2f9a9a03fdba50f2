"""Run by test_tdt in a process of its own: the kernels of NeMo's `tdt`, which needs a GPU, in Numba's simulator."""

import os
import sys

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # read when numba is imported

import numpy as np
import torch
from nemo.collections.asr.parts.numba.rnnt_loss.utils.cuda_utils import gpu_rnnt_kernel as kernels

from nemo_codert.losses import joint_tdt_loss

DURATIONS, SIGMA, FASTEMIT = [0, 1, 2], 0.05, 0.25
THREADS = 8  # of a block of NeMo's gradient kernel


def nemos(
    logits: torch.Tensor, targets: torch.Tensor, lengths: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [B] and the gradient of their sum for logits [B, T, U+1, V+1+N], as NeMo's GPUTDT computes them."""
    tokens, lasting = logits.split([logits.shape[3] - len(DURATIONS), len(DURATIONS)], -1)
    lasting = lasting.detach().clone().requires_grad_()
    inputs = tokens, lasting.log_softmax(-1), -tokens.logsumexp(-1)
    acts, durations, denominator = (each.detach().numpy().ravel().copy() for each in inputs)
    alpha, beta = np.zeros(denominator.shape), np.zeros(denominator.shape)
    forward, backward = np.zeros(len(logits)), np.zeros(len(logits))
    classes, steps = tokens.shape[3], (np.array(DURATIONS), len(DURATIONS))
    rest = *(each.numpy() for each in (*lengths, targets)), *logits.shape[:3], classes, classes - 1, *steps
    given, grid = (acts, durations, denominator, SIGMA), (len(logits), logits.shape[2])
    kernels.compute_tdt_alphas_kernel[grid](*given, alpha, forward, *rest)
    kernels.compute_tdt_betas_kernel[grid](*given, beta, backward, *rest)
    kernels.GPU_RNNT_THREAD_SIZE = THREADS
    of_tokens, of_durations = np.zeros(acts.shape), np.zeros(durations.shape)
    kernels.compute_tdt_grad_kernel[len(denominator), THREADS](
        of_tokens, of_durations, *given, alpha, beta, forward, *rest, FASTEMIT, 0.0
    )
    lasting.log_softmax(-1).backward(torch.from_numpy(of_durations).view(lasting.shape))
    gradient = torch.cat((torch.from_numpy(of_tokens).view(tokens.shape), lasting.grad), -1)
    return torch.from_numpy(-forward * (1 + FASTEMIT)), gradient


if __name__ == "__main__":
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 7, dtype=torch.float64)
    targets, lengths = torch.tensor([[0, 2], [1, 0]]), (torch.tensor([5, 3]), torch.tensor([2, 1]))
    leaf = logits.clone().requires_grad_()
    options = {"durations": DURATIONS, "blank": 3, "sigma": SIGMA, "fastemit_lambda": FASTEMIT, "reduction": "none"}
    losses = joint_tdt_loss(leaf, targets, *lengths, **options)
    losses.sum().backward()
    for ours, wanted in zip((losses.detach(), leaf.grad), nemos(logits, targets, lengths), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    sys.stdout.write("as NeMo's")
