"""The RNN-T forward-backward over label and blank log-probabilities (Graves, arXiv:1211.3711, equations 16 to 21).

What the additive and the full-joint loss share: argument checks, the recursion in float64 (Numba on CPU and CUDA,
torch elsewhere), its gradient with FastEmit (arXiv:2010.11148), the reductions. Imports torch, numpy, numba, `frames`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad

from nemo_codert.losses.cpu.lattice_kernels import lattice_kernel as _numba_kernel
from nemo_codert.losses.cpu.lattice_kernels import target_kernel
from nemo_codert.losses.frames import valid_cells, valid_frames

logger = logging.getLogger(__name__)

LatticeLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""The signature of `rnnt_lattice_loss`: who runs the recursion."""

REDUCTIONS = ("none", "sum", "mean", "mean_batch", "mean_volume")


class TransducerBatch(NamedTuple):
    """Checked targets [B, U] int64 (0 in the padding, U the longest target) and lengths [B] int64, on one device."""

    targets: torch.Tensor
    encoded_lengths: torch.Tensor
    target_lengths: torch.Tensor
    sizes: list[tuple[int, int]]  # encoded and target length of every utterance, known to the host

    @property
    def num_frames(self) -> int:
        """The longest encoded length."""
        return max(frames for frames, _ in self.sizes)

    def padding(self) -> torch.Tensor | None:
        """[B, T, M] bool, True beyond the lengths; None where all utterances are equally long."""
        if len(set(self.sizes)) == 1:
            return None
        lengths = self.encoded_lengths, self.target_lengths
        return ~valid_cells(*lengths, self.num_frames, self.targets.shape[1] + 1)


def _check_lengths(name: str, lengths: list[int], low: int, high: int) -> None:
    """Raise ValueError unless low <= lengths <= high."""
    if min(lengths) < low or max(lengths) > high:
        raise ValueError(f"{name} must lie between {low} and {high}, got {lengths}")


def _refused(targets: torch.Tensor, target_lengths: torch.Tensor, blank: int, num_classes: int) -> torch.Tensor:
    """[B, U] bool, True where a target within the lengths is the blank or no class."""
    given = valid_frames(target_lengths, targets.shape[1])
    return given & ((targets == blank) | (targets < 0) | (targets >= num_classes))


def _given_targets_on_cpu(
    targets: torch.Tensor, target_lengths: torch.Tensor, blank: int, num_classes: int
) -> tuple[torch.Tensor, bool]:
    """Targets with 0 in the padding, and whether any is `_refused`; one call in place of a dozen."""
    given = np.zeros(targets.shape, np.int64)
    fault = target_kernel(blank, num_classes, targets.contiguous().numpy(), target_lengths.contiguous().numpy(), given)
    return torch.from_numpy(given), fault > 0


def check_transducer_batch(
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    lattice_shape: tuple[int, int, int, int],
    blank: int,
    device: torch.device,
) -> TransducerBatch:
    """Check what a user hands to an RNN-T loss against lattice_shape, the sizes (B, T, U+1, V+1) of the logits.

    targets: [B, U or more] int. encoded_lengths: [B] in frames, 1..T. target_lengths: [B] in tokens, 0..U.
    Raises ValueError for any shape, length, blank or token out of place; padding is not looked at. One copy to the
    host tells lengths and faults, however many there are.
    """
    batch, num_frames, num_states, num_classes = lattice_shape
    if targets.dim() != 2 or targets.shape[0] != batch:
        raise ValueError(f"targets must be [{batch}, U] like the logits' batch, got {tuple(targets.shape)}")
    if not 0 <= blank < num_classes:
        raise ValueError(f"blank must lie between 0 and V = {num_classes - 1}, got {blank}")
    for name, lengths in (("encoded_lengths", encoded_lengths), ("target_lengths", target_lengths)):
        if lengths.shape != (batch,) or batch == 0:
            shape = tuple(lengths.shape)
            raise ValueError(f"{name} must have shape ({batch},) with at least one utterance, got {shape}")
    encoded_lengths, target_lengths = encoded_lengths.to(device).long(), target_lengths.to(device).long()
    targets = targets.to(device).long()
    if device.type == "cpu":
        frames, tokens = encoded_lengths.tolist(), target_lengths.tolist()
        given, fault = _given_targets_on_cpu(targets, target_lengths, blank, num_classes)
    else:
        refused = _refused(targets, target_lengths, blank, num_classes)
        frames, tokens, faults = torch.stack([encoded_lengths, target_lengths, refused.sum(1)]).tolist()
        given, fault = targets * valid_frames(target_lengths, targets.shape[1]), any(faults)
    _check_lengths("encoded_lengths", frames, 1, num_frames)
    _check_lengths("target_lengths", tokens, 0, min(num_states - 1, targets.shape[1]))
    if fault:
        refused = _refused(targets, target_lengths, blank, num_classes)
        raise ValueError(
            f"targets must lie between 0 and V = {num_classes - 1} and differ from blank = {blank}, "
            f"got {sorted(set(targets[refused].tolist()))}"
        )
    return TransducerBatch(
        given[:, : max(tokens)], encoded_lengths, target_lengths, list(zip(frames, tokens, strict=True))
    )


def check_reduction(reduction: str) -> None:
    """Raise ValueError for a reduction `reduce_losses` does not know."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"RNN-T loss reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def check_fastemit(fastemit_lambda: float) -> None:
    """Raise ValueError for a negative lambda."""
    if not fastemit_lambda >= 0:
        raise ValueError(f"fastemit_lambda must be 0 or more, got {fastemit_lambda}")


def reduce_losses(losses: torch.Tensor, target_lengths: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce per-utterance losses [B] as NeMo's RNNTLoss does.

    `none`: [B]. `sum`. `mean_batch`: mean over utterances. `mean`: each loss over its number of tokens, then the mean
    over utterances. `mean_volume`: summed losses over summed tokens. An empty target counts as one token in `mean`, as
    does a batch of nothing but empty targets in `mean_volume` (NeMo divides by zero there).
    """
    check_reduction(reduction)
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean_batch":
        return losses.mean()
    if reduction == "mean":
        return (losses / target_lengths.clamp(min=1)).mean()
    if reduction == "mean_volume":
        return losses.sum() / target_lengths.sum().clamp(min=1)
    return losses


def reduction_gradient(upstream: np.ndarray, target_lengths: np.ndarray, reduction: str) -> np.ndarray:
    """[B] float64, what `reduce_losses` passes back of an upstream gradient: a scalar, or [B] for `none`."""
    each = np.ones(len(target_lengths))
    if reduction in ("mean", "mean_batch"):
        each /= len(each)
    if reduction == "mean":
        each /= np.maximum(target_lengths, 1)
    if reduction == "mean_volume":
        each /= max(target_lengths.sum(), 1)
    return upstream * each


def _numba_occupancies(
    label: torch.Tensor, blank: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`lattice_occupancies` of float64 CPU tensors by the compiled kernel."""
    label, blank, losses = label.contiguous(), blank.contiguous(), label.new_empty(len(label))
    occupancies = label.exp(), blank.exp()
    lengths = encoded_lengths.contiguous(), target_lengths.contiguous()
    _numba_kernel(*(x.numpy() for x in (label, blank, *occupancies, *lengths, losses)))
    return losses, *occupancies


@lru_cache
def _has_kernels() -> bool:
    """True where Numba can compile for CUDA. What it is without: slow."""
    from numba import cuda

    if not cuda.is_available():
        logger.warning(
            "Numba finds no CUDA toolkit: the RNN-T recursion is torch's, several times slower. See numba -s"
        )
    return cuda.is_available()


def _cuda_occupancies(
    label: torch.Tensor, blank: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`lattice_occupancies` of float64 CUDA tensors by the compiled kernels, where a block has the threads."""
    compute = _torch_occupancies
    if _has_kernels():
        from nemo_codert.losses.cuda.lattice_kernels import (  # Numba's CUDA half, no use on a CPU
            MOST_STATES,
            cuda_occupancies,
        )

        if blank.shape[2] <= MOST_STATES:
            compute = cuda_occupancies
    return compute(label, blank, encoded_lengths, target_lengths)


def _skew(nodes: torch.Tensor) -> torch.Tensor:
    """[B, T+1, M] -> [T+M, B, M]: row n holds the anti-diagonal t + u = n, -inf where it leaves the lattice."""
    batch, num_rows, num_states = nodes.shape
    rows = pad(nodes.transpose(1, 2), (0, num_states), value=-torch.inf).flatten(1)  # [B, M * (T+1+M)]
    width = num_rows + num_states - 1
    return rows[:, : num_states * width].view(batch, num_states, width).permute(2, 0, 1)


def _reverse(nodes: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor) -> torch.Tensor:
    """[B, T+1, M] with (t, u) and (T_b - t, U_b - u) exchanged in every utterance b, -inf outside its lattice."""
    batch, num_rows, num_states = nodes.shape
    t = (encoded_lengths[:, None] - torch.arange(num_rows, device=nodes.device))[:, :, None]  # [B, T+1, 1]
    u = (target_lengths[:, None] - torch.arange(num_states, device=nodes.device))[:, None, :]  # [B, 1, M]
    b = torch.arange(batch, device=nodes.device)[:, None, None]
    return nodes[b, t.clamp(min=0), u.clamp(min=0)].masked_fill((t < 0) | (u < 0), -torch.inf)


def _forward_by_diagonals(by_blank: torch.Tensor, by_label: torch.Tensor) -> torch.Tensor:
    """Forward variables [B, T+1, M] from the log-probabilities of entering each node by a blank and by a label."""
    batch, num_rows, num_states = by_blank.shape
    by_blank, by_label = _skew(by_blank), _skew(by_label)
    diagonals = torch.full_like(by_blank, -torch.inf, memory_format=torch.contiguous_format)
    diagonals[0, :, 0] = 0.0
    for n in range(1, len(diagonals)):
        before = diagonals[n - 1]
        # What roll brings round to state 0 is lost: no label enters that state.
        torch.logaddexp(before + by_blank[n], before.roll(1, dims=1) + by_label[n], out=diagonals[n])
    t = torch.arange(num_rows, device=diagonals.device)[:, None]
    u = torch.arange(num_states, device=diagonals.device)[None, :]
    return diagonals[t + u, :, u].permute(2, 0, 1)


def _torch_occupancies(
    label: torch.Tensor, blank: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`lattice_occupancies` of float64 tensors on any device, T + U steps of vectorised work.

    The backward variables are the forward variables of the reversed lattice, so both run in one recursion. The
    lattice gets one more row: an utterance ends in the node (T_b, U_b), which only its last blank enters.
    """
    batch, num_frames, num_states = blank.shape
    frames = valid_frames(encoded_lengths, num_frames)[:, :, None]
    blank = blank.masked_fill(~(frames & valid_frames(target_lengths + 1, num_states)[:, None]), -torch.inf)
    label = label.masked_fill(~(frames & valid_frames(target_lengths, num_states - 1)[:, None]), -torch.inf)
    lengths = encoded_lengths, target_lengths
    by_blank = pad(blank, (0, 0, 1, 0), value=-torch.inf), _reverse(pad(blank, (0, 0, 0, 1)), *lengths)
    by_label = (
        pad(label, (1, 0, 0, 1), value=-torch.inf),
        _reverse(pad(label, (0, 1, 0, 1), value=-torch.inf), *lengths),
    )
    alpha, beta = _forward_by_diagonals(torch.cat(by_blank), torch.cat(by_label)).split(batch)  # [B, T+1, M]
    log_likelihood = alpha[torch.arange(batch, device=blank.device), encoded_lengths, target_lengths]
    beta = _reverse(beta, *lengths)
    start = alpha[:, :-1] - log_likelihood[:, None, None]  # [B, T, M]
    label_occupancy = (start[:, :, :-1] + label + beta[:, :-1, 1:]).exp()
    return -log_likelihood, label_occupancy, (start + blank + beta[:, 1:]).exp()


def lattice_occupancies(
    label_log_probs: torch.Tensor,
    blank_log_probs: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Forward-backward of the RNN-T lattice in float64: how likely the targets are, and by which steps.

    label_log_probs: [B, T, U], of emitting target u + 1 in frame t with u tokens emitted. blank_log_probs:
    [B, T, U+1]. encoded_lengths: [B] int64 in frames, 1..T. target_lengths: [B] int64 in tokens, 0..U.
    Returns negative log-likelihoods [B] in nats and the posterior probabilities of taking each label step [B, T, U]
    and each blank step [B, T, U+1], 0 beyond the lengths; no graph. Padding is never read. A likelihood of 0 gives
    inf and NaN occupancies.
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
    """Per-utterance RNN-T losses [B] in nats; arguments as in `lattice_occupancies`.

    FastEmit (arXiv:2010.11148) as NeMo has it: the gradient of the label log-probabilities is scaled by 1 + lambda,
    that of the blanks is not, and the value as a whole is scaled by 1 + lambda. So for lambda > 0 the gradient is not
    the derivative of the value. Raises ValueError for a negative lambda.
    """
    check_fastemit(fastemit_lambda)
    return RNNTLatticeFunction.apply(
        label_log_probs, blank_log_probs, encoded_lengths, target_lengths, fastemit_lambda
    )
