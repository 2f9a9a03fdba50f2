"""Distances of hidden layers, student against teacher: what a term at a hidden layer minimises.

mse and cosine compare frame by frame; correlation is that of arXiv:2312.12153, whose paper gives no formula that we
could read; energy and gram need no equal widths: attention transfer (arXiv:1612.03928) over frames, and Gram matrices
of frames. Imports torch, `frames`, `float32_products` and the settings of `encoder_kl`.
"""

# B batch, T encoder frames, D channels, N valid frames of the batch

from collections.abc import Callable

import torch

from nemo_codert.losses.encoder_kl import REDUCTIONS
from nemo_codert.losses.float32_products import full_precision
from nemo_codert.losses.frames import valid_frames, valid_rows


def _mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean over channels of the squared difference, summed over frames; both [N, D]."""
    return (student - teacher).square().mean(-1).sum()


def _cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return 1 - cosine, summed over frames; both [N, D].

    It is half the squared distance of the unit vectors: never negative, and without the cancellation of 1 - cosine.
    """
    return 0.5 * (_unit(student) - _unit(teacher)).square().sum()


def _unit(frames: torch.Tensor) -> torch.Tensor:
    square = frames.square().sum(-1, keepdim=True)
    return frames / torch.where(square > 0, square, 1.0).sqrt()  # a frame of zeros has no direction and stays zeros


def _standardised(frames: torch.Tensor) -> torch.Tensor:
    """Return each channel of [N, D] less its mean and over its standard deviation; zeros where it is constant."""
    mean = frames.mean(0)
    centred = frames - mean
    variance = centred.square().mean(0)
    # A constant channel has rounding errors of the mean for a variance, which division would blow up.
    moves = variance > (8 * torch.finfo(frames.dtype).eps * mean).square()
    return centred * (moves / torch.where(moves, variance, 1.0).sqrt())


def _correlation(student: torch.Tensor, teacher: torch.Tensor, self_weight: float) -> torch.Tensor:
    """Return the distance of the cross-correlations from the unit matrix over D, times N frames; both [N, D]."""
    count, channels = student.shape
    if count == 0:
        return student.sum()  # 0, in the graph
    of_student, of_teacher = _standardised(student), _standardised(teacher)
    unit = torch.eye(channels, dtype=student.dtype, device=student.device)
    distance = (of_student.T @ of_teacher / count - unit).square().sum()
    if self_weight:
        own = (of_student.T @ of_student / count).masked_fill(unit.bool(), 0.0)
        distance = distance + self_weight * own.square().sum()
    return distance * (count / channels)


def _centred(features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return [B, T, D] less each utterance's mean over its valid frames [B, T]; zeros in padding.

    Layers often end with a layer norm, after which every frame has nearly the same energy: frames differ only in what
    they have beyond the mean.
    """
    features = features.masked_fill(~valid[:, :, None], 0.0)
    mean = features.sum(1, keepdim=True) / valid.sum(1).clamp(min=1)[:, None, None]
    centred = (features - mean).masked_fill(~valid[:, :, None], 0.0)
    # Frames that are all alike leave rounding errors of the mean, which division would blow up.
    squares, rounding = centred.square().sum((1, 2)), 8 * torch.finfo(features.dtype).eps
    return centred * (squares > rounding**2 * features.square().sum((1, 2)))[:, None, None]


def _scaled(maps: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return each utterance's map [B, T, ...] scaled so that its squares sum to its number of frames [B]."""
    squares = maps.square().flatten(1).sum(1) / counts.clamp(min=1)
    scale = torch.where(squares > 0, squares, 1.0).sqrt()
    return maps / scale.view(-1, *(1,) * (maps.dim() - 1))


def _energy_map(features: torch.Tensor) -> torch.Tensor:
    return features.square().mean(-1)  # [B, T]


def _gram_map(features: torch.Tensor) -> torch.Tensor:
    return features @ features.transpose(1, 2)  # [B, T, T]


FRAME_MEASURES: dict[str, Callable[..., torch.Tensor]] = {"mse": _mse, "cosine": _cosine, "correlation": _correlation}
MAPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"energy": _energy_map, "gram": _gram_map}
FEATURE_MEASURES = (*FRAME_MEASURES, *MAPS)


def _check(student: torch.Tensor, teacher: torch.Tensor, lengths: torch.Tensor, by: str, reduction: str) -> None:
    """Raise ValueError for an unknown measure or reduction, and for shapes that the measure cannot compare."""
    if by not in FEATURE_MEASURES:
        raise ValueError(f"features are compared by one of {', '.join(FEATURE_MEASURES)}, got {by!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"distillation reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    compared = slice(None) if by in FRAME_MEASURES else slice(2)
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[compared] != teacher.shape[compared]:
        raise ValueError(
            f"student and teacher must be [B, T, D] of the same {'shape' if by in FRAME_MEASURES else 'B and T'} "
            f"for {by}, got {tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher). Other widths need "
            "a projection; more frames of the teacher need group_features"
        )
    if lengths.shape != student.shape[:1]:
        raise ValueError(f"lengths must have shape ({len(student)},) like the batch, got {tuple(lengths.shape)}")


def feature_distance(
    *,
    student: torch.Tensor,
    teacher: torch.Tensor,
    lengths: torch.Tensor,
    by: str = "mse",
    self_weight: float = 0.0,
    reduction: str = "per_utterance",
) -> torch.Tensor:
    """Return the distance of a student's hidden features from a teacher's over valid frames.

    No gradient reaches the teacher, and padding is not read. Computed in float32 (float64 if an argument is).

    - `mse`: mean over channels of the squared difference.
    - `cosine`: 1 - cosine of the two frames.
    - `correlation`: C [D, D], the correlations of the student's channels with the teacher's over all valid frames of
      the batch, against the unit matrix: sum of (C - I)^2, over D. With `self_weight` w the student's correlations
      with itself are added: w times their off-diagonal squares, over D. A copy of the teacher is at 0 only if the
      teacher's channels are uncorrelated; else it is at their off-diagonal squares.
    - `energy`: features less their mean over the utterance; each frame's mean square over channels, scaled so that its
      squares average to 1 over the utterance; squared difference. 0 for any multiple of the teacher, and any shift.
    - `gram`: features less their mean over the utterance; products [T, T] of all frames with each other, scaled so
      that a frame's squares average to 1 over the utterance; squared difference: 2 (1 - linear CKA, arXiv:1905.00414)
      a frame. 0 for any rotation, multiple and shift of the teacher. It takes memory of B * T * T.

    Args:
        student: [B, T, D] float.
        teacher: [B, T, D] float; for `energy` and `gram` of any width.
        lengths: [B] int64 in frames, 0 <= lengths <= T.
        by: `mse`, `cosine`, `correlation`, `energy` or `gram`.
        self_weight: of `correlation`, 0 or above.
        reduction: `per_utterance` sums over frames and averages over the batch; `per_frame` divides by the number of
            valid frames (by 1 if there is none). The batch has one value of `correlation`, which counts for each
            frame.

    Returns:
        A scalar, never negative.

    Raises:
        ValueError: an unknown measure or reduction, shapes that do not fit, lengths out of range or not integers.

    Example:
        The second frame is padding:

        >>> import torch
        >>> from nemo_codert.losses import feature_distance
        >>> teacher = torch.tensor([[[3.0, 4.0], [0.0, 9.0]]])  # B = 1, T = 2, D = 2
        >>> student, lengths = torch.tensor([[[4.0, 3.0], [7.0, 0.0]]]), torch.tensor([1])
        >>> [f"{feature_distance(student=student, teacher=teacher, lengths=lengths, by=by):.2f}"
        ...  for by in ("mse", "cosine")]
        ['1.00', '0.04']
    """
    _check(student, teacher, lengths, by, reduction)
    num_frames, dtype = student.shape[1], torch.promote_types(student.dtype, torch.float32)
    dtype = torch.promote_types(dtype, teacher.dtype)
    rows = valid_rows(lengths, num_frames, student.device)
    sides = student, teacher.detach()
    with full_precision(student.device.type):
        if by in FRAME_MEASURES:
            options = {"self_weight": self_weight} if by == "correlation" else {}
            frames = (side.flatten(0, 1).index_select(0, rows).to(dtype) for side in sides)  # [N, D]
            total = FRAME_MEASURES[by](*frames, **options)
        else:
            counts = lengths.to(student.device)
            valid = valid_frames(counts, num_frames)
            maps = (_scaled(MAPS[by](_centred(side.to(dtype), valid)), counts) for side in sides)
            total = (next(maps) - next(maps)).square().sum()
    return total / max(len(lengths) if reduction == "per_utterance" else len(rows), 1)
