"""The `model.student` and `model.codert` blocks: defaults (here and nowhere else) and every check a config can get.

`checked_config` is the one entry. It fills defaults in and raises one ValueError that lists all faults together,
before any weight is allocated. The stock keys we support, ignore or refuse are in docs/configuration.md.
May import omegaconf only.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nemo_codert import __version__

logger = logging.getLogger(__name__)

ADDITIVE_JOINT = "nemo_codert.modules.AdditiveRNNTJoint"
STOCK_JOINT = "nemo.collections.asr.modules.RNNTJoint"
RNNT_LOSSES = ("default", "warprnnt_numba")
RNNT_REDUCTIONS = ("mean_batch", "mean", "mean_volume", "sum")


@dataclass
class DistillationConfig:
    """`model.codert.distillation`."""

    weight: float = 0.1  # lambda of the distillation term, >= 0; 0 leaves the term out altogether
    temperature: float = 1.0  # tau > 0, the term is scaled by tau squared
    reduction: str = "per_utterance"  # per_utterance: nats per utterance | per_frame: nats per frame
    start_step: int = 0  # optimizer step before which lambda is 0
    ramp_steps: int = 0  # steps in which lambda then grows linearly to weight


@dataclass
class CoDERTConfig:
    """`model.codert`."""

    teacher: str = "co_trained"  # co_trained: trained jointly | frozen: pre-trained, never moved
    teacher_checkpoint: str | None = None  # .nemo path or pretrained name with the teacher's weights
    share_decoder: bool = True  # the student uses the teacher's prediction network and its projection
    teacher_loss_weight: float = 1.0  # > 0 when co_trained, unused when frozen
    student_loss_weight: float = 1.0  # > 0; may be 0 when the decoder is shared and the encoder is distilled
    rnnt_loss: str = "auto"  # auto | exact | nemo
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    bad_utterances: str = "drop"  # drop: counted and listed | refuse


@dataclass
class StudentConfig:
    """`model.student`."""

    encoder: Any = None  # any NeMo encoder block, required
    decoder: Any = None  # own prediction network when not shared; null: same shape as model.decoder
    init_from: str | None = None  # .nemo path or pretrained name of an RNN-T to warm-start the student from


CHOICES = {
    "teacher": ("co_trained", "frozen"),
    "rnnt_loss": ("auto", "exact", "nemo"),
    "bad_utterances": ("drop", "refuse"),
}


def checked_config(cfg: DictConfig) -> DictConfig:
    """Model config of a pair with all defaults of our blocks filled in.

    Args:
        cfg: the `model` section: a stock RNN-T config plus `student` and `codert`.

    Raises:
        ValueError: one error that lists every unknown key, wrong type and contradiction found.
    """
    problems: list[str] = []
    student = _typed_block(cfg, "student", StudentConfig, problems)
    codert = _typed_block(cfg, "codert", CoDERTConfig, problems)
    problems += [*_student_problems(student, codert), *_codert_problems(codert), *_unsupported_options(cfg)]
    problems += _frame_rate_problems(cfg, student)
    if problems:
        raise ValueError("The model config cannot be used:\n  - " + "\n  - ".join(problems))
    _warn_of_keys_without_effect(cfg, codert)
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.student, cfg.codert, cfg.nemo_codert_version = student, codert, __version__
    return cfg


def distillation_weight(distillation: DistillationConfig | DictConfig, step: int) -> float:
    """Lambda at an optimizer step: 0 before `start_step`, a linear ramp of `ramp_steps`, then `weight`."""
    if step < distillation.start_step:
        return 0.0
    if distillation.ramp_steps == 0:
        return distillation.weight
    return distillation.weight * min(1.0, (step - distillation.start_step + 1) / distillation.ramp_steps)


def encoder_stride(encoder: DictConfig) -> int | None:
    """Feature frames per encoder frame as the config of an encoder states it, None where it does not."""
    factor = encoder.get("subsampling_factor")
    if not isinstance(factor, int):
        return None
    return factor * encoder.get("reduction_factor", 1) if encoder.get("reduction") else factor


def rate_problem(teacher_stride: int, student_stride: int) -> str | None:
    """Why teacher frames cannot be grouped into student frames, None where they can."""
    if student_stride % teacher_stride == 0:
        return None
    return (
        f"model.encoder makes one frame of {teacher_stride} feature frames, model.student.encoder one of "
        f"{student_stride}: teacher frames cannot be grouped into student frames. Make the student's subsampling "
        f"factor the teacher's or a whole multiple of it"
    )


def _typed_block(cfg: DictConfig, name: str, schema: type, problems: list[str]) -> DictConfig:
    """The block merged into its schema, key by key so that every fault is found and not just the first."""
    block = cfg.get(name)
    if block is None:
        problems.append(f"model.{name} is missing: add the block (docs/configuration.md lists its keys)")
        block = {}
    if not OmegaConf.is_dict(block) and not isinstance(block, dict):
        problems.append(f"model.{name} is {block!r}, wanted a block of keys")
        block = {}
    typed = OmegaConf.structured(schema)
    _merge(typed, block, f"model.{name}", problems)
    return OmegaConf.create(OmegaConf.to_container(typed))


def _merge(typed: DictConfig, block: DictConfig | dict, path: str, problems: list[str]) -> None:
    for key in block:
        if OmegaConf.is_config(block) and OmegaConf.is_missing(block, key):
            problems.append(f"{path}.{key} is ???: it has no default, give it a value")
            continue
        value = block[key]
        if key not in typed:
            problems.append(f"{path}.{key} is not a key of this version, known are {', '.join(map(str, typed))}")
        elif OmegaConf.is_dict(typed[key]):
            if OmegaConf.is_dict(value) or isinstance(value, dict):
                _merge(typed[key], value, f"{path}.{key}", problems)
            else:
                problems.append(f"{path}.{key} is {value!r}, wanted a block of keys")
        else:
            try:
                typed[key] = value
            except OmegaConfBaseException:
                wanted = OmegaConf.get_type(typed).__annotations__[key]
                wanted = getattr(wanted, "__name__", str(wanted))
                problems.append(f"{path}.{key} is {value!r}, wanted {wanted}")


def _student_problems(student: DictConfig, codert: DictConfig) -> Iterator[str]:
    if student.encoder is None:
        yield "model.student.encoder is missing: give it any NeMo encoder block (with its _target_)"
    elif not OmegaConf.is_dict(student.encoder) or "_target_" not in student.encoder:
        yield "model.student.encoder has no _target_: name the encoder class, as in model.encoder"
    if student.decoder is not None and codert.share_decoder:
        yield (
            "model.student.decoder is set but model.codert.share_decoder is true: the student would never use its "
            "own prediction network. Set model.student.decoder to null or share_decoder to false"
        )


def _codert_problems(codert: DictConfig) -> Iterator[str]:
    for key, allowed in CHOICES.items():
        if codert[key] not in allowed:
            yield f"model.codert.{key} is {codert[key]!r}, wanted one of {', '.join(allowed)}"
    kd = codert.distillation
    if kd.reduction not in ("per_utterance", "per_frame"):
        yield f"model.codert.distillation.reduction is {kd.reduction!r}, wanted one of per_utterance, per_frame"
    if not (math.isfinite(kd.temperature) and kd.temperature > 0):
        yield f"model.codert.distillation.temperature is {kd.temperature}, wanted a number above 0"
    at_least_zero = {
        "distillation.weight": kd.weight,
        "distillation.start_step": kd.start_step,
        "distillation.ramp_steps": kd.ramp_steps,
        "teacher_loss_weight": codert.teacher_loss_weight,
        "student_loss_weight": codert.student_loss_weight,
    }
    for key, value in at_least_zero.items():
        if not (math.isfinite(value) and value >= 0):
            yield f"model.codert.{key} is {value}, wanted a number that is 0 or above"
    if codert.teacher == "co_trained" and codert.teacher_loss_weight == 0:
        yield (
            "model.codert.teacher_loss_weight is 0 but model.codert.teacher is co_trained: the teacher would never "
            "learn. Set the weight above 0, or teacher to frozen with a teacher_checkpoint"
        )
    if codert.student_loss_weight == 0 and (kd.weight == 0 or not codert.share_decoder):
        yield (
            "model.codert.student_loss_weight is 0: nothing would train the student's prediction network. "
            "Set it above 0 (0 is for a shared decoder with distillation.weight above 0)"
        )


def _unsupported_options(cfg: DictConfig) -> Iterator[str]:
    """Stock keys that a pair cannot honour, refused by name."""
    joint, loss = cfg.get("joint") or {}, cfg.get("loss") or {}
    for block in ("preprocessor", "encoder", "decoder", "joint", "decoding", "tokenizer", "model_defaults"):
        if cfg.get(block) is None:
            yield f"model.{block} is missing: a pair starts from a complete stock RNN-T config"
    if joint and joint.get("_target_") not in (ADDITIVE_JOINT, STOCK_JOINT):
        yield f"model.joint._target_ is {joint.get('_target_')!r}, wanted {ADDITIVE_JOINT} or {STOCK_JOINT}"
    if (joint.get("num_extra_outputs") or 0) > 0:
        yield "model.joint.num_extra_outputs is above 0 (a TDT model): only standard RNN-T is supported, set it to 0"
    if (joint.get("masking_prob") or -1.0) > 0:
        yield "model.joint.masking_prob is above 0 (a HAINAN model): not supported, remove the key"
    loss_name = loss.get("loss_name", "default")
    if loss_name not in RNNT_LOSSES:
        yield f"model.loss.loss_name is {loss_name!r}, wanted one of {', '.join(RNNT_LOSSES)} (standard RNN-T)"
    yield from _loss_kwargs_problems(loss.get("warprnnt_numba_kwargs") or {})
    reduction = cfg.get("rnnt_reduction", "mean_batch")
    if reduction not in RNNT_REDUCTIONS:
        yield f"model.rnnt_reduction is {reduction!r}, wanted one of {', '.join(RNNT_REDUCTIONS)}"
    if (cfg.get("tokenizer") or {}).get("type", "bpe") != "bpe":
        yield f"model.tokenizer.type is {cfg.tokenizer.type!r}, wanted bpe (a SentencePiece tokenizer)"
    if cfg.get("aux_ctc") is not None:
        yield "model.aux_ctc is set (a hybrid RNN-T/CTC model): only standard RNN-T is supported, remove the block"
    if cfg.get("adapters"):
        yield "model.adapters is set: adapters act on the joint's sum and are not supported, remove the block"
    for key in ("normalize_joint_txu", "normalize_encoder_norm", "normalize_decoder_norm", "normalize_joint_norm"):
        if cfg.get(key):
            yield f"model.{key} is true: it would act on the teacher alone, set it to false"
    if ((cfg.get("variational_noise") or {}).get("std") or 0) > 0:
        yield "model.variational_noise.std is above 0: it would act on the teacher alone, set it to 0"
    for name, encoder in (("model.encoder", cfg.get("encoder")), ("model.student.encoder", _student_encoder(cfg))):
        yield from _encoder_problems(name, encoder)


def _loss_kwargs_problems(kwargs: DictConfig | dict) -> Iterator[str]:
    for key, value in kwargs.items():
        path = f"model.loss.warprnnt_numba_kwargs.{key}"
        if key == "fastemit_lambda" and not 0.0 <= value < 1.0:
            yield f"{path} is {value}, wanted a number in [0, 1)"
        elif key == "clamp" and value > 0:
            yield f"{path} is {value}: clamped gradients are not exact, set it to -1 and clip with the trainer"
        elif key not in ("fastemit_lambda", "clamp"):
            yield f"{path} is not supported, known are fastemit_lambda and clamp"


def _student_encoder(cfg: DictConfig) -> DictConfig | dict | None:
    student = cfg.get("student")
    return student.get("encoder") if OmegaConf.is_dict(student) or isinstance(student, dict) else None


def _encoder_problems(name: str, encoder: DictConfig | None) -> Iterator[str]:
    """NeMo's RNNEncoder has settings that crash or whose output depends on the padding: refused by name."""
    if encoder is None or not str(encoder.get("_target_", "")).endswith(".RNNEncoder"):
        return
    if encoder.get("rnn_type", "lstm") != "lstm":
        yield f"{name}.rnn_type is {encoder.rnn_type!r}: NeMo's RNNEncoder can only build lstm"
    if encoder.get("bidirectional", True):
        yield f"{name}.bidirectional is true: its output changes with the padding of a batch, set it to false"
    if encoder.get("subsampling", "striding") not in ("striding", "dw_striding"):
        yield f"{name}.subsampling is {encoder.subsampling!r}: wanted striding or dw_striding (lengths differ otherwise)"
    if not 0 < encoder.get("proj_size", -1) < encoder.get("d_model", 0):
        yield f"{name}.proj_size is {encoder.get('proj_size', -1)}, wanted a number above 0 and below d_model"


def _frame_rate_problems(cfg: DictConfig, student: DictConfig) -> Iterator[str]:
    if cfg.get("encoder") is None or not OmegaConf.is_dict(student.encoder):
        return
    teacher_stride, student_stride = encoder_stride(cfg.encoder), encoder_stride(student.encoder)
    if teacher_stride and student_stride and (problem := rate_problem(teacher_stride, student_stride)):
        yield problem
    teacher_in, student_in = cfg.encoder.get("feat_in"), student.encoder.get("feat_in")
    if teacher_in is not None and student_in is not None and teacher_in != student_in:
        yield (
            f"model.encoder.feat_in is {teacher_in} but model.student.encoder.feat_in is {student_in}: both encoders "
            f"see the same features. Set both to model.preprocessor.features"
        )


def _warn_of_keys_without_effect(cfg: DictConfig, codert: DictConfig) -> None:
    if codert.teacher == "frozen" and codert.teacher_loss_weight not in (0.0, 1.0):
        logger.warning("model.codert.teacher_loss_weight has no effect: the teacher is frozen.")
    if codert.distillation.weight == 0 and (codert.distillation.start_step or codert.distillation.ramp_steps):
        logger.warning("model.codert.distillation start_step and ramp_steps have no effect: its weight is 0.")
    if cfg.joint.get("preserve_memory"):
        logger.warning("model.joint.preserve_memory has no effect: a pair computes the joint itself.")
    if cfg.joint.get("log_softmax") is not None:
        logger.warning("model.joint.log_softmax has no effect in training: the losses take raw logits.")
