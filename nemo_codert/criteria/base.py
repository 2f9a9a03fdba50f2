"""The base of every term of the training loss, and what a term is built from. Imports torch and NeMo's loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from nemo.collections.asr.losses.rnnt import RNNTLoss
from omegaconf import DictConfig
from torch import nn

from nemo_codert.config.criteria import ADAPTIVE, CriterionSpec
from nemo_codert.losses.temperature import floor_problem
from nemo_codert.modules.transducer import Batch, BranchOutput, Transducer


@dataclass(frozen=True)
class PairParts:
    """Parts of a pair that a criterion may be built from. Holds references: the modules belong to the pair.

    Args:
        cfg: the pair's checked model config.
        student, teacher: the networks of both branches.
        student_ctc_head: of a hybrid student, else None.
        teacher_frames_per_student_frame: 1 or more, see `nemo_codert.losses.group_frames`.
        nemo_loss: NeMo's RNN-T loss of the model: its kernel, blank, FastEmit and reduction.
        heads: name of a term -> its CTC heads in the middle of the student's encoder, once a criterion has built them.

    Example:
        A criterion with parameters of its own reads their sizes here:

        >>> from types import SimpleNamespace
        >>> branch = SimpleNamespace(encoder=SimpleNamespace(d_model=64))
        >>> parts = PairParts({}, branch, branch, None, teacher_frames_per_student_frame=2, nemo_loss=None)
        >>> nn.Linear(parts.student.encoder.d_model, 8).weight.shape
        torch.Size([8, 64])
    """

    cfg: DictConfig
    student: Transducer
    teacher: Transducer
    student_ctc_head: nn.Module | None
    teacher_frames_per_student_frame: int
    nemo_loss: RNNTLoss
    heads: dict[str, nn.ModuleDict] = field(default_factory=dict)


class Criterion(nn.Module, ABC):
    """One weighted term of the training loss.

    Parameters that a criterion owns are trained with the branch that `spec.trains` names and belong to neither branch:
    they are in the pair's files and in no exported one.

    Args:
        spec: the term's name, schedule and options, from the config.
        parts: what the term may be built from.

    Example:
        A criterion that draws the student's encoder logits to 0, as `tests/criteria/test_toy_criterion.py` trains it:

        >>> class Smallness(Criterion):
        ...     def forward(self, student, teacher, batch):
        ...         return student.encoder_logits.pow(2).mean()
    """

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__()
        self.spec = spec

    def refuse_mirror(self, parts: PairParts) -> None:
        """Raise ValueError for `both_ways` where the teacher has more frames than the student."""
        if self.spec.options["both_ways"] and parts.teacher_frames_per_student_frame > 1:
            raise ValueError(
                f"model.codert.distillation.{self.spec.name}.both_ways is true but the teacher has "
                f"{parts.teacher_frames_per_student_frame} frames for each of the student: set both_ways to false"
            )

    def refuse_floor(self, num_classes: int) -> None:
        """Raise ValueError for a floor of an adaptive temperature that `num_classes` classes cannot reach."""
        options = self.spec.options
        problem = floor_problem(options["temperature_floor"], num_classes)
        if options["temperature"] == ADAPTIVE and problem:
            raise ValueError(f"model.codert.distillation.{self.spec.name}.temperature_floor is {problem}")

    @abstractmethod
    def forward(self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch) -> torch.Tensor:
        """Return the unweighted term, a scalar.

        Args:
            student: output of the student.
            teacher: output of the teacher; None where no active term needs it.
            batch: the batch that both were computed from. Of a term that needs text all three hold the utterances with
                text alone.
        """


def durations_weight(spec: CriterionSpec, parts: PairParts) -> float:
    """Return a term's factor of the durations' divergence: 0 unless both branches have logits of durations.

    Raises:
        ValueError: durations that count frames of different lengths.
    """
    weight, frames = spec.options["durations_weight"], parts.teacher_frames_per_student_frame
    if not (weight and parts.student.joint.num_extra_outputs and parts.teacher.joint.num_extra_outputs):
        return 0.0
    if frames > 1:
        raise ValueError(
            f"model.codert.distillation.{spec.name}.durations_weight is {weight} but the teacher has {frames} frames "
            "for each of the student: a duration is another time in each. Set it to 0"
        )
    return weight
