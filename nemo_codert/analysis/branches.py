"""The networks to be measured: branches of a pair, a model trained alone, or two models as student and teacher.

May import models; nothing but scripts and analysis imports this.
"""

from dataclasses import dataclass

from nemo.collections.asr.models import EncDecRNNTBPEModel

from nemo_codert.models.open_model import branches, networks_of
from nemo_codert.modules.encoder_geometry import encoder_geometry
from nemo_codert.modules.transducer import Transducer

RATIO_TOLERANCE = 1e-6  # the lengths of two frames in seconds are products of a few decimal numbers


@dataclass(frozen=True)
class Branch:
    """Networks to measure, with the model that owns their feature front end and tokenizer.

    name: `student` or `teacher`, or `model` for one trained alone. seconds_per_frame: one encoder frame.
    """

    name: str
    model: EncDecRNNTBPEModel
    transducer: Transducer
    seconds_per_frame: float

    @property
    def pieces(self) -> list[str]:
        """Word pieces in order of id."""
        return list(self.model.joint.vocabulary)

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return int(self.model.cfg.preprocessor.sample_rate)


def measured_branches(
    model: EncDecRNNTBPEModel, which: str = "both", teacher: EncDecRNNTBPEModel | None = None
) -> list[Branch]:
    """Return the branches to measure: those of a pair, a model trained alone, or such a model and a separate teacher.

    Args:
        model: a pair, or a model trained alone.
        which: `student`, `teacher` or `both` branches of a pair; a model trained alone has no branch `teacher`.
        teacher: a teacher for a model trained alone, by itself or as half of a pair; None for a pair, which has its
            own.

    Raises:
        ValueError: branches that the model does not have, or a teacher and a student that cannot be compared.
    """
    if which != "both":
        networks_of(model, which)  # refuses a branch that the model does not have
    found = branches(model)
    if "model" not in found:
        if teacher is not None:
            raise ValueError("a teacher is given, but the model is a pair and has its own: leave the teacher out")
        wanted = {name: networks for name, networks in found.items() if which in (name, "both")}
        if not model.teacher_transcribes:
            wanted.pop("teacher", None)
        return [_branch(name, model, networks) for name, networks in wanted.items()]
    own = _branch("model" if teacher is None else "student", model, found["model"])
    if teacher is None:
        return [own]
    of_teacher = branches(teacher)
    other = _branch("teacher", teacher, of_teacher.get("teacher") or of_teacher["model"])
    check_comparable(own, other)
    return [own, other]


def _branch(name: str, model: EncDecRNNTBPEModel, transducer: Transducer) -> Branch:
    stride = encoder_geometry(transducer.encoder, model.cfg.preprocessor.features).stride
    return Branch(name, model, transducer, stride * model.cfg.preprocessor.get("window_stride", 0.01))


def check_comparable(student: Branch, teacher: Branch) -> None:
    """Check that two models can be compared frame by frame and piece by piece.

    Raises:
        ValueError: one error that lists every reason why not.
    """
    problems = []
    if teacher.pieces != student.pieces:
        pairs = zip(teacher.pieces, student.pieces, strict=False)
        differing = next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(teacher.pieces), len(student.pieces))
        )
        problems.append(
            f"model.tokenizer: the teacher has {len(teacher.pieces)} word pieces, the student {len(student.pieces)}, "
            f"and they differ from id {differing} on. Train both with one tokenizer"
        )
    if teacher.sample_rate != student.sample_rate:
        problems.append(
            f"model.preprocessor.sample_rate: {teacher.sample_rate} Hz for the teacher, {student.sample_rate} Hz for "
            "the student. Train both at one rate"
        )
    ratio = student.seconds_per_frame / teacher.seconds_per_frame
    if round(ratio) < 1 or abs(ratio - round(ratio)) > RATIO_TOLERANCE:
        problems.append(
            f"model.encoder: one frame of the teacher is {1000 * teacher.seconds_per_frame:g} ms, one of the student "
            f"{1000 * student.seconds_per_frame:g} ms: teacher frames cannot be grouped into student frames. The "
            "student's subsampling factor has to be the teacher's or a whole multiple of it"
        )
    if problems:
        raise ValueError("teacher and student cannot be compared:\n  - " + "\n  - ".join(problems))
