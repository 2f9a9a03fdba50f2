"""The TDT forward-backward over log-probabilities of label, blank and durations (Xu et al., arXiv:2304.06795).

From node (t, u) a label of duration d leads to (t + d, u + 1), a blank of duration d > 0 to (t + d, u); an utterance
begins in (0, 0), and ends with a blank from (T - d, U). Each arc has the probability of its token times that of its
duration. The lattice is [B, T, U+1, 2 + N], and the recursion float64: compiled by Numba on CPU and CUDA, torch
elsewhere and where it cannot be compiled. Imports torch, `cpu_kernels`, `frames`, `lattice`; numba and `cuda` only
where a tensor is on a GPU.
"""

# B batch, T encoder frames, U target tokens, M = U + 1 prediction states, N durations. The 2 + N numbers of a node are
# those of the next label, of the blank, and of each duration.

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad

from nemo_codert.losses.cpu_kernels import tdt_kernels
from nemo_codert.losses.frames import valid_cells, valid_frames
from nemo_codert.losses.lattice import has_cuda_kernels, reverse_nodes, skew_nodes
from nemo_codert.losses.tdt_paths import check_durations


class TDTOccupancies(NamedTuple):
    """Result of the recursion, float64; occupancies are 0 beyond the lengths."""

    losses: torch.Tensor  # [B], negative log-likelihoods in nats
    label: torch.Tensor  # [B, T, U], posterior probabilities of emitting target u + 1 from a node, any duration
    blank: torch.Tensor  # [B, T, U+1], the same of the blank
    duration: torch.Tensor  # [B, T, U+1, N], the same of each duration, of label or blank


Found = tuple[torch.Tensor, torch.Tensor]  # losses [B] and occupancies [B, T, M, 2 + N]


def _numba_occupancies(
    log_probs: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor, durations: tuple[int, ...]
) -> Found:
    """Return losses and occupancies of CPU tensors, by the compiled kernel where it can be built."""
    kernels = tdt_kernels()
    if kernels is None:
        return _torch_occupancies(log_probs, encoded_lengths, target_lengths, durations)
    occupancies, losses = log_probs.exp(), log_probs.new_empty(len(log_probs))
    lengths = encoded_lengths.contiguous(), target_lengths.contiguous()
    arrays = log_probs, occupancies, torch.tensor(durations), *lengths, losses
    kernels.tdt_kernel(*(each.numpy() for each in arrays))
    return losses, occupancies


def _cuda_occupancies(
    log_probs: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor, durations: tuple[int, ...]
) -> Found:
    """Return losses and occupancies of CUDA tensors, by the compiled kernels where a block has the threads."""
    compute = _torch_occupancies
    if has_cuda_kernels():
        # Imported here: Numba's CUDA half is needed on a GPU only.
        from nemo_codert.losses.cuda.lattice_kernels import MOST_STATES
        from nemo_codert.losses.cuda.tdt_kernels import cuda_tdt_occupancies

        if log_probs.shape[2] <= MOST_STATES:
            compute = cuda_tdt_occupancies
    return compute(log_probs, encoded_lengths, target_lengths, durations)


# ---- torch ---------------------------------------------------------------------------------------------------------


class _Arcs(NamedTuple):
    """Log-probabilities of the arcs of one duration, by the node that they leave; -inf where there is no arc."""

    duration: int
    label: torch.Tensor  # [B, T, U]
    blank: torch.Tensor  # [B, T, M]


def _later(nodes: torch.Tensor, frames: int) -> torch.Tensor:
    """Move [B, R, M] to later frames; the first rows are -inf, and the last ones drop out."""
    return pad(nodes, (0, 0, frames, 0), value=-torch.inf)[:, : nodes.shape[1]]


def _earlier(nodes: torch.Tensor, frames: int) -> torch.Tensor:
    """Move [B, R, M] to earlier frames; the last rows are -inf, and the first ones drop out."""
    return pad(nodes, (0, 0, 0, frames), value=-torch.inf)[:, frames:]


def _arcs(
    log_probs: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor, durations: tuple[int, ...]
) -> list[_Arcs]:
    """Split a lattice [B, T, M, 2 + N] by durations."""
    _, num_frames, num_states, _ = log_probs.shape
    label, blank, *of_durations = log_probs.unbind(-1)
    valid = valid_cells(encoded_lengths, target_lengths, num_frames, num_states)
    has_label = valid & valid_frames(target_lengths, num_states)[:, None]
    found = []
    for duration, each in zip(durations, of_durations, strict=True):
        inside = valid_frames(encoded_lengths - duration, num_frames)[:, :, None]  # the label ends before the end
        labels = (label + each).masked_fill(~(has_label & inside), -torch.inf)[:, :, :-1]
        found.append(_Arcs(duration, labels, (blank + each).masked_fill(~valid | (duration == 0), -torch.inf)))
    return found


def _forward(
    by_label: Sequence[torch.Tensor], by_blank: Sequence[torch.Tensor], durations: Sequence[int]
) -> torch.Tensor:
    """Return forward variables [B, T+1, M], given log-probabilities of entering each node with each duration."""
    by_label, by_blank = ([skew_nodes(each) for each in nodes] for nodes in (by_label, by_blank))
    diagonals = torch.full_like(by_blank[0], -torch.inf, memory_format=torch.contiguous_format)
    diagonals[0, :, 0] = 0.0
    for n in range(1, len(diagonals)):
        terms = []
        for i, duration in enumerate(durations):
            if duration <= n:
                terms.append(diagonals[n - duration] + by_blank[i][n])
            if duration < n:
                # No label enters state 0: by_label is -inf there, and the value that `roll` wraps around drops out.
                terms.append(diagonals[n - 1 - duration].roll(1, dims=1) + by_label[i][n])
        if terms:
            diagonals[n] = reduce(torch.logaddexp, terms)
    num_states = diagonals.shape[2]
    t = torch.arange(len(diagonals) - num_states + 1, device=diagonals.device)[:, None]
    u = torch.arange(num_states, device=diagonals.device)[None, :]
    return diagonals[t + u, :, u].permute(2, 0, 1)


def _torch_occupancies(
    log_probs: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor, durations: tuple[int, ...]
) -> Found:
    """Return losses and occupancies of float64 tensors on any device, in T + U vectorised steps.

    The backward variables are the forward variables of the reversed lattice, so both run in one recursion. The
    lattice gets one more row: an utterance ends in the node (T_b, U_b), which only a blank enters.
    """
    batch, lengths = len(log_probs), (encoded_lengths, target_lengths)
    arcs = _arcs(log_probs, *lengths, durations)
    by_label, by_blank = [], []
    for duration, label, blank in arcs:
        label, blank = (pad(each, (0, 0, 0, 1), value=-torch.inf) for each in (label, blank))  # noqa: PLW2901
        entering = _later(pad(label, (1, 0), value=-torch.inf), duration)
        by_label.append(torch.cat((entering, reverse_nodes(pad(label, (0, 1), value=-torch.inf), *lengths))))
        by_blank.append(torch.cat((_later(blank, duration), reverse_nodes(blank, *lengths))))
    alpha, beta = _forward(by_label, by_blank, durations).split(batch)  # [B, T+1, M]
    log_likelihood = alpha[torch.arange(batch, device=alpha.device), encoded_lengths, target_lengths]
    beta = reverse_nodes(beta, *lengths)
    start = alpha[:, :-1] - log_likelihood[:, None, None]  # [B, T, M]
    occupancies = torch.zeros_like(log_probs)
    for i, (duration, label, blank) in enumerate(arcs):
        after = _earlier(beta, duration)[:, : start.shape[1]]
        of_label = pad((start[:, :, :-1] + label + after[:, :, 1:]).exp(), (0, 1))
        of_blank = (start + blank + after).exp()
        occupancies[..., 0] += of_label
        occupancies[..., 1] += of_blank
        occupancies[..., 2 + i] = of_label + of_blank
    return -log_likelihood, occupancies


# ---- the recursion, and the loss with its gradient -----------------------------------------------------------------


def tdt_lattice_occupancies(
    label_log_probs: torch.Tensor,
    blank_log_probs: torch.Tensor,
    duration_log_probs: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    durations: Sequence[int],
) -> TDTOccupancies:
    """Run the forward-backward recursion of the TDT lattice in float64, without a graph.

    Padding is never read. A likelihood of 0 gives an infinite loss and NaN occupancies.

    Args:
        label_log_probs: [B, T, U] float, log-probability of target u + 1 in frame t after u tokens.
        blank_log_probs: [B, T, U+1] float, log-probability of the blank in frame t after u tokens.
        duration_log_probs: [B, T, U+1, N] float, log-probabilities of the durations there.
        encoded_lengths: [B] int64 in frames, 1..T.
        target_lengths: [B] int64 in tokens, 0..U.
        durations: N different whole numbers of frames.

    Returns:
        Losses and occupancies. Label and blank together are the probability that an alignment passes the node, and so
        are all durations together.
    """
    compute = {"cpu": _numba_occupancies, "cuda": _cuda_occupancies}.get(
        blank_log_probs.device.type, _torch_occupancies
    )
    with torch.no_grad():
        # The labels' place in the last state is filled, not used.
        tokens = torch.stack((pad(label_log_probs.double(), (0, 1)), blank_log_probs.double()), -1)
        log_probs = torch.cat((tokens, duration_log_probs.double()), -1)
        losses, occupancies = compute(log_probs, encoded_lengths, target_lengths, tuple(durations))
        return TDTOccupancies(losses, occupancies[:, :, :-1, 0], occupancies[..., 1], occupancies[..., 2:])


class _TDTLattice(torch.autograd.Function):
    """TDT losses [B] with the analytic gradient; see `tdt_lattice_loss`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        label_log_probs: torch.Tensor,
        blank_log_probs: torch.Tensor,
        duration_logits: torch.Tensor,
        encoded_lengths: torch.Tensor,
        target_lengths: torch.Tensor,
        durations: tuple[int, ...],
        sigma: float,
        fastemit_lambda: float,
    ) -> torch.Tensor:
        log_durations = duration_logits.double().log_softmax(-1)
        found = tdt_lattice_occupancies(
            label_log_probs.double() - sigma,
            blank_log_probs.double() - sigma,
            log_durations,
            encoded_lengths,
            target_lengths,
            durations,
        )
        nodes = found.duration.sum(-1, keepdim=True)
        of_durations = found.duration - log_durations.exp_().mul_(nodes)
        of_durations.masked_fill_(nodes == 0, 0.0)  # garbage in the padding
        ctx.save_for_backward(
            (1 + fastemit_lambda) * found.label.to(label_log_probs.dtype),
            found.blank.to(blank_log_probs.dtype),
            of_durations.to(duration_logits.dtype),
        )
        return (found.losses * (1 + fastemit_lambda)).to(label_log_probs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        label, blank, of_durations = ctx.saved_tensors
        upstream = -upstream[:, None, None]
        return label * upstream, blank * upstream, of_durations * upstream[..., None], *(None,) * 5


def tdt_lattice_loss(
    label_log_probs: torch.Tensor,
    blank_log_probs: torch.Tensor,
    duration_logits: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    durations: tuple[int, ...],
    sigma: float = 0.0,
    fastemit_lambda: float = 0.0,
) -> torch.Tensor:
    """Return TDT losses of log-probabilities of tokens and logits of durations, with the analytic gradient.

    FastEmit (arXiv:2010.11148) as in NeMo's `tdt`: the gradient of the labels' log-probabilities is scaled by 1 +
    lambda, that of blanks and durations is not, and the whole value is scaled by 1 + lambda.

    Args:
        label_log_probs, blank_log_probs, encoded_lengths, target_lengths: as in `tdt_lattice_occupancies`.
        duration_logits: [B, T, U+1, N] float; garbage in the padding gets a zero gradient.
        durations: N different whole numbers of frames.
        sigma: subtracted from the log-probability of every label and blank.
        fastemit_lambda: 0 or more.

    Returns:
        Losses [B] in nats, of the type of label_log_probs.
    """
    arguments = label_log_probs, blank_log_probs, duration_logits, encoded_lengths, target_lengths
    return _TDTLattice.apply(*arguments, durations, sigma, fastemit_lambda)


def tdt_node_occupancies(
    label_log_probs: torch.Tensor,
    blank_log_probs: torch.Tensor,
    duration_log_probs: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    durations: Sequence[int],
) -> torch.Tensor:
    """Return the probability that an alignment of the transcript passes each node of a TDT model's lattice.

    Padding is never read.

    Args:
        label_log_probs: [B, T, U] float, log-probability of target u + 1 in frame t after u tokens.
        blank_log_probs: [B, T, U+1] float, log-probability of the blank in frame t after u tokens.
        duration_log_probs: [B, T, U+1, N] float, log-probabilities of the durations there.
        encoded_lengths: [B] int in frames, 0..T.
        target_lengths: [B] int in tokens, 0..U.
        durations: N different whole numbers of frames, as the model has them.

    Returns:
        [B, T, U+1] float64 from 0 to 1, without a graph; 0 beyond the lengths, and in utterances without a path.

    Raises:
        ValueError: durations that no model has, or another number of them than N.

    Example:
        One token in two frames: emitted in the first frame with duration 0 or 1, or in the second with duration 0.

        >>> import torch
        >>> from nemo_codert.losses import tdt_node_occupancies
        >>> half = torch.tensor(0.5).log()
        >>> tokens = half.expand(1, 2, 1), half.expand(1, 2, 2)
        >>> lengths = torch.tensor([2]), torch.tensor([1])
        >>> tdt_node_occupancies(*tokens, half.expand(1, 2, 2, 2), *lengths, [0, 1])
        tensor([[[1.0000, 0.1667],
                 [0.1667, 1.0000]]], dtype=torch.float64)
    """
    durations = check_durations(durations)
    if len(durations) != duration_log_probs.shape[-1]:
        shape = tuple(duration_log_probs.shape)
        raise ValueError(
            f"duration_log_probs must be [B, T, U+1, {len(durations)}] for durations {list(durations)}, got {shape}"
        )
    lengths = [each.to(blank_log_probs.device).long() for each in (encoded_lengths, target_lengths)]
    valid = valid_cells(*lengths, *blank_log_probs.shape[1:])
    if blank_log_probs.shape[1] == 0:
        return torch.zeros(valid.shape, dtype=torch.float64, device=valid.device)
    # The recursion takes one frame or more: the result of an utterance without frames is masked.
    given = label_log_probs.detach(), blank_log_probs.detach(), duration_log_probs.detach()
    found = tdt_lattice_occupancies(*given, lengths[0].clamp(min=1), lengths[1], durations)
    nodes = pad(found.label, (0, 1)) + found.blank
    return nodes.masked_fill(~valid | found.losses.isinf()[:, None, None], 0.0)
