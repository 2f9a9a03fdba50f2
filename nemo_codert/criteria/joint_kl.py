"""KL divergence of both joints at the nodes of the lattice: all of them, or those that the teacher's weights pick."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from nemo.collections.asr.modules import RNNTJoint

from nemo_codert.config.criteria import ADAPTIVE, CriterionSpec
from nemo_codert.config.tdt import tdt_settings
from nemo_codert.criteria.base import Criterion, PairParts, durations_weight
from nemo_codert.losses import (
    JointSide,
    additive_class_log_probs,
    additive_lattice_kl,
    class_divergence,
    group_features,
    joint_class_log_probs,
    joint_lattice_kl,
    joint_node_logits,
    joint_temperatures,
    lattice_temperatures,
    node_weights,
    tdt_node_occupancies,
)
from nemo_codert.losses.lattice_kl import reduced, scaled_weights, spread_weights
from nemo_codert.modules import AdditiveRNNTJoint
from nemo_codert.modules.encoder_logits import num_token_classes, projected_durations, projected_logits
from nemo_codert.modules.transducer import Batch, BranchOutput


class JointKL(Criterion):
    """KL(teacher || student) at the nodes of the lattice, in nats; the teacher gets no gradient.

    `nodes` weighs the nodes by the teacher, `classes: target_blank_rest` compares next label, blank and all others.
    The student's frame t + `frame_shift` is paired with the teacher's frame t; divergences from a faster teacher's
    frames are averaged over the group. Two additive joints are compared by products alone, others in parts of the
    lattice that are computed again. A shared prediction network gets no gradient from the term, and dropout in a joint
    is left out. With `both_ways` the teacher gets the gradient of KL(student || teacher) as well. Of a TDT pair the
    divergence of the durations' distributions is added, `durations_weight` times: with 1 the sum is the divergence of
    the joint distribution of token and duration. `occupied` nodes of a TDT teacher are those of its own lattice.
    """

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__(spec, parts)
        self.frames_per_student_frame = parts.teacher_frames_per_student_frame
        self.shares_decoder = parts.cfg.codert.share_decoder
        self.refuse_mirror(parts)
        self.durations_weight = durations_weight(spec, parts)
        settings = tdt_settings(parts.cfg)
        self.durations = settings.durations if settings else ()
        self.refuse_floor(num_token_classes(parts.student.joint))

    def forward(self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch) -> torch.Tensor:
        # Overrides Criterion.forward.
        loss = self._divergence(student, teacher, batch)
        return loss + self._divergence(teacher, student, batch) if self.spec.options["both_ways"] else loss

    def _divergence(self, learner: BranchOutput, target: BranchOutput, batch: Batch) -> torch.Tensor:
        options = self.spec.options
        lattices = self._paired(learner, target, batch)
        temperature = options["temperature"]
        if temperature == ADAPTIVE:
            temperature = lattices.temperatures(options["temperature_floor"])
        weights = None if options["nodes"] == "all" else lattices.weights(options["nodes"])
        of = lattices.of_three_classes if options["classes"] == "target_blank_rest" else lattices.of_all_classes
        loss = of(weights, temperature, options["reduction"])
        if not self.durations_weight:
            return loss
        return loss + self.durations_weight * lattices.of_durations(weights, temperature, options["reduction"])

    def _paired(self, learner: BranchOutput, target: BranchOutput, batch: Batch) -> "_Lattices":
        factor, shift = self.frames_per_student_frame, self.spec.options["frame_shift"]
        encoder, target_encoder = learner.encoder_side, target.encoder_side.detach()
        pairs = max(min(encoder.shape[1] - shift, -(-target_encoder.shape[1] // factor)), 0)
        groups = (target.encoded_len + factor - 1) // factor
        lengths = torch.minimum(learner.encoded_len - shift, groups).clamp(min=0, max=pairs)
        prediction = target.prediction_side.detach()
        own_prediction = prediction if self.shares_decoder else learner.prediction_side
        return _Lattices(
            _Side(learner.networks.joint, encoder[:, shift : shift + pairs], own_prediction),
            _Side(target.networks.joint, target_encoder[:, : pairs * factor], prediction),
            batch.transcript,
            batch.transcript_len,
            lengths,
            torch.minimum(target.encoded_len, lengths * factor),
            factor,
            self.durations,
        )


@dataclass(frozen=True, eq=False)
class _Side:
    """A branch's joint with its projections of frames and states, [B, T, H] and [B, U+1, H]."""

    joint: RNNTJoint
    encoder: torch.Tensor
    prediction: torch.Tensor

    @property
    def is_additive(self) -> bool:
        return isinstance(self.joint, AdditiveRNNTJoint)

    @cached_property
    def tokens(self) -> JointSide:
        """The logits of tokens and blank; of an additive joint both parts are logits [..., V+1]."""
        return self._outputs(projected_logits)

    @cached_property
    def durations(self) -> JointSide:
        """The logits of a TDT joint's durations; of an additive joint both parts are logits [..., N]."""
        return self._outputs(projected_durations)

    def _outputs(self, outputs: Callable[[RNNTJoint, torch.Tensor], torch.Tensor]) -> JointSide:
        if self.is_additive:
            parts = (outputs(self.joint, part) for part in (self.encoder, self.prediction))
            return JointSide(lambda frames, states: frames + states, *parts)
        return JointSide(lambda frames, states: outputs(self.joint, frames + states), self.encoder, self.prediction)


@dataclass(frozen=True, eq=False)
class _Lattices:
    """Paired frames of student and teacher, and what is compared at their nodes.

    student, teacher: [B, T, H] and [B, kT, H], [B, U+1, H]. lengths: [B], pairs of frames. teacher_len: [B], the
    teacher's frames. factor: k. durations: of a TDT teacher.
    """

    student: _Side
    teacher: _Side
    targets: torch.Tensor
    target_lengths: torch.Tensor
    lengths: torch.Tensor
    teacher_len: torch.Tensor
    factor: int
    durations: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        return num_token_classes(self.student.joint)

    def _class_log_probs(self, side: int, temperature: float | torch.Tensor = 1.0) -> torch.Tensor:
        """Return the three classes' log-probabilities [B, T, U+1, 3] of the student, 0, or the teacher, 1."""
        part, lengths = (self.student, self.teacher)[side], (self.lengths, self.teacher_len)[side]
        blank, of_batch = self.num_classes - 1, (self.targets, lengths, self.target_lengths)
        if part.is_additive:
            return additive_class_log_probs(*part.tokens[1:], *of_batch, blank=blank, temperature=temperature)
        settings = {"num_classes": self.num_classes, "blank": blank, "temperature": temperature}
        return joint_class_log_probs(part.tokens, *of_batch, **settings)

    @cached_property
    def _of_teacher(self) -> torch.Tensor:
        with torch.no_grad():
            return self._class_log_probs(1)

    def weights(self, nodes: str) -> torch.Tensor:
        """Return the weights [B, T, U+1] of the paired nodes, a mean over the teacher's frames of a group."""
        label, blank, _ = self._of_teacher.unbind(-1)
        given = label[:, :, :-1], blank
        if self.teacher.joint.num_extra_outputs and nodes == "occupied":
            log_durations = joint_node_logits(self.teacher.durations, len(self.durations)).double().log_softmax(-1)
            of_batch = self.teacher_len, self.target_lengths, self.durations
            weights = tdt_node_occupancies(*given, log_durations, *of_batch)
        else:
            weights = node_weights(nodes, *given, self.teacher_len, self.target_lengths)
        return group_features(weights, self.teacher_len, self.factor)[0]

    def temperatures(self, floor: float) -> torch.Tensor:
        """Return the temperature [B] of each utterance."""
        lengths = {"encoded_lengths": self.teacher_len, "target_lengths": self.target_lengths}
        if self.teacher.is_additive:
            logits = dict(zip(("encoder_logits", "prediction_logits"), self.teacher.tokens[1:], strict=True))
            return lattice_temperatures(**logits, **lengths, floor=floor)
        return joint_temperatures(self.teacher.tokens, *lengths.values(), num_classes=self.num_classes, floor=floor)

    def of_all_classes(
        self, weights: torch.Tensor | None, temperature: float | torch.Tensor, reduction: str
    ) -> torch.Tensor:
        """Return the divergence of the nodes' distributions over tokens and blank."""
        given = self.student.tokens, self.teacher.tokens, self.num_classes
        return self._divergence(*given, weights, temperature, reduction)

    def of_durations(
        self, weights: torch.Tensor | None, temperature: float | torch.Tensor, reduction: str
    ) -> torch.Tensor:
        """Return the divergence of the nodes' distributions over durations."""
        given = self.student.durations, self.teacher.durations, len(self.durations)
        return self._divergence(*given, weights, temperature, reduction)

    def _divergence(
        self,
        student: JointSide,
        teacher: JointSide,
        num_classes: int,
        weights: torch.Tensor | None,
        temperature: float | torch.Tensor,
        reduction: str,
    ) -> torch.Tensor:
        settings = {
            "encoded_lengths": self.lengths,
            "target_lengths": self.target_lengths,
            "node_weights": weights,
            "temperature": temperature,
            "reduction": reduction,
            "frames_per_student_frame": self.factor,
            "teacher_lengths": self.teacher_len,
        }
        if self.student.is_additive and self.teacher.is_additive:
            return additive_lattice_kl(
                student_encoder_logits=student.encoder_part,
                student_prediction_logits=student.prediction_part,
                teacher_encoder_logits=teacher.encoder_part,
                teacher_prediction_logits=teacher.prediction_part,
                **settings,
            )
        return joint_lattice_kl(student=student, teacher=teacher, num_classes=num_classes, **settings)

    def of_three_classes(
        self, weights: torch.Tensor | None, temperature: float | torch.Tensor, reduction: str
    ) -> torch.Tensor:
        """Return the divergence of next label, blank and all others."""
        given = self.teacher.encoder.shape[1]
        student = self._class_log_probs(0, temperature).repeat_interleave(self.factor, 1)[:, :given]
        with torch.no_grad():
            is_one = not isinstance(temperature, torch.Tensor) and temperature == 1
            teacher = self._of_teacher if is_one else self._class_log_probs(1, temperature)
        nodes = class_divergence(student, teacher, self.teacher_len, self.target_lengths)  # [B, kT, U+1]
        frames, states = self.student.encoder.shape[1], nodes.shape[2]
        weights = scaled_weights(weights, self.lengths, self.target_lengths, frames, states)
        if self.factor > 1:
            weights = spread_weights(weights, self.teacher_len, self.factor, given)
        tau = torch.as_tensor(temperature, dtype=nodes.dtype, device=nodes.device)
        return reduced((nodes * weights).sum((1, 2)) * tau**2, self.lengths, reduction).float()
