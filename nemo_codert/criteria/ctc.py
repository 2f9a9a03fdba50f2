"""The CTC loss of a hybrid student's head, with NeMo's loss and reductions."""

import torch
from nemo.collections.asr.losses.ctc import CTCLoss

from nemo_codert.config.criteria import CriterionSpec
from nemo_codert.criteria.base import Criterion, PairParts
from nemo_codert.modules.transducer import Batch, BranchOutput


class CTC(Criterion):
    """CTC loss of the student's head, as in NeMo's hybrid models; reduced by `student.aux_ctc.ctc_reduction`."""

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__(spec, parts)
        self.parts = parts  # not the head itself: it belongs to the pair, under one name
        reduction = parts.cfg.student.aux_ctc.get("ctc_reduction", "mean_batch")
        blank = parts.student_ctc_head.num_classes_with_blank - 1
        self.loss = CTCLoss(num_classes=blank, zero_infinity=True, reduction=reduction)

    def forward(self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch) -> torch.Tensor:
        # Overrides Criterion.forward.
        return self.loss(
            log_probs=student.head_logits(self.parts.student_ctc_head).log_softmax(-1),
            targets=batch.transcript,
            input_lengths=student.encoded_len,
            target_lengths=batch.transcript_len,
        )
