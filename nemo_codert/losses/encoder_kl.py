"""Distillation of encoder logits from teacher to student: the L_KD of CoDERT (arXiv:2106.07734, section 3).

`KL(softmax(teacher / temperature) || softmax(student / temperature)) * temperature^2` over valid frames, in nats.
Imports torch and `frames` only.
"""

# B batch, T encoder frames, V vocabulary without blank, N valid frames of the batch

import math

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from nemo_codert.losses.frames import valid_rows

REDUCTIONS = ("per_utterance", "per_frame")


def divergence_and_gradient(
    student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL(p || q) of each row and its gradient q - p with respect to the logits of q, the student.

    Both arguments [N, V+1], finite; returns [N] and [N, V+1]. With x = log p - log q each summand is
    p (x - 1 + e^-x), which is never negative; the bare p x sums to a negative number in half of the near-equal cases
    in float32.
    """
    p, q = teacher_log_probs.exp(), student_log_probs.exp()
    x = teacher_log_probs - student_log_probs
    shrink = torch.expm1(-x)  # q / p - 1, exact where a subtraction would cancel; it may overflow where q >> p
    student_above = x < -1
    # The clamp guards against an expm1 that errs in its last bit; on CPU no such case was seen.
    divergence = torch.where(student_above, p * (x - 1) + q, p * (x + shrink).clamp_(min=0)).sum(-1)
    return divergence, torch.where(student_above, q - p, p * shrink)


Temperature = float | torch.Tensor  # one number, or one a row [N, 1]


def _row_log_probs(
    logits: torch.Tensor, rows: torch.Tensor, temperature: Temperature, dtype: torch.dtype
) -> torch.Tensor:
    """Return log-probabilities [N, V+1] of the valid frames of [B, T, V+1], finite for a class at -inf too."""
    selected = logits.flatten(0, 1).index_select(0, rows).to(dtype).div_(temperature)
    return selected.log_softmax(-1).clamp_(min=torch.finfo(dtype).min)


class _FrameDivergence(torch.autograd.Function):
    """KL(teacher || student) of the valid frames, [N]; rows: [N], their places in B*T. The teacher is a constant."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, student: torch.Tensor, teacher: torch.Tensor, rows: torch.Tensor, temperature: Temperature
    ) -> torch.Tensor:
        dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        sides = (_row_log_probs(side, rows, temperature, dtype) for side in (student, teacher))
        divergence, gradients = divergence_and_gradient(*sides)  # [N], [N, V+1]
        ctx.save_for_backward(gradients.div_(temperature), rows)
        ctx.student_shape, ctx.student_dtype = student.shape, student.dtype
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        gradients, rows = ctx.saved_tensors
        gradient = gradients.new_zeros(ctx.student_shape, dtype=ctx.student_dtype)
        gradient.view(-1, gradient.shape[-1]).index_copy_(0, rows, (gradients * upstream[:, None]).to(gradient.dtype))
        return gradient, None, None, None


def row_divergence(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Return KL(teacher || student) of rows of logits, without the factor temperature^2; the teacher is a constant.

    Args:
        student_logits, teacher_logits: [N, V+1] float.
        temperature: divides both, above 0.

    Returns:
        [N], 0 or more, float32, or float64 if an argument is.

    Example:
        >>> import torch
        >>> row_divergence(torch.zeros(1, 2), torch.tensor([[0.8, 0.2]]).log())
        tensor([0.1927])
    """
    rows = torch.arange(len(student_logits), device=student_logits.device)
    return _FrameDivergence.apply(student_logits[None], teacher_logits.detach()[None], rows, temperature)


def paired_rows(student_logits: torch.Tensor, teacher_logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the indices [N] of the valid frames in B*T; the lengths are copied to the host once.

    Raises ValueError unless the two sides have one shape [B, T, V+1] and lengths is [B] within [0, T].
    """
    if student_logits.shape != teacher_logits.shape or student_logits.dim() != 3:
        raise ValueError(
            "student_logits and teacher_logits must have one shape [B, T, V+1], got "
            f"{tuple(student_logits.shape)} (student) and {tuple(teacher_logits.shape)} (teacher). "
            "Where the teacher has k times the frames, group them first with group_frames."
        )
    batch, num_frames, _ = student_logits.shape
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must have shape ({batch},) like the logits' batch, got {tuple(lengths.shape)}")
    return valid_rows(lengths, num_frames, student_logits.device)


def check_settings(temperature: float | torch.Tensor, reduction: str) -> None:
    """Raise ValueError for a temperature that is not positive and finite or an unknown reduction."""
    if not isinstance(temperature, torch.Tensor) and not 0 < temperature < math.inf:
        raise ValueError(f"distillation temperature must be above 0 and finite, got {temperature}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"distillation reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def encoder_distillation_loss(
    *,
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    lengths: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    reduction: str = "per_utterance",
) -> torch.Tensor:
    """Return KL(teacher || student) of the encoder logits over valid frames, times temperature^2.

    No gradient reaches the teacher. Computed in float32 (float64 if an argument is). CoDERT, arXiv:2106.07734,
    section 3.

    Args:
        student_logits: [B, T, V+1] float.
        teacher_logits: [B, T, V+1] float.
        lengths: [B] int64 in frames, 0 <= lengths <= T.
        temperature: divides both logits, above 0; a tensor [B, T] has one for each frame (`frame_temperatures`).
        reduction: `per_utterance` sums over frames and averages over the batch, as `mean_batch` does for the RNN-T
            loss; `per_frame` divides by the number of valid frames (by 1 if there is none).

    Returns:
        A scalar in nats: 0 iff the distributions agree on every valid frame, never negative.

    Raises:
        ValueError: shapes that differ, lengths out of range or not integers, a temperature that is not positive and
            finite, an unknown reduction.

    Example:
        The second frame is padding:

        >>> import torch
        >>> from nemo_codert.losses import encoder_distillation_loss
        >>> teacher_logits = torch.tensor([[[0.8, 0.2], [0.5, 0.5]]]).log()  # B = 1, T = 2, V = 1
        >>> student_logits = torch.zeros(1, 2, 2, requires_grad=True)
        >>> lengths = torch.tensor([1])
        >>> loss = encoder_distillation_loss(
        ...     student_logits=student_logits, teacher_logits=teacher_logits, lengths=lengths
        ... )
        >>> f"{loss.item():.4f} nats"
        '0.1927 nats'
        >>> loss.backward()
        >>> student_logits.grad  # q - p in the valid frame
        tensor([[[-0.3000,  0.3000],
                 [ 0.0000,  0.0000]]])
    """
    check_settings(temperature, reduction)
    rows = paired_rows(student_logits, teacher_logits, lengths)
    count = max(len(lengths) if reduction == "per_utterance" else len(rows), 1)
    if isinstance(temperature, torch.Tensor):
        of_rows = temperature.flatten().index_select(0, rows)[:, None]  # [N, 1]
        divergence = _FrameDivergence.apply(student_logits, teacher_logits.detach(), rows, of_rows)  # [N]
        return (divergence * of_rows[:, 0] ** 2).sum() / count
    divergence = _FrameDivergence.apply(student_logits, teacher_logits.detach(), rows, temperature)  # [N]
    return divergence.sum() * temperature**2 / count


class EncoderDistillationLoss(torch.nn.Module):
    """Module form of `encoder_distillation_loss`, with a fixed temperature and reduction.

    Args:
        temperature: divides both logits, above 0.
        reduction: `per_utterance` or `per_frame`.

    Raises:
        ValueError: a temperature that is not positive and finite, an unknown reduction.

    Example:
        >>> import torch
        >>> from nemo_codert.losses import EncoderDistillationLoss
        >>> loss = EncoderDistillationLoss(temperature=2.0)
        >>> logits, lengths = torch.tensor([[[1.0, 0.0, -1.0]]]), torch.tensor([1])
        >>> loss(student_logits=logits, teacher_logits=logits, lengths=lengths).item()
        0.0
    """

    def __init__(self, temperature: float = 1.0, reduction: str = "per_utterance") -> None:
        super().__init__()
        check_settings(temperature, reduction)
        self.temperature = temperature
        self.reduction = reduction

    def forward(
        self, *, student_logits: torch.Tensor, teacher_logits: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar loss of both logits [B, T, V+1] and lengths [B] int64 in frames."""
        return encoder_distillation_loss(
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            lengths=lengths,
            temperature=self.temperature,
            reduction=self.reduction,
        )
