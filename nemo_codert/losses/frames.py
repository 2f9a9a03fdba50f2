"""Masks of the real frames of a padded batch, and matching of a teacher's frames with a student's.

Imports torch only.
"""

# B batch, T encoder frames, D channels, V vocabulary without blank, N valid frames of the batch

import torch
from torch.nn.functional import pad


def valid_frames(lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Return the mask of the frames that exist.

    Args:
        lengths: [B] int in frames.
        num_frames: T.

    Returns:
        [B, T] bool, True where t < lengths.

    Example:
        >>> import torch
        >>> from nemo_codert.losses import valid_frames
        >>> valid_frames(torch.tensor([3, 1]), 3)
        tensor([[ True,  True,  True],
                [ True, False, False]])
    """
    return torch.arange(num_frames, device=lengths.device)[None, :] < lengths[:, None]


def valid_rows(lengths: torch.Tensor, num_frames: int, device: torch.device) -> torch.Tensor:
    """Return the places [N] of the valid frames in B*T, on a device; the lengths are copied to the host once.

    Args:
        lengths: [B] int in frames, 0 <= lengths <= num_frames.
        num_frames: T.
        device: of the result.

    Raises:
        ValueError: lengths that are not integers or out of range.
    """
    if lengths.is_floating_point():
        raise ValueError(f"lengths must be whole numbers of frames, got {lengths.dtype}")
    counts = lengths.tolist()
    if counts and not 0 <= min(counts) <= max(counts) <= num_frames:
        raise ValueError(f"lengths must lie between 0 and the {num_frames} frames given, got {counts}")
    return valid_frames(lengths.to(device), num_frames).flatten().nonzero_static(size=sum(counts)).squeeze(1)


def valid_cells(
    encoded_lengths: torch.Tensor, target_lengths: torch.Tensor, num_frames: int, num_states: int
) -> torch.Tensor:
    """Return [B, T, U+1] bool, True where the lattice has the cell; lengths: [B], num_frames: T, num_states: U+1."""
    frames, states = valid_frames(encoded_lengths, num_frames), valid_frames(target_lengths + 1, num_states)
    return frames[:, :, None] & states[:, None, :]


def group_frames(logits: torch.Tensor, lengths: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Group frames `factor` by `factor`, so that a teacher's frames match those of a student which has fewer.

    A group's distribution is the arithmetic mean of the softmax distributions of its valid frames: the last group of
    an utterance averages the frames it has. Padding is never read.

    Args:
        logits: [B, T, V+1] float.
        lengths: [B] int64 in frames, 0 <= lengths <= T.
        factor: frames per group, at least 1.

    Returns:
        The groups as log-probabilities, usable as logits, [B, ceil(T / factor), V+1] (at least float32; zeros in
        groups without a valid frame), and ceil(lengths / factor). Both arguments unchanged for factor 1.

    Raises:
        ValueError: factor below 1.

    Example:
        >>> import torch
        >>> from nemo_codert.losses import group_frames
        >>> logits = torch.tensor([[[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]]).log()  # B = 1, T = 3, V = 1
        >>> grouped, lengths = group_frames(logits, torch.tensor([3]), 2)
        >>> grouped.exp()
        tensor([[[0.7000, 0.3000],
                 [0.2000, 0.8000]]])
        >>> lengths
        tensor([2])
    """
    if factor < 1:
        raise ValueError(f"frames can be grouped by a factor of 1 or more, got {factor}")
    if factor == 1:
        return logits, lengths
    batch, num_frames, num_classes = logits.shape
    num_groups = -(-num_frames // factor)
    missing = num_groups * factor - num_frames
    valid = pad(valid_frames(lengths, num_frames), (0, missing)).view(batch, num_groups, factor)
    logits = pad(logits.to(torch.promote_types(logits.dtype, torch.float32)), (0, 0, 0, missing))
    logits = logits.view(batch, num_groups, factor, num_classes)
    log_probs = logits.masked_fill(~valid[..., None], 0.0).log_softmax(-1)
    count = valid.sum(-1, keepdim=True).clamp(min=1)  # [B, T / factor, 1]
    grouped = log_probs.masked_fill(~valid[..., None], -torch.inf).logsumexp(2) - count.log()  # [B, T / factor, V+1]
    return grouped.masked_fill(~valid.any(-1, keepdim=True), 0.0), (lengths + factor - 1) // factor


def group_features(features: torch.Tensor, lengths: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Group frames `factor` by `factor` by their mean: for features as `group_frames` is for logits.

    Args:
        features: [B, T, D] float.
        lengths: [B] int64 in frames, 0 <= lengths <= T.
        factor: frames per group, at least 1.

    Returns:
        Means of the valid frames of each group, [B, ceil(T / factor), D] (at least float32; zeros in groups without a
        valid frame), and ceil(lengths / factor). Both arguments unchanged for factor 1.

    Raises:
        ValueError: factor below 1.

    Example:
        The last group has one valid frame:

        >>> import torch
        >>> from nemo_codert.losses import group_features
        >>> features = torch.tensor([[[1.0], [3.0], [5.0], [100.0]]])  # B = 1, T = 4, D = 1
        >>> group_features(features, torch.tensor([3]), 2)
        (tensor([[[2.],
                 [5.]]]), tensor([2]))
    """
    if factor < 1:
        raise ValueError(f"frames can be grouped by a factor of 1 or more, got {factor}")
    if factor == 1:
        return features, lengths
    batch, num_frames, channels = features.shape
    num_groups = -(-num_frames // factor)
    missing = num_groups * factor - num_frames
    valid = pad(valid_frames(lengths, num_frames), (0, missing)).view(batch, num_groups, factor)
    features = pad(features.to(torch.promote_types(features.dtype, torch.float32)), (0, 0, 0, missing))
    features = features.view(batch, num_groups, factor, channels).masked_fill(~valid[..., None], 0.0)
    count = valid.sum(-1, keepdim=True).clamp(min=1)  # [B, T / factor, 1]
    return features.sum(2) / count, (lengths + factor - 1) // factor


def paired_frames(
    student_logits: torch.Tensor,
    student_lengths: torch.Tensor,
    teacher_logits: torch.Tensor,
    teacher_lengths: torch.Tensor,
    shift: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pair the student's frame t + shift with the teacher's frame t, for every t that both have.

    The student's first `shift` frames and the teacher's last ones are not paired and left out.

    Args:
        student_logits: [B, T', V+1] float.
        student_lengths: [B] int64 in frames.
        teacher_logits: [B, T, V+1] float, at the student's frame rate (see `group_frames`).
        teacher_lengths: [B] int64 in frames.
        shift: frames the student lags behind, 0 or more.

    Returns:
        Views of both logits, [B, N, V+1] with N = max(min(T' - shift, T), 0), and the number of pairs in each
        utterance, [B], 0 where no frame is left.

    Raises:
        ValueError: negative shift.

    Example:
        >>> import torch
        >>> from nemo_codert.losses import paired_frames
        >>> student, teacher = torch.arange(4.0).view(1, 4, 1), torch.arange(4.0).view(1, 4, 1)
        >>> lengths = torch.tensor([4])
        >>> *pairs, count = paired_frames(student, lengths, teacher, lengths, shift=1)
        >>> [logits.flatten().tolist() for logits in pairs], count
        ([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]], tensor([3]))
    """
    if shift < 0:
        raise ValueError(f"the student can be shifted by 0 frames or more, got {shift}")
    frames = max(min(student_logits.shape[1] - shift, teacher_logits.shape[1]), 0)
    lengths = torch.minimum(student_lengths - shift, teacher_lengths).clamp(min=0, max=frames)
    return student_logits[:, shift : shift + frames], teacher_logits[:, :frames], lengths
