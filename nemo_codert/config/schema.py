"""Schema and defaults of the blocks `model.student` and `model.codert`: stated here and nowhere else."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class NonFiniteConfig:
    """`model.codert.non_finite`: an optimizer step whose loss or gradient is not finite."""

    action: str = "stop"  # stop: the run ends | skip: the step is dropped, counted and listed
    max_skips: int = 10  # steps of the whole run that may be skipped, >= 1; one more stops the run


@dataclass
class CoDERTConfig:
    """`model.codert`."""

    teacher: str = "co_trained"  # co_trained: trained jointly | frozen: pre-trained | cached: stored targets | ema
    teacher_checkpoint: str | None = None  # .nemo path or pretrained name with the teacher's weights
    teacher_cache: str | None = None  # folder of targets that codert cache made, of a cached teacher
    ema_decay: float = 0.999  # share that an ema teacher keeps of itself in a step, >= 0 and < 1; 0: the student
    teacher_logits: str = "joint"  # joint | ctc | ctc_alone: source of the teacher's encoder logits
    share_decoder: bool = True  # the student uses the teacher's prediction network and its projection
    teacher_loss_weight: float = 1.0  # > 0 when co_trained, unused when frozen
    student_loss_weight: float = 1.0  # > 0; may be 0 when the decoder is shared and the encoder is distilled
    rnnt_loss: str = "auto"  # auto | exact | nemo
    student_loss_from_step: int = 0  # first optimizer step with the student's own loss: a first stage without it
    distillation: Any = field(default_factory=lambda: {"encoder": {}})  # named terms, see config.criteria; null: none
    student_hears: Any = None  # noise and masks on the student's copy alone, see config.student_hears; null: none
    bad_utterances: str = "drop"  # drop: counted and listed | refuse
    audio_check: str = "auto"  # headers | samples: all audio is decoded first | auto: samples where it is quick
    non_finite: NonFiniteConfig = field(default_factory=NonFiniteConfig)
    activation_checkpointing: bool = False  # trained ConformerEncoders: layers are computed again in the backward pass


@dataclass
class StudentConfig:
    """`model.student`."""

    encoder: Any = None  # any NeMo encoder block, required
    decoder: Any = None  # own prediction network when not shared; null: same shape as model.decoder
    joint: Any = None  # own joint network; null: the block model.joint
    durations: Any = None  # a TDT student: decoding.durations, those of its teacher; null: a standard RNN-T
    init_from: str | None = None  # .nemo path or pretrained name of an RNN-T to warm-start the student from
    init_from_teacher: bool = False  # start from evenly spaced encoder layers of the teacher, and other parts that fit
    aux_ctc: Any = None  # a hybrid RNN-T/CTC student: NeMo's block of that name; null: a standard RNN-T
