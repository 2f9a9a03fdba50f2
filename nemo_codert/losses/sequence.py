"""Full-sum distillation: the log-likelihoods of the transcript under student and teacher. Imports torch only."""

import torch


def full_sum_distillation_loss(
    *,
    student_losses: torch.Tensor,
    teacher_losses: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
) -> torch.Tensor:
    """Return the squared difference of both RNN-T losses, over T + U, averaged over utterances.

    No frames are aligned, so that the teacher may have another frame rate and another lag. No gradient reaches the
    teacher. After Zeineldeen et al., arXiv:2303.05958; the distance is ours.

    Args:
        student_losses: [B] float, RNN-T losses in nats, not reduced and without FastEmit.
        teacher_losses: [B] float, those of the teacher.
        encoded_lengths: [B] int, the student's encoder frames T.
        target_lengths: [B] int, tokens U.

    Returns:
        A scalar in squared nats per node of a path: 0 iff the losses agree in every utterance.

    Raises:
        ValueError: arguments that are not [B] of one length.

    Example:
        >>> import torch
        >>> from nemo_codert.losses import full_sum_distillation_loss
        >>> loss = full_sum_distillation_loss(
        ...     student_losses=torch.tensor([12.0]), teacher_losses=torch.tensor([9.0]),
        ...     encoded_lengths=torch.tensor([7]), target_lengths=torch.tensor([2]),
        ... )
        >>> loss  # 3^2 / 9
        tensor(1.)
    """
    shapes = {tuple(each.shape) for each in (student_losses, teacher_losses, encoded_lengths, target_lengths)}
    if len(shapes) != 1 or student_losses.dim() != 1:
        raise ValueError(f"losses and lengths must be [B] of one batch, got shapes {sorted(shapes)}")
    steps = (encoded_lengths + target_lengths).to(student_losses.device)
    difference = student_losses - teacher_losses.detach()
    return (difference.square() / steps.clamp(min=1)).sum() / max(len(difference), 1)
