"""KL divergence of both joints at the nodes of the lattice: all of them, or those that the teacher's weights pick."""

from dataclasses import dataclass
from functools import cached_property

import torch
from nemo.collections.asr.modules import RNNTJoint

from nemo_codert.config.criteria import ADAPTIVE, CriterionSpec
from nemo_codert.criteria.base import Criterion, PairParts
from nemo_codert.losses import (
    JointSide,
    additive_class_log_probs,
    additive_lattice_kl,
    class_divergence,
    group_features,
    joint_class_log_probs,
    joint_lattice_kl,
    joint_temperatures,
    lattice_temperatures,
    node_weights,
)
from nemo_codert.losses.lattice_kl import reduced, scaled_weights, spread_weights
from nemo_codert.losses.temperature import floor_problem
from nemo_codert.modules import AdditiveRNNTJoint
from nemo_codert.modules.encoder_logits import projected_logits
from nemo_codert.modules.transducer import Batch, BranchOutput


class JointKL(Criterion):
    """KL(teacher || student) at the nodes of the lattice, in nats; the teacher gets no gradient.

    `nodes` weighs the nodes by the teacher, `classes: target_blank_rest` compares next label, blank and all others.
    The student's frame t + `frame_shift` is paired with the teacher's frame t; divergences from a faster teacher's
    frames are averaged over the group. Two additive joints are compared by products alone, others in parts of the
    lattice that are computed again. A shared prediction network gets no gradient from the term, and dropout in a joint
    is left out. With `both_ways` the teacher gets the gradient of KL(student || teacher) as well.
    """

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__(spec, parts)
        self.frames_per_student_frame = parts.teacher_frames_per_student_frame
        self.shares_decoder = parts.cfg.codert.share_decoder
        self.refuse_mirror(parts)
        problem = floor_problem(spec.options["temperature_floor"], parts.student.joint.num_classes_with_blank)
        if spec.options["temperature"] == ADAPTIVE and problem:
            raise ValueError(f"model.codert.distillation.{spec.name}.temperature_floor is {problem}")

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
        return of(weights, temperature, options["reduction"])

    def _paired(self, learner: BranchOutput, target: BranchOutput, batch: Batch) -> "_Lattices":
        factor, shift = self.frames_per_student_frame, self.spec.options["frame_shift"]
        encoder, target_encoder = learner.encoder_side, target.encoder_side.detach()
        pairs = max(min(encoder.shape[1] - shift, -(-target_encoder.shape[1] // factor)), 0)
        groups = (target.encoded_len + factor - 1) // factor
        lengths = torch.minimum(learner.encoded_len - shift, groups).clamp(min=0, max=pairs)
        prediction = target.prediction_side.detach()
        own_prediction = prediction if self.shares_decoder else learner.prediction_side
        return _Lattices(
            _side(learner.networks.joint, encoder[:, shift : shift + pairs], own_prediction),
            _side(target.networks.joint, target_encoder[:, : pairs * factor], prediction),
            (learner.networks.joint, target.networks.joint),
            batch.transcript,
            batch.transcript_len,
            lengths,
            torch.minimum(target.encoded_len, lengths * factor),
            factor,
        )


def _side(joint: RNNTJoint, encoder: torch.Tensor, prediction: torch.Tensor) -> JointSide:
    return JointSide(lambda frames, states: projected_logits(joint, frames + states), encoder, prediction)


@dataclass(frozen=True, eq=False)
class _Lattices:
    """Paired frames of student and teacher, and what is compared at their nodes.

    student, teacher: [B, T, H] and [B, kT, H], [B, U+1, H]. joints: of both. lengths: [B], pairs of frames.
    teacher_len: [B], the teacher's frames. factor: k.
    """

    student: JointSide
    teacher: JointSide
    joints: tuple[RNNTJoint, RNNTJoint]
    targets: torch.Tensor
    target_lengths: torch.Tensor
    lengths: torch.Tensor
    teacher_len: torch.Tensor
    factor: int

    @property
    def num_classes(self) -> int:
        return self.joints[0].num_classes_with_blank

    @property
    def are_additive(self) -> bool:
        return all(isinstance(joint, AdditiveRNNTJoint) for joint in self.joints)

    def _class_log_probs(self, side: int, temperature: float | torch.Tensor = 1.0) -> torch.Tensor:
        """Return the three classes' log-probabilities [B, T, U+1, 3] of the student, 0, or the teacher, 1."""
        part, lengths = (self.student, self.teacher)[side], (self.lengths, self.teacher_len)[side]
        blank, of_batch = self.num_classes - 1, (self.targets, lengths, self.target_lengths)
        if isinstance(self.joints[side], AdditiveRNNTJoint):
            return additive_class_log_probs(*part[1:], *of_batch, blank=blank, temperature=temperature)
        settings = {"num_classes": self.num_classes, "blank": blank, "temperature": temperature}
        return joint_class_log_probs(part, *of_batch, **settings)

    @cached_property
    def _of_teacher(self) -> torch.Tensor:
        with torch.no_grad():
            return self._class_log_probs(1)

    def weights(self, nodes: str) -> torch.Tensor:
        """Return the weights [B, T, U+1] of the paired nodes, a mean over the teacher's frames of a group."""
        label, blank, _ = self._of_teacher.unbind(-1)
        weights = node_weights(nodes, label[:, :, :-1], blank, self.teacher_len, self.target_lengths)
        return group_features(weights, self.teacher_len, self.factor)[0]

    def temperatures(self, floor: float) -> torch.Tensor:
        """Return the temperature [B] of each utterance."""
        lengths = {"encoded_lengths": self.teacher_len, "target_lengths": self.target_lengths}
        if isinstance(self.joints[1], AdditiveRNNTJoint):
            logits = dict(zip(("encoder_logits", "prediction_logits"), self.teacher[1:], strict=True))
            return lattice_temperatures(**logits, **lengths, floor=floor)
        return joint_temperatures(self.teacher, *lengths.values(), num_classes=self.num_classes, floor=floor)

    def of_all_classes(
        self, weights: torch.Tensor | None, temperature: float | torch.Tensor, reduction: str
    ) -> torch.Tensor:
        """Return the divergence of the nodes' distributions."""
        settings = {
            "encoded_lengths": self.lengths,
            "target_lengths": self.target_lengths,
            "node_weights": weights,
            "temperature": temperature,
            "reduction": reduction,
            "frames_per_student_frame": self.factor,
            "teacher_lengths": self.teacher_len,
        }
        if self.are_additive:
            return additive_lattice_kl(
                student_encoder_logits=self.student.encoder_part,
                student_prediction_logits=self.student.prediction_part,
                teacher_encoder_logits=self.teacher.encoder_part,
                teacher_prediction_logits=self.teacher.prediction_part,
                **settings,
            )
        return joint_lattice_kl(student=self.student, teacher=self.teacher, num_classes=self.num_classes, **settings)

    def of_three_classes(
        self, weights: torch.Tensor | None, temperature: float | torch.Tensor, reduction: str
    ) -> torch.Tensor:
        """Return the divergence of next label, blank and all others."""
        given = self.teacher.encoder_part.shape[1]
        student = self._class_log_probs(0, temperature).repeat_interleave(self.factor, 1)[:, :given]
        with torch.no_grad():
            is_one = not isinstance(temperature, torch.Tensor) and temperature == 1
            teacher = self._of_teacher if is_one else self._class_log_probs(1, temperature)
        nodes = class_divergence(student, teacher, self.teacher_len, self.target_lengths)  # [B, kT, U+1]
        frames, states = self.student.encoder_part.shape[1], nodes.shape[2]
        weights = scaled_weights(weights, self.lengths, self.target_lengths, frames, states)
        if self.factor > 1:
            weights = spread_weights(weights, self.teacher_len, self.factor, given)
        tau = torch.as_tensor(temperature, dtype=nodes.dtype, device=nodes.device)
        return reduced((nodes * weights).sum((1, 2)) * tau**2, self.lengths, reduction).float()
