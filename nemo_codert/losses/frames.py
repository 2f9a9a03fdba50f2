"""Which frames of a padded batch are real, and how a teacher's frames are matched with a student's.

Imports torch alone.
"""

# B batch, T encoder frames, V vocabulary without blank

import torch
from torch.nn.functional import pad


def valid_frames(lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
    """[B] -> [B, T] bool, True where frame t exists. num_frames is T."""
    return torch.arange(num_frames, device=lengths.device)[None, :] < lengths[:, None]


def valid_cells(
    encoded_lengths: torch.Tensor, target_lengths: torch.Tensor, num_frames: int, num_states: int
) -> torch.Tensor:
    """[B] and [B] -> [B, T, U+1] bool, True where the lattice has the cell. num_frames is T, num_states U+1."""
    frames, states = valid_frames(encoded_lengths, num_frames), valid_frames(target_lengths + 1, num_states)
    return frames[:, :, None] & states[:, None, :]


def group_frames(logits: torch.Tensor, lengths: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Group frames `factor` by `factor`, so that a teacher's frames match those of a student which has fewer.

    A group's distribution is the arithmetic mean of the softmax distributions of its valid frames: the last group of
    an utterance averages the frames it has. Padding is never read.

    logits: [B, T, V+1] float. lengths: [B] int64 in frames, 0 <= lengths <= T. factor: frames per group, at least 1.
    Returns the groups as log-probabilities, usable as logits, [B, ceil(T / factor), V+1] (at least float32; zeros in
    groups without a valid frame) and ceil(lengths / factor). factor 1 returns both arguments unchanged.
    Raises ValueError for a factor below 1.
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


def paired_frames(
    student_logits: torch.Tensor,
    student_lengths: torch.Tensor,
    teacher_logits: torch.Tensor,
    teacher_lengths: torch.Tensor,
    shift: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pair the student's frame t + shift with the teacher's frame t, for every t that both have.

    The student's first `shift` frames and the teacher's last ones stay without a partner and are left out.

    Both logits [B, T', V+1] and [B, T, V+1], at one frame rate (see `group_frames`); both lengths [B] int64 in frames.
    Returns views of both, [B, N, V+1] with N = max(min(T' - shift, T), 0), and the number of pairs in each utterance,
    [B], 0 where it has no frame left. Raises ValueError for a negative shift.
    """
    if shift < 0:
        raise ValueError(f"the student can be shifted by 0 frames or more, got {shift}")
    frames = max(min(student_logits.shape[1] - shift, teacher_logits.shape[1]), 0)
    lengths = torch.minimum(student_lengths - shift, teacher_lengths).clamp(min=0, max=frames)
    return student_logits[:, shift : shift + frames], teacher_logits[:, :frames], lengths
