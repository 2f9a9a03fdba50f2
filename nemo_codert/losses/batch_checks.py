"""Checks of what is passed to an RNN-T loss, and the reductions of its result.

Imports torch, numpy, `cpu_kernels`, `frames`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states

from typing import NamedTuple

import numpy as np
import torch

from nemo_codert.losses.cpu_kernels import lattice_kernels
from nemo_codert.losses.frames import valid_cells, valid_frames

REDUCTIONS = ("none", "sum", "mean", "mean_batch", "mean_volume")


class TransducerBatch(NamedTuple):
    """Checked targets [B, U] int64 (0 in the padding, U the longest target) and lengths [B] int64, on one device."""

    targets: torch.Tensor
    encoded_lengths: torch.Tensor
    target_lengths: torch.Tensor
    sizes: list[tuple[int, int]]  # encoded and target length of every utterance, on the host

    @property
    def num_frames(self) -> int:
        """Return the longest encoded length."""
        return max(frames for frames, _ in self.sizes)

    def padding(self) -> torch.Tensor | None:
        """Return [B, T, M] bool, True beyond the lengths; None where all utterances are equally long."""
        if len(set(self.sizes)) == 1:
            return None
        lengths = self.encoded_lengths, self.target_lengths
        return ~valid_cells(*lengths, self.num_frames, self.targets.shape[1] + 1)


def _check_lengths(name: str, lengths: list[int], low: int, high: int) -> None:
    """Raise ValueError unless low <= lengths <= high."""
    if min(lengths) < low or max(lengths) > high:
        raise ValueError(f"{name} must lie between {low} and {high}, got {lengths}")


def _refused(targets: torch.Tensor, target_lengths: torch.Tensor, blank: int, num_classes: int) -> torch.Tensor:
    """Return [B, U] bool, True where a target within the lengths is the blank or not a class."""
    given = valid_frames(target_lengths, targets.shape[1])
    return given & ((targets == blank) | (targets < 0) | (targets >= num_classes))


def _masked_targets_on_cpu(
    targets: torch.Tensor, target_lengths: torch.Tensor, blank: int, num_classes: int
) -> tuple[torch.Tensor, bool]:
    """Return targets with 0 in the padding, and whether any is `_refused`; one compiled call replaces a dozen."""
    kernels = lattice_kernels()
    if kernels is None:
        refused = _refused(targets, target_lengths, blank, num_classes)
        return targets * valid_frames(target_lengths, targets.shape[1]), bool(refused.any())
    masked = np.zeros(targets.shape, np.int64)
    arrays = targets.contiguous().numpy(), target_lengths.contiguous().numpy(), masked
    faults = kernels.target_kernel(blank, num_classes, *arrays)
    return torch.from_numpy(masked), faults > 0


def check_transducer_batch(
    targets: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    lattice_shape: tuple[int, int, int, int],
    blank: int,
    device: torch.device,
) -> TransducerBatch:
    """Check the arguments of an RNN-T loss against the shape of its logits.

    Padding is not read. On a GPU the host waits for one copy, of the lengths and the number of faults.

    Args:
        targets: [B, U or more] int.
        encoded_lengths: [B] int in frames, 1..T.
        target_lengths: [B] int in tokens, 0..U.
        lattice_shape: (B, T, U+1, V+1) of the logits.
        blank: class of the blank, 0..V.
        device: device of the logits, which the result is moved to.

    Returns:
        The batch, int64.

    Raises:
        ValueError: a shape, length, blank or token that does not fit.
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
        masked, fault = _masked_targets_on_cpu(targets, target_lengths, blank, num_classes)
    else:
        refused = _refused(targets, target_lengths, blank, num_classes)
        frames, tokens, faults = torch.stack([encoded_lengths, target_lengths, refused.sum(1)]).tolist()
        masked, fault = targets * valid_frames(target_lengths, targets.shape[1]), any(faults)
    _check_lengths("encoded_lengths", frames, 1, num_frames)
    _check_lengths("target_lengths", tokens, 0, min(num_states - 1, targets.shape[1]))
    if fault:
        refused = _refused(targets, target_lengths, blank, num_classes)
        raise ValueError(
            f"targets must lie between 0 and V = {num_classes - 1} and differ from blank = {blank}, "
            f"got {sorted(set(targets[refused].tolist()))}"
        )
    sizes = list(zip(frames, tokens, strict=True))
    return TransducerBatch(masked[:, : max(tokens)], encoded_lengths, target_lengths, sizes)


def check_additive_logits(encoder_logits: torch.Tensor, prediction_logits: torch.Tensor, classes: str = "V+1") -> None:
    """Raise ValueError unless the shapes are [B, T, V+1] and [B, U+1, V+1]; classes: the last size, in words."""
    shapes = tuple(encoder_logits.shape), tuple(prediction_logits.shape)
    if any(len(shape) != 3 for shape in shapes) or shapes[0][::2] != shapes[1][::2]:
        raise ValueError(
            f"encoder_logits must be [B, T, {classes}] and prediction_logits [B, U+1, {classes}], got {shapes}"
        )


def check_reduction(reduction: str) -> None:
    """Raise ValueError for a reduction that `reduce_losses` does not have."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"RNN-T loss reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def check_fastemit(fastemit_lambda: float) -> None:
    """Raise ValueError for a negative lambda."""
    if not fastemit_lambda >= 0:
        raise ValueError(f"fastemit_lambda must be 0 or more, got {fastemit_lambda}")


def reduce_losses(losses: torch.Tensor, target_lengths: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce the losses of utterances as NeMo's RNNTLoss does.

    An empty target counts as one token in `mean`, as does a batch of empty targets only in `mean_volume` (NeMo divides
    by zero there).

    Args:
        losses: [B] float.
        target_lengths: [B] int in tokens.
        reduction: `none` (no reduction), `sum`, `mean_batch` (mean over utterances), `mean` (each loss over its number
            of tokens, then the mean over utterances), `mean_volume` (summed losses over summed tokens).

    Returns:
        A scalar, or [B] for `none`.

    Raises:
        ValueError: unknown reduction.
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
    """Return the gradient [B] float64 of each loss under `reduce_losses`; upstream: a scalar, or [B] for `none`."""
    each = np.ones(len(target_lengths))
    if reduction in ("mean", "mean_batch"):
        each /= len(each)
    if reduction == "mean":
        each /= np.maximum(target_lengths, 1)
    if reduction == "mean_volume":
        each /= max(target_lengths.sum(), 1)
    return upstream * each
