"""The paper's term: KL divergence of the encoder logits over common frames (arXiv:2106.07734, section 2.2)."""

import torch

from nemo_codert.config.criteria import ADAPTIVE, CriterionSpec
from nemo_codert.criteria.base import Criterion, PairParts
from nemo_codert.criteria.top_k import top_k_divergence
from nemo_codert.losses import encoder_distillation_loss, frame_temperatures, group_frames, paired_frames
from nemo_codert.losses.temperature import floor_problem
from nemo_codert.modules.transducer import Batch, BranchOutput


class EncoderKL(Criterion):
    """KL(teacher || student) of the encoder logits, in nats; the teacher gets no gradient.

    Frames of a faster teacher are grouped; the student's frame t + `frame_shift` learns from the teacher's frame t.
    With `prior: mean_prediction` both sides are logits plus the utterance's mean prediction logits, which no constant
    moves that an additive joint may shift from one side to the other. With `both_ways` the teacher gets the gradient
    of KL(student || teacher) as well.
    """

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__(spec, parts)
        self.frames_per_student_frame = parts.teacher_frames_per_student_frame
        self.shares_decoder = parts.cfg.codert.share_decoder
        self.refuse_mirror(parts)
        num_classes = parts.student.joint.num_classes_with_blank
        problem = floor_problem(spec.options["temperature_floor"], num_classes)
        if spec.options["temperature"] == ADAPTIVE and problem:
            raise ValueError(f"model.codert.distillation.{spec.name}.temperature_floor is {problem}")

    def forward(self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch) -> torch.Tensor:
        # Overrides Criterion.forward.
        loss = self._divergence(student, teacher)
        return loss + self._divergence(teacher, student) if self.spec.options["both_ways"] else loss

    def _divergence(self, learner: BranchOutput, target: BranchOutput) -> torch.Tensor:
        options, logits = self.spec.options, learner.encoder_logits  # [B, T', V+1]
        if options["prior"] == "mean_prediction":
            prior = learner.mean_prediction  # [B, 1, V+1]
            logits = logits + (prior.detach() if self.shares_decoder else prior)
        if target.top_k is not None:  # the prior is in them
            return top_k_divergence(logits, learner.encoded_len, target, options)
        targets = target.encoder_logits.detach()  # the logits keep a graph, which another term may need
        if options["prior"] == "mean_prediction":
            targets = targets + target.mean_prediction.detach()
        grouped = group_frames(targets, target.encoded_len, self.frames_per_student_frame)
        logits, targets, lengths = paired_frames(logits, learner.encoded_len, *grouped, shift=options["frame_shift"])
        temperature = options["temperature"]
        if temperature == ADAPTIVE:
            temperature = frame_temperatures(targets, options["temperature_floor"])
        return encoder_distillation_loss(
            student_logits=logits,
            teacher_logits=targets,
            lengths=lengths,
            temperature=temperature,
            reduction=options["reduction"],
        )
