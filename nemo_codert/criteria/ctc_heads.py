"""Terms at CTC heads: the student's last head, or heads in the middle of its encoder (Inter-KD, arXiv:2211.15075).

B batch, T encoder frames, D channels, V vocabulary without blank.
"""

import torch
from nemo.collections.asr.losses.ctc import CTCLoss
from nemo.collections.asr.modules import ConvASRDecoder
from torch import nn

from nemo_codert.config.criteria import ADAPTIVE, CriterionSpec
from nemo_codert.criteria.base import Criterion, PairParts
from nemo_codert.criteria.top_k import top_k_divergence
from nemo_codert.losses import frame_temperatures, group_frames, paired_frames
from nemo_codert.losses.ctc_divergence import CTC_DIVERGENCES
from nemo_codert.modules.shared_modules import refer
from nemo_codert.modules.transducer import Batch, BranchOutput


class CTCDivergence(Criterion):
    """Divergence of the student's CTC heads from the teacher's, a mean over heads; the teacher gets no gradient.

    Without `layers` the head is the hybrid student's own. Each of `layers` has a head that belongs to the term, with
    the classes of the teacher's head; the heads' own CTC loss is `HeadsCTC`. Frames of a faster teacher are grouped;
    the student's frame t + `frame_shift` learns from the teacher's frame t.
    """

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__(spec, parts)
        self.parts = parts  # not the student's head itself: it belongs to the pair, under one name
        self.by = spec.kind.partition(".")[2]
        _share_heads(self, parts, spec.name)
        classes, pieces = _classes(parts), list(parts.student.joint.vocabulary)
        self.refuse_floor(len(classes) + 1)
        if not self.heads and classes != pieces:
            raise ValueError(
                f"model.codert.distillation.{spec.name}.layers is null, but the teacher's CTC head has other classes "
                f"({len(classes)}) than model.tokenizer ({len(pieces)}): name layers of the student, which get heads "
                "with the teacher's classes"
            )

    def forward(self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch) -> torch.Tensor:
        # Overrides Criterion.forward.
        if teacher.top_k is not None:
            values = [
                top_k_divergence(logits, student.encoded_len, teacher, self.spec.options)
                for logits in self._logits(student)
            ]
            return sum(values) / len(values)
        factor = self.parts.teacher_frames_per_student_frame
        grouped = group_frames(teacher.encoder_logits.detach(), teacher.encoded_len, factor)
        values = [self._divergence(logits, student.encoded_len, *grouped) for logits in self._logits(student)]
        return sum(values) / len(values)

    def _logits(self, student: BranchOutput) -> list[torch.Tensor]:
        """Return the logits [B, T', V+1] of each head."""
        if not self.heads:
            return [student.head_logits(self.parts.student_ctc_head)]
        return [student.head_logits(head, int(number)) for number, head in self.heads.items()]

    def _divergence(self, logits: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        options = self.spec.options
        logits, targets, lengths = paired_frames(logits, *given, shift=options["frame_shift"])
        temperature = options["temperature"]
        if temperature == ADAPTIVE:
            temperature = frame_temperatures(targets, options["temperature_floor"])
        return CTC_DIVERGENCES[self.by](
            student_logits=logits,
            teacher_logits=targets,
            lengths=lengths,
            temperature=temperature,
            reduction=options["reduction"],
        )


class HeadsCTC(Criterion):
    """CTC loss of a term's heads in the middle of the student's encoder, a mean over heads, as NeMo's InterCTC.

    Reduced by `student.aux_ctc.ctc_reduction`; a student without that block has the mean over utterances.
    """

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__(spec, parts)
        _share_heads(self, parts, spec.options["of"])
        classes, pieces = _classes(parts), list(parts.student.joint.vocabulary)
        if classes != pieces:
            raise ValueError(
                f"model.codert.distillation.{spec.options['of']}.ctc_weight is {spec.weight}, but its heads have the "
                f"classes of the teacher's CTC head ({len(classes)}), not the tokenizer's ({len(pieces)}), in which "
                "the transcripts are: set it to 0"
            )
        reduction = (parts.cfg.student.aux_ctc or {}).get("ctc_reduction", "mean_batch")
        self.loss = CTCLoss(num_classes=len(pieces), zero_infinity=True, reduction=reduction)

    def forward(self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch) -> torch.Tensor:
        # Overrides Criterion.forward.
        values = [
            self.loss(
                log_probs=student.head_logits(head, int(number)).log_softmax(-1),
                targets=batch.transcript,
                input_lengths=student.encoded_len,
                target_lengths=batch.transcript_len,
            )
            for number, head in self.heads.items()
        ]
        return sum(values) / len(values)


def _share_heads(criterion: Criterion, parts: PairParts, term: str) -> None:
    """Give a criterion the heads of a term: the first of its criteria builds and owns them, the next refers to it."""
    if term in parts.heads:
        refer(criterion, "heads", parts.heads[term])
        return
    pieces, width = _classes(parts), None
    criterion.heads = parts.heads[term] = nn.ModuleDict()
    for number in criterion.spec.student_layers:
        width = width or parts.student.layer_width()
        criterion.heads[str(number)] = ConvASRDecoder(feat_in=width, num_classes=len(pieces), vocabulary=pieces)


def _classes(parts: PairParts) -> list[str]:
    """Return the classes of the teacher's CTC head; without one, those of the student's joint."""
    head = parts.teacher.ctc_head
    return list((parts.student.joint if head is None else head).vocabulary)
