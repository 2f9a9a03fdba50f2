"""Schema and defaults of the blocks `model.student` and `model.codert`: stated here and nowhere else."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class DistillationConfig:
    """`model.codert.distillation`."""

    weight: float = 0.1  # lambda of the distillation term, >= 0; 0 leaves the term out altogether
    temperature: float = 1.0  # tau > 0, the term is scaled by tau squared
    reduction: str = "per_utterance"  # per_utterance: nats per utterance | per_frame: nats per frame
    start_step: int = 0  # optimizer step before which lambda is 0
    ramp_steps: int = 0  # steps in which lambda then grows linearly to weight
    frame_shift: int = 0  # student frames >= 0: the student's frame t + frame_shift learns from the teacher's frame t


@dataclass
class NonFiniteConfig:
    """`model.codert.non_finite`: an optimizer step whose loss or gradient is not finite."""

    action: str = "stop"  # stop: the run ends | skip: the step is dropped, counted and listed
    max_skips: int = 10  # steps of the whole run that may be skipped, >= 1; one more stops it


@dataclass
class CoDERTConfig:
    """`model.codert`."""

    teacher: str = "co_trained"  # co_trained: trained jointly | frozen: pre-trained, never moved
    teacher_checkpoint: str | None = None  # .nemo path or pretrained name with the teacher's weights
    teacher_logits: str = "joint"  # joint | ctc: where a hybrid teacher's encoder logits come from
    share_decoder: bool = True  # the student uses the teacher's prediction network and its projection
    teacher_loss_weight: float = 1.0  # > 0 when co_trained, unused when frozen
    student_loss_weight: float = 1.0  # > 0; may be 0 when the decoder is shared and the encoder is distilled
    rnnt_loss: str = "auto"  # auto | exact | nemo
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    bad_utterances: str = "drop"  # drop: counted and listed | refuse
    audio_check: str = "auto"  # headers | samples: all audio is decoded first | auto: samples where it is quick
    non_finite: NonFiniteConfig = field(default_factory=NonFiniteConfig)
    activation_checkpointing: bool = False  # trained ConformerEncoders: layers are computed again in the backward pass


@dataclass
class StudentConfig:
    """`model.student`."""

    encoder: Any = None  # any NeMo encoder block, required
    decoder: Any = None  # own prediction network when not shared; null: same shape as model.decoder
    init_from: str | None = None  # .nemo path or pretrained name of an RNN-T to warm-start the student from
    init_from_teacher: bool = False  # start from evenly spaced encoder layers of the teacher, and what else fits
    aux_ctc: Any = None  # a hybrid RNN-T/CTC student: NeMo's block of that name; null: a standard RNN-T
