"""Full-sum distillation: the student's log-likelihood of the transcript drawn to the teacher's (arXiv:2303.05958)."""

import torch

from nemo_codert.config.criteria import CriterionSpec
from nemo_codert.config.tdt import TDTSettings, tdt_settings
from nemo_codert.criteria.base import Criterion, PairParts
from nemo_codert.criteria.rnnt import exact_loss
from nemo_codert.losses import full_sum_distillation_loss
from nemo_codert.modules.transducer import Batch, BranchOutput


class SequenceL2(Criterion):
    """Squared difference of both RNN-T (or TDT) losses over T + U, a mean over utterances; the teacher is a constant.

    The losses are this package's exact ones, without FastEmit, sigma and omega. No frames are paired. A shared
    prediction network gets no gradient from the term.
    """

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__(spec, parts)
        self.shares_decoder = parts.cfg.codert.share_decoder
        settings = tdt_settings(parts.cfg)
        self.tdt = settings and TDTSettings(settings.durations)

    def forward(self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch) -> torch.Tensor:
        # Overrides Criterion.forward.
        prediction = student.prediction_side.detach() if self.shares_decoder else student.prediction_side
        sides = teacher.encoder_side.detach(), teacher.prediction_side.detach()  # a co-trained teacher's keep a graph
        with torch.no_grad():
            of_teacher = exact_loss(teacher, batch, *sides, reduction="none", tdt=self.tdt)
        return full_sum_distillation_loss(
            student_losses=exact_loss(
                student, batch, student.encoder_side, prediction, reduction="none", tdt=self.tdt
            ),
            teacher_losses=of_teacher,
            encoded_lengths=student.encoded_len,
            target_lengths=batch.transcript_len,
        )
