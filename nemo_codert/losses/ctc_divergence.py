"""Divergences of a student's CTC head from a teacher's: KL, and the squared distance of Inter-KD (arXiv:2211.15075).

Imports torch, `frames` and `encoder_kl`, whose loss is the KL of any two heads.
"""

# B batch, T encoder frames, V vocabulary without blank, N valid frames of the batch

import torch

from nemo_codert.losses.encoder_kl import check_settings, encoder_distillation_loss, paired_rows


def softmax_l2_loss(
    *,
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    lengths: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    reduction: str = "per_utterance",
) -> torch.Tensor:
    """Return the squared distance of the heads' distributions, summed over classes, times temperature^2.

    No gradient reaches the teacher, and padding is not read. Computed in float32 (float64 if an argument is).
    Inter-KD, arXiv:2211.15075. The factor keeps the gradient's size at high temperatures, as for the KL.

    Args:
        student_logits: [B, T, V+1] float.
        teacher_logits: [B, T, V+1] float.
        lengths: [B] int64 in frames, 0 <= lengths <= T.
        temperature: divides both logits, above 0; a tensor [B, T] has one for each frame.
        reduction: `per_utterance` sums over frames and averages over the batch; `per_frame` divides by the number of
            valid frames (by 1 if there is none).

    Returns:
        A scalar: 0 iff the distributions agree on every valid frame, at most 2 temperature^2 a frame.

    Raises:
        ValueError: as `encoder_distillation_loss`.

    Example:
        The second frame is padding:

        >>> import torch
        >>> from nemo_codert.losses import softmax_l2_loss
        >>> teacher_logits = torch.tensor([[[0.8, 0.2], [0.5, 0.5]]]).log()  # B = 1, T = 2, V = 1
        >>> loss = softmax_l2_loss(
        ...     student_logits=torch.zeros(1, 2, 2), teacher_logits=teacher_logits, lengths=torch.tensor([1])
        ... )
        >>> f"{loss:.2f}"  # 0.3^2 + 0.3^2
        '0.18'
    """
    check_settings(temperature, reduction)
    rows = paired_rows(student_logits, teacher_logits, lengths)
    dtype = torch.promote_types(torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32)
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.flatten().index_select(0, rows)[:, None]  # [N, 1]
    student, teacher = (
        (logits.flatten(0, 1).index_select(0, rows).to(dtype) / temperature).softmax(-1)
        for logits in (student_logits, teacher_logits.detach())
    )
    count = max(len(lengths) if reduction == "per_utterance" else len(rows), 1)
    return (temperature**2 * (student - teacher).square()).sum() / count


CTC_DIVERGENCES = {"kl": encoder_distillation_loss, "l2": softmax_l2_loss}
