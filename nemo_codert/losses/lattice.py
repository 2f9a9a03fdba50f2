"""The RNN-T forward-backward over label and blank log-probabilities (Graves, arXiv:1211.3711, equations 16 to 21).

Shared by the additive and the full-joint loss: the recursion in float64 (compiled by Numba on CPU and CUDA, torch
elsewhere and where it cannot be compiled) and its gradient with FastEmit (arXiv:2010.11148). Imports torch,
`batch_checks`, `cpu_kernels`, `frames`; numba and `cuda` only where a tensor is on a GPU.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states

import logging
from functools import cache

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad

from nemo_codert.losses.batch_checks import check_fastemit
from nemo_codert.losses.cpu_kernels import lattice_kernels
from nemo_codert.losses.frames import valid_frames

logger = logging.getLogger(__name__)


def _numba_occupancies(
    label: torch.Tensor, blank: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `lattice_occupancies` of float64 CPU tensors, by the compiled kernel where it can be built."""
    kernels = lattice_kernels()
    if kernels is None:
        return _torch_occupancies(label, blank, encoded_lengths, target_lengths)
    label, blank, losses = label.contiguous(), blank.contiguous(), label.new_empty(len(label))
    occupancies = label.exp(), blank.exp()
    lengths = encoded_lengths.contiguous(), target_lengths.contiguous()
    kernels.lattice_kernel(*(x.numpy() for x in (label, blank, *occupancies, *lengths, losses)))
    return losses, *occupancies


@cache
def has_cuda_kernels() -> bool:
    """Return whether Numba can compile for CUDA. Warns once if not: the torch recursion is several times slower."""
    try:
        from numba import cuda

        available = cuda.is_available()
    except ImportError:
        available = False
    if not available:
        logger.warning(
            "Numba finds no CUDA toolkit: the RNN-T recursion is torch's, several times slower. See numba -s"
        )
    return available


def _cuda_occupancies(
    label: torch.Tensor, blank: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `lattice_occupancies` of float64 CUDA tensors, by the compiled kernels where a block has the threads."""
    compute = _torch_occupancies
    if has_cuda_kernels():
        # Imported here: Numba's CUDA half is needed on a GPU only.
        from nemo_codert.losses.cuda.lattice_kernels import MOST_STATES, cuda_occupancies

        if blank.shape[2] <= MOST_STATES:
            compute = cuda_occupancies
    return compute(label, blank, encoded_lengths, target_lengths)


def skew_nodes(nodes: torch.Tensor) -> torch.Tensor:
    """Turn [B, T+1, M] into [T+M, B, M]: row n holds the anti-diagonal t + u = n, -inf outside the lattice."""
    batch, num_rows, num_states = nodes.shape
    rows = pad(nodes.transpose(1, 2), (0, num_states), value=-torch.inf).flatten(1)  # [B, M * (T+1+M)]
    width = num_rows + num_states - 1
    return rows[:, : num_states * width].view(batch, num_states, width).permute(2, 0, 1)


def reverse_nodes(nodes: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor) -> torch.Tensor:
    """Exchange (t, u) and (T_b - t, U_b - u) of [B, T+1, M] in every utterance b; -inf outside its lattice."""
    batch, num_rows, num_states = nodes.shape
    t = (encoded_lengths[:, None] - torch.arange(num_rows, device=nodes.device))[:, :, None]  # [B, T+1, 1]
    u = (target_lengths[:, None] - torch.arange(num_states, device=nodes.device))[:, None, :]  # [B, 1, M]
    b = torch.arange(batch, device=nodes.device)[:, None, None]
    return nodes[b, t.clamp(min=0), u.clamp(min=0)].masked_fill((t < 0) | (u < 0), -torch.inf)


def _forward_by_diagonals(by_blank: torch.Tensor, by_label: torch.Tensor) -> torch.Tensor:
    """Return forward variables [B, T+1, M], given log-probabilities of entering each node by a blank and a label."""
    batch, num_rows, num_states = by_blank.shape
    by_blank, by_label = skew_nodes(by_blank), skew_nodes(by_label)
    diagonals = torch.full_like(by_blank, -torch.inf, memory_format=torch.contiguous_format)
    diagonals[0, :, 0] = 0.0
    for n in range(1, len(diagonals)):
        before = diagonals[n - 1]
        # No label enters state 0: by_label is -inf there, and the value that `roll` wraps around drops out.
        torch.logaddexp(before + by_blank[n], before.roll(1, dims=1) + by_label[n], out=diagonals[n])
    t = torch.arange(num_rows, device=diagonals.device)[:, None]
    u = torch.arange(num_states, device=diagonals.device)[None, :]
    return diagonals[t + u, :, u].permute(2, 0, 1)


def _torch_occupancies(
    label: torch.Tensor, blank: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `lattice_occupancies` of float64 tensors on any device, in T + U vectorised steps.

    The backward variables are the forward variables of the reversed lattice, so both run in one recursion. The
    lattice gets one more row: an utterance ends in the node (T_b, U_b), which only its last blank enters.
    """
    batch, num_frames, num_states = blank.shape
    frames = valid_frames(encoded_lengths, num_frames)[:, :, None]
    blank = blank.masked_fill(~(frames & valid_frames(target_lengths + 1, num_states)[:, None]), -torch.inf)
    label = label.masked_fill(~(frames & valid_frames(target_lengths, num_states - 1)[:, None]), -torch.inf)
    lengths = encoded_lengths, target_lengths
    by_blank = pad(blank, (0, 0, 1, 0), value=-torch.inf), reverse_nodes(pad(blank, (0, 0, 0, 1)), *lengths)
    by_label = (
        pad(label, (1, 0, 0, 1), value=-torch.inf),
        reverse_nodes(pad(label, (0, 1, 0, 1), value=-torch.inf), *lengths),
    )
    alpha, beta = _forward_by_diagonals(torch.cat(by_blank), torch.cat(by_label)).split(batch)  # [B, T+1, M]
    log_likelihood = alpha[torch.arange(batch, device=blank.device), encoded_lengths, target_lengths]
    beta = reverse_nodes(beta, *lengths)
    start = alpha[:, :-1] - log_likelihood[:, None, None]  # [B, T, M]
    label_occupancy = (start[:, :, :-1] + label + beta[:, :-1, 1:]).exp()
    return -log_likelihood, label_occupancy, (start + blank + beta[:, 1:]).exp()


def lattice_occupancies(
    label_log_probs: torch.Tensor,
    blank_log_probs: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the forward-backward recursion of the RNN-T lattice in float64, without a graph.

    Padding is never read. A likelihood of 0 gives an infinite loss and NaN occupancies.

    Args:
        label_log_probs: [B, T, U] float, log-probability of emitting target u + 1 in frame t after u tokens.
        blank_log_probs: [B, T, U+1] float, log-probability of the blank in frame t after u tokens.
        encoded_lengths: [B] int64 in frames, 1..T.
        target_lengths: [B] int64 in tokens, 0..U.

    Returns:
        Negative log-likelihoods [B] in nats, and the posterior probabilities of each label step [B, T, U] and of each
        blank step [B, T, U+1], 0 beyond the lengths; all float64.
    """
    compute = {"cpu": _numba_occupancies, "cuda": _cuda_occupancies}.get(
        blank_log_probs.device.type, _torch_occupancies
    )
    with torch.no_grad():
        return compute(label_log_probs.double(), blank_log_probs.double(), encoded_lengths, target_lengths)


class RNNTLatticeFunction(torch.autograd.Function):
    """Per-utterance RNN-T losses [B] with the analytic gradient; see `rnnt_lattice_loss`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        label_log_probs: torch.Tensor,
        blank_log_probs: torch.Tensor,
        encoded_lengths: torch.Tensor,
        target_lengths: torch.Tensor,
        fastemit_lambda: float,
    ) -> torch.Tensor:
        losses, label_occupancy, blank_occupancy = lattice_occupancies(
            label_log_probs, blank_log_probs, encoded_lengths, target_lengths
        )
        ctx.save_for_backward(label_occupancy.to(label_log_probs.dtype), blank_occupancy.to(blank_log_probs.dtype))
        ctx.fastemit_lambda = fastemit_lambda
        return (losses * (1 + fastemit_lambda)).to(label_log_probs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        label_occupancy, blank_occupancy = ctx.saved_tensors
        upstream = -upstream[:, None, None]
        return label_occupancy * (upstream * (1 + ctx.fastemit_lambda)), blank_occupancy * upstream, None, None, None


def rnnt_lattice_loss(
    label_log_probs: torch.Tensor,
    blank_log_probs: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    fastemit_lambda: float,
) -> torch.Tensor:
    """Return RNN-T losses of log-probabilities, with the analytic gradient.

    FastEmit (arXiv:2010.11148) as in NeMo: the gradient of the label log-probabilities is scaled by 1 + lambda, that
    of the blanks is not, and the whole value is scaled by 1 + lambda. For lambda > 0 the gradient is therefore not the
    derivative of the value.

    Args:
        label_log_probs, blank_log_probs, encoded_lengths, target_lengths: as in `lattice_occupancies`.
        fastemit_lambda: 0 or more.

    Returns:
        Losses [B] in nats, of the type of label_log_probs.

    Raises:
        ValueError: negative lambda.
    """
    check_fastemit(fastemit_lambda)
    return RNNTLatticeFunction.apply(
        label_log_probs, blank_log_probs, encoded_lengths, target_lengths, fastemit_lambda
    )
