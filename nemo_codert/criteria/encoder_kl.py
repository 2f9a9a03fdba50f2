"""The paper's term: KL divergence of the encoder logits over common frames (arXiv:2106.07734, section 2.2)."""

import torch

from nemo_codert.config.criteria import ADAPTIVE, CriterionSpec
from nemo_codert.config.teachers import HEAD_LOGITS
from nemo_codert.criteria.base import Criterion, PairParts, durations_weight
from nemo_codert.criteria.top_k import top_k_divergence
from nemo_codert.losses import encoder_distillation_loss, frame_temperatures, group_frames, paired_frames
from nemo_codert.modules.encoder_logits import num_token_classes
from nemo_codert.modules.transducer import Batch, BranchOutput


class EncoderKL(Criterion):
    """KL(teacher || student) of the encoder logits, in nats; the teacher gets no gradient.

    Frames of a faster teacher are grouped; the student's frame t + `frame_shift` learns from the teacher's frame t.
    With `prior: mean_prediction` both sides are logits plus the utterance's mean prediction logits, which no constant
    moves that an additive joint may shift from one side to the other. With `both_ways` the teacher gets the gradient
    of KL(student || teacher) as well. Of a TDT pair the divergence of the durations' logits is added,
    `durations_weight` times, at the temperature of the tokens.
    """

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__(spec, parts)
        self.frames_per_student_frame = parts.teacher_frames_per_student_frame
        self.shares_decoder = parts.cfg.codert.share_decoder
        self.refuse_mirror(parts)
        has_head = parts.cfg.codert.teacher_logits in HEAD_LOGITS  # a CTC head has no durations
        self.durations_weight = 0.0 if has_head else durations_weight(spec, parts)
        self.refuse_floor(num_token_classes(parts.student.joint))

    def forward(self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch) -> torch.Tensor:
        # Overrides Criterion.forward.
        loss = self._divergence(student, teacher)
        return loss + self._divergence(teacher, student) if self.spec.options["both_ways"] else loss

    def _divergence(self, learner: BranchOutput, target: BranchOutput) -> torch.Tensor:
        options, logits = self.spec.options, self._logits(learner, learns=True)  # [B, T', V+1]
        if target.top_k is not None:  # the prior is in them
            return top_k_divergence(logits, learner.encoded_len, target, options)
        logits, targets, lengths = self._paired(learner, target, logits, self._logits(target))
        temperature = options["temperature"]
        if temperature == ADAPTIVE:
            temperature = frame_temperatures(targets, options["temperature_floor"])
        settings = {"lengths": lengths, "temperature": temperature, "reduction": options["reduction"]}
        loss = encoder_distillation_loss(student_logits=logits, teacher_logits=targets, **settings)
        if not self.durations_weight:
            return loss
        durations = self._logits(learner, learns=True, durations=True), self._logits(target, durations=True)
        logits, targets, _ = self._paired(learner, target, *durations)
        of_durations = encoder_distillation_loss(student_logits=logits, teacher_logits=targets, **settings)
        return loss + self.durations_weight * of_durations

    def _logits(self, branch: BranchOutput, *, learns: bool = False, durations: bool = False) -> torch.Tensor:
        """Return a branch's encoder logits [B, T, V+1], or those of durations [B, T, N], with the prior."""
        logits = branch.encoder_durations if durations else branch.encoder_logits
        if not learns:  # the logits keep a graph, which another term may need
            logits = logits.detach()
        if self.spec.options["prior"] == "mean_prediction":
            prior = branch.mean_prediction_durations if durations else branch.mean_prediction  # [B, 1, V+1 or N]
            logits = logits + (prior if learns and not self.shares_decoder else prior.detach())
        return logits

    def _paired(
        self, learner: BranchOutput, target: BranchOutput, logits: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the logits of common frames, the targets grouped to the student's frames, and lengths [B]."""
        grouped = group_frames(targets, target.encoded_len, self.frames_per_student_frame)
        return paired_frames(logits, learner.encoded_len, *grouped, shift=self.spec.options["frame_shift"])
