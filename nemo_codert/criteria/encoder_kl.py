"""The paper's term: KL divergence of the encoder logits over common frames (arXiv:2106.07734, section 2.2)."""

import torch

from nemo_codert.config.criteria import CriterionSpec
from nemo_codert.criteria.base import Criterion, PairParts
from nemo_codert.losses import EncoderDistillationLoss, group_frames, paired_frames
from nemo_codert.modules.transducer import Batch, BranchOutput


class EncoderKL(Criterion):
    """KL(teacher || student) of the encoder logits, in nats; the teacher gets no gradient.

    Frames of a faster teacher are grouped; the student's frame t + `frame_shift` learns from the teacher's frame t.
    """

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__(spec, parts)
        self.frames_per_student_frame = parts.teacher_frames_per_student_frame
        self.loss = EncoderDistillationLoss(spec.options["temperature"], spec.options["reduction"])

    def forward(self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch) -> torch.Tensor:
        # Overrides Criterion.forward.
        student_logits = student.encoder_logits  # [B, T', V+1]
        with torch.no_grad():
            grouped = group_frames(teacher.target_logits, teacher.encoded_len, self.frames_per_student_frame)
        logits, targets, lengths = paired_frames(
            student_logits, student.encoded_len, *grouped, shift=self.spec.options["frame_shift"]
        )
        return self.loss(student_logits=logits, teacher_logits=targets, lengths=lengths)
