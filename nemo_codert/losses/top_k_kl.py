"""KL divergence from a teacher of which each frame's likeliest classes are known: those, and the rest as one class.

Imports torch and `encoder_kl` only.
"""

# B batch, T frames, k stored classes, V vocabulary without blank

import torch

from nemo_codert.losses.encoder_kl import check_settings, encoder_distillation_loss


def top_k_distillation_loss(
    *,
    student_logits: torch.Tensor,
    teacher_ids: torch.Tensor,
    teacher_probabilities: torch.Tensor,
    lengths: torch.Tensor,
    temperature: float = 1.0,
    reduction: str = "per_utterance",
) -> torch.Tensor:
    """Return KL(teacher || student) of k classes and the sum of all others, times temperature^2.

    It is never above the KL of all classes, rises to it with k, and is it for k = V+1. A class of the rest gets the
    gradient of the rest in proportion to its own probability. No gradient reaches the teacher.

    Args:
        student_logits: [B, T, V+1] float.
        teacher_ids: [B, T, k] int64, different classes in every valid frame.
        teacher_probabilities: [B, T, k] float, at this temperature, which sum to 1 at most; a sum above 1, by rounding
            of what is stored, is scaled down to it.
        lengths: [B] int64 in frames, 0 <= lengths <= T.
        temperature: at which the probabilities were made, above 0; divides the student's logits.
        reduction: as of `encoder_distillation_loss`.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: see `encoder_distillation_loss`.

    Example:
        Of four classes one is known; the student's rest has its probability, as the teacher's:

        >>> import torch
        >>> from nemo_codert.losses import top_k_distillation_loss
        >>> student_logits = torch.tensor([[[0.7, 0.1, 0.1, 0.1]]]).log()
        >>> known = {"teacher_ids": torch.tensor([[[0]]]), "teacher_probabilities": torch.tensor([[[0.7]]])}
        >>> loss = top_k_distillation_loss(student_logits=student_logits, lengths=torch.tensor([1]), **known)
        >>> round(loss.item(), 4)
        0.0
    """
    check_settings(temperature, reduction)
    dtype = torch.promote_types(torch.promote_types(student_logits.dtype, teacher_probabilities.dtype), torch.float32)
    logits, p = student_logits.to(dtype) / temperature, teacher_probabilities.detach().to(dtype)
    p = p / p.sum(-1, keepdim=True).clamp(min=1)
    known = logits.gather(-1, teacher_ids)  # [B, T, k]
    if known.shape[-1] < logits.shape[-1]:
        lowest = torch.finfo(dtype).min
        rest = logits.scatter(-1, teacher_ids, lowest).logsumexp(-1, keepdim=True)  # [B, T, 1]
        known, p = torch.cat([known, rest], -1), torch.cat([p, (1 - p.sum(-1, keepdim=True)).clamp(min=0)], -1)
    return temperature**2 * encoder_distillation_loss(
        student_logits=known, teacher_logits=p.log(), lengths=lengths, reduction=reduction
    )
