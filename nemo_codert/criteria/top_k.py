"""Divergence of a term of the loss where the teacher's targets are stored classes."""

from collections.abc import Mapping
from typing import Any

import torch

from nemo_codert.losses import paired_frames, top_k_distillation_loss
from nemo_codert.modules.transducer import BranchOutput


def top_k_divergence(
    logits: torch.Tensor, lengths: torch.Tensor, teacher: BranchOutput, options: Mapping[str, Any]
) -> torch.Tensor:
    """Return the divergence of logits from a teacher's stored classes.

    Args:
        logits: [B, T, V+1] of the student. lengths: [B] int64, its frames.
        teacher: output with `top_k`, at the student's frame rate.
        options: of the term: `frame_shift`, `temperature` (the stored classes' own) and `reduction`.
    """
    known = teacher.top_k
    logits, probabilities, paired = paired_frames(
        logits, lengths, known.probabilities, teacher.encoded_len, shift=options["frame_shift"]
    )
    return top_k_distillation_loss(
        student_logits=logits,
        teacher_ids=known.ids[:, : probabilities.shape[1]],
        teacher_probabilities=probabilities,
        lengths=paired,
        temperature=options["temperature"],
        reduction=options["reduction"],
    )
