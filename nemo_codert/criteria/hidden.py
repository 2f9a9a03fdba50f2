"""Terms at hidden layers: layers of the student's encoder drawn to layers of the teacher's.

B batch, T encoder frames, D channels.
"""

import torch
from torch import nn

from nemo_codert.config.criteria import CriterionSpec
from nemo_codert.criteria.base import Criterion, PairParts
from nemo_codert.losses import feature_distance, group_features, paired_frames
from nemo_codert.losses.features import FRAME_MEASURES
from nemo_codert.modules.transducer import Batch, BranchOutput


class Hidden(Criterion):
    """Distance of hidden features, a mean over the pairs of layers; the teacher gets no gradient.

    The measure is the second word of the kind, see `nemo_codert.losses.feature_distance`. Where it needs equal widths
    and they differ, the student's features pass through a linear layer of the term, which is trained with the student.
    Frames of a faster teacher are grouped by their mean; the student's frame t + `frame_shift` learns from the
    teacher's frame t.
    """

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__(spec, parts)
        self.by = spec.kind.partition(".")[2]
        self.pairs = tuple(zip(spec.student_layers, spec.teacher_layers, strict=True))
        self.frames_per_student_frame = parts.teacher_frames_per_student_frame
        widths = parts.student.layer_width(), parts.teacher.layer_width()
        bridged = self.by in FRAME_MEASURES and widths[0] != widths[1]
        self.projections = nn.ModuleDict({str(own): nn.Linear(*widths) for own, _ in self.pairs if bridged})

    def forward(self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch) -> torch.Tensor:
        # Overrides Criterion.forward.
        return sum(self._distance(student, teacher, *pair) for pair in self.pairs) / len(self.pairs)

    def _distance(self, student: BranchOutput, teacher: BranchOutput, own: int, other: int) -> torch.Tensor:
        options, features = self.spec.options, student.layers[own].transpose(1, 2)  # [B, T', D]
        if str(own) in self.projections:
            features = self.projections[str(own)](features)
        with torch.no_grad():
            targets = teacher.layers[other].detach().transpose(1, 2)  # [B, T, D]
            grouped = group_features(targets, teacher.encoded_len, self.frames_per_student_frame)
        features, targets, lengths = paired_frames(
            features, student.encoded_len, *grouped, shift=options["frame_shift"]
        )
        return feature_distance(
            student=features,
            teacher=targets,
            lengths=lengths,
            by=self.by,
            self_weight=options.get("self_weight", 0.0),
            reduction=options["reduction"],
        )
