"""The `model.student` and `model.codert` blocks: all defaults, and all checks of a model's config.

`checked_config` is the one entry: it fills defaults in and raises one ValueError that lists all faults together,
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
from nemo_codert.config.number_checks import size_problems
from nemo_codert.config.stock_checks import ADDITIVE_JOINT as ADDITIVE_JOINT
from nemo_codert.config.stock_checks import STOCK_JOINT as STOCK_JOINT
from nemo_codert.config.stock_checks import is_tdt, optimisation_problems, unsupported_options
from nemo_codert.config.values import is_count, is_number, sub_block

logger = logging.getLogger(__name__)


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
    max_skips: int = 10  # steps of the whole run that may be skipped, >= 1; one more stops the run


@dataclass
class CoDERTConfig:
    """`model.codert`."""

    teacher: str = "co_trained"  # co_trained: trained jointly | frozen: pre-trained, never moved
    teacher_checkpoint: str | None = None  # .nemo path or pretrained name that gives the teacher's weights
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
    init_from_teacher: bool = False  # start from evenly spaced encoder layers of the teacher, and other parts that fit
    aux_ctc: Any = None  # a hybrid RNN-T/CTC student: NeMo's block of that name; null: a standard RNN-T


CTC_REDUCTIONS = ("mean_batch", "mean_volume", "mean", "sum")
OPTIONAL_BLOCKS = ("loss", "aux_ctc", "optim_param_groups", "variational_noise", "freeze_updates")
CHOICES = {
    "teacher": ("co_trained", "frozen"),
    "teacher_logits": ("joint", "ctc"),
    "rnnt_loss": ("auto", "exact", "nemo"),
    "bad_utterances": ("drop", "refuse"),
    "audio_check": ("auto", "headers", "samples"),
}
NON_FINITE_ACTIONS = ("stop", "skip")


def checked_config(cfg: DictConfig, *, warn: bool = True, alone: str | None = None) -> DictConfig:
    """Return the model config of a pair with all defaults of our blocks filled in and interpolations resolved.

    Args:
        cfg: the `model` section: a stock RNN-T config plus `student` and `codert`.
        warn: log one warning for each key that has no effect; False for a check before the real one.
        alone: `student` or `teacher` where only that branch is trained, so that `codert.share_decoder` has no effect.

    Raises:
        ValueError: one error that lists every unknown key, wrong type and contradiction found.
    """
    cfg = _resolved(cfg)
    problems: list[str] = []
    student = _typed_block(cfg, "student", StudentConfig, problems)
    codert = _typed_block(cfg, "codert", CoDERTConfig, problems)
    shares = codert.share_decoder and not alone
    problems += [*_student_problems(student, shares), *_codert_problems(codert), *_stock_block_problems(cfg)]
    problems += _teacher_source_problems(cfg, student, codert) if alone is None else ()
    trains_teacher = alone == "teacher" or (alone is None and codert.teacher != "frozen")
    problems += [*unsupported_options(cfg, takes_tdt=not trains_teacher), *optimisation_problems(cfg, shares)]
    for name, encoder in _encoders(cfg, student).items():
        problems += _encoder_problems(name, encoder)
        problems += _checkpointing_problems(name, encoder, codert)
    problems += [*_frame_rate_problems(cfg, student), *_width_problems(cfg, student), *size_problems(cfg)]
    if problems:
        raise ValueError("The model config cannot be used:\n  - " + "\n  - ".join(problems))
    for key in _keys_without_effect(cfg, codert, alone) if warn else ():
        logger.warning("%s", key)
    with open_dict(cfg):
        if "sched" in sub_block(cfg, "optim") and cfg.optim.sched is None:
            cfg.optim.pop("sched")  # NeMo takes the key for a schedule
        cfg.student, cfg.codert, cfg.nemo_codert_version = student, codert, __version__
    return cfg


def lone_branch(cfg: DictConfig) -> str | None:
    """Return `student` or `teacher` if a root config trains only that branch: `alone` of `checked_config`."""
    return cfg.get("train") if cfg.get("train") in ("student", "teacher") else None


def distillation_weight(distillation: DistillationConfig | DictConfig, step: int) -> float:
    """Return lambda at an optimizer step: 0 before `start_step`, a linear ramp of `ramp_steps`, then `weight`."""
    if step < distillation.start_step:
        return 0.0
    if distillation.ramp_steps == 0:
        return distillation.weight
    return distillation.weight * min(1.0, (step - distillation.start_step + 1) / distillation.ramp_steps)


def encoder_stride(encoder: DictConfig) -> int | None:
    """Return the feature frames per encoder frame that an encoder's config states, None if it states none."""
    factor = encoder.get("subsampling_factor")
    if not is_count(factor):
        return None
    if "subsampling" in encoder and not encoder.get("subsampling"):
        factor = 1  # NeMo's encoders then leave the convolutions out, whatever the factor
    reduction = encoder.get("reduction_factor", 1) if encoder.get("reduction") else 1
    return factor * reduction if is_count(reduction) else None


def rate_problem(teacher_stride: int, student_stride: int) -> str | None:
    """Return the reason for which teacher frames cannot be grouped into student frames, None if they can."""
    if student_stride % teacher_stride == 0:
        return None
    return (
        f"model.encoder makes one frame of {teacher_stride} feature frames, model.student.encoder one of "
        f"{student_stride}: teacher frames cannot be grouped into student frames. Make the student's subsampling "
        f"factor the teacher's or a whole multiple of it"
    )


def _resolved(cfg: DictConfig) -> DictConfig:
    """Return a copy without interpolations; `???` stays."""
    try:
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(f"The model config has an interpolation that cannot be resolved: {error}") from error


def _encoders(cfg: DictConfig, student: DictConfig) -> dict[str, DictConfig | dict]:
    """Return the blocks of both encoders by config path, empty where there is none."""
    return {"model.encoder": sub_block(cfg, "encoder"), "model.student.encoder": sub_block(student, "encoder")}


def _typed_block(cfg: DictConfig, name: str, schema: type, problems: list[str]) -> DictConfig:
    """Merge a block into its schema, key by key, so that all faults are found."""
    block = cfg.get(name)
    if block is None:
        problems.append(f"model.{name} is missing: add the block (docs/configuration.md lists its keys)")
    elif not OmegaConf.is_dict(block):
        problems.append(f"model.{name} is {block!r}, wanted a block of keys")
    typed = OmegaConf.structured(schema)
    _merge(typed, sub_block(cfg, name), f"model.{name}", problems)
    return OmegaConf.create(OmegaConf.to_container(typed))


def _merge(typed: DictConfig, block: DictConfig | dict, path: str, problems: list[str]) -> None:
    known = [str(key) for key in typed]
    for key in block:
        if OmegaConf.is_missing(block, key):
            problems.append(f"{path}.{key} is ???: it has no default, give it a value")
        elif key not in known:
            problems.append(f"{path}.{key} is not a key of this version, known are {', '.join(known)}")
        elif OmegaConf.is_dict(typed[key]):
            if OmegaConf.is_dict(block[key]):
                _merge(typed[key], block[key], f"{path}.{key}", problems)
            else:
                problems.append(f"{path}.{key} is {block[key]!r}, wanted a block of keys")
        else:
            try:
                typed[key] = block[key]
            except (OmegaConfBaseException, OverflowError):
                wanted = OmegaConf.get_type(typed).__annotations__[key]
                problems.append(f"{path}.{key} is {block[key]!r}, wanted {getattr(wanted, '__name__', wanted)}")


def _student_problems(student: DictConfig, shares_decoder: bool) -> Iterator[str]:
    if student.encoder is None:
        yield "model.student.encoder is missing: give it any NeMo encoder block (with its _target_)"
    elif "_target_" not in sub_block(student, "encoder"):
        yield "model.student.encoder has no _target_: name the encoder class, as in model.encoder"
    else:
        yield from _missing_values("model.student.encoder", student.encoder)
    yield from _student_ctc_problems(student)
    if student.decoder is None:
        return
    yield from _decoder_problems("model.student.decoder", student.decoder)
    if shares_decoder:
        yield (
            "model.student.decoder is set but model.codert.share_decoder is true: the student would never use its "
            "own prediction network. Set model.student.decoder to null or share_decoder to false"
        )


def _student_ctc_problems(student: DictConfig) -> Iterator[str]:
    path, block = "model.student.aux_ctc", student.aux_ctc
    if block is None:
        return
    if not OmegaConf.is_dict(block):
        yield f"{path} is {block!r}, wanted a block of keys or null"
        return
    weight, head = block.get("ctc_loss_weight"), sub_block(block, "decoder").get("_target_")
    if not (is_number(weight) and 0 < weight < 1):
        yield f"{path}.ctc_loss_weight is {weight!r}, wanted the CTC loss's share, a number between 0 and 1"
    if not str(head).endswith(".ConvASRDecoder"):
        yield f"{path}.decoder._target_ is {head!r}, wanted nemo.collections.asr.modules.ConvASRDecoder"
    if block.get("ctc_reduction", "mean_batch") not in CTC_REDUCTIONS:
        yield f"{path}.ctc_reduction is {block.get('ctc_reduction')!r}, wanted one of {', '.join(CTC_REDUCTIONS)}"


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
        "distillation.frame_shift": kd.frame_shift,
        "teacher_loss_weight": codert.teacher_loss_weight,
        "student_loss_weight": codert.student_loss_weight,
    }
    for key, value in at_least_zero.items():
        if not 0 <= value < math.inf:
            yield f"model.codert.{key} is {value}, wanted a number that is 0 or above"
    if codert.non_finite.action not in NON_FINITE_ACTIONS:
        wanted = ", ".join(NON_FINITE_ACTIONS)
        yield f"model.codert.non_finite.action is {codert.non_finite.action!r}, wanted one of {wanted}"
    if codert.non_finite.max_skips < 1:
        yield f"model.codert.non_finite.max_skips is {codert.non_finite.max_skips}, wanted 1 step or more"
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


def _teacher_source_problems(cfg: DictConfig, student: DictConfig, codert: DictConfig) -> Iterator[str]:
    """Yield faults of the settings that take something from a pre-trained teacher."""
    head = sub_block(sub_block(cfg, "aux_ctc"), "decoder")
    if codert.teacher_logits == "ctc" and not str(head.get("_target_")).endswith(".ConvASRDecoder"):
        yield (
            f"model.codert.teacher_logits is ctc but model.aux_ctc.decoder._target_ is {head.get('_target_')!r}: take "
            "the hybrid teacher's block aux_ctc, whose decoder is a ConvASRDecoder, or set teacher_logits to joint"
        )
    if codert.teacher_logits == "ctc" and codert.teacher == "co_trained":
        yield (
            "model.codert.teacher_logits is ctc but model.codert.teacher is co_trained: a pair has no CTC loss "
            "for the teacher's CTC head. Set teacher to frozen or teacher_logits to joint"
        )
    if not student.init_from_teacher:
        return
    for name, encoder in _encoders(cfg, student).items():
        if not str(encoder.get("_target_")).endswith(".ConformerEncoder"):
            yield (
                f"model.student.init_from_teacher is true but {name}._target_ is {encoder.get('_target_')!r}: only "
                "the layers of a ConformerEncoder can be copied. Set init_from_teacher to false"
            )
    if student.init_from is not None:
        yield "model.student.init_from and init_from_teacher are both set: the student starts from one of them"
    if codert.teacher_checkpoint is None:
        yield (
            "model.student.init_from_teacher is true but model.codert.teacher_checkpoint is null: there are no "
            "trained layers to copy. Name a checkpoint or set init_from_teacher to false"
        )


def _stock_block_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield blocks of a stock RNN-T config that are absent, of the wrong kind or incomplete."""
    for name in ("preprocessor", "encoder", "decoder", "joint", "decoding", "tokenizer", "model_defaults"):
        block = cfg.get(name)
        if block is None:
            yield f"model.{name} is missing: a pair starts from a complete stock RNN-T config"
        elif not OmegaConf.is_dict(block):
            yield f"model.{name} is {block!r}, wanted a block of keys"
        elif name != "tokenizer":
            yield from _missing_values(f"model.{name}", block)
    blocks = {name: cfg.get(name) for name in OPTIONAL_BLOCKS}
    blocks["loss.warprnnt_numba_kwargs"] = sub_block(cfg, "loss").get("warprnnt_numba_kwargs")
    for name, block in blocks.items():
        if block is not None and not OmegaConf.is_dict(block):
            yield f"model.{name} is {block!r}, wanted a block of keys, or leave it out"
    if sub_block(cfg, "decoder"):
        yield from _decoder_problems("model.decoder", cfg.decoder)
    if sub_block(cfg, "encoder") and "_target_" not in cfg.encoder:
        yield "model.encoder has no _target_: name the encoder class"
    if sub_block(cfg, "joint") and not sub_block(cfg.joint, "jointnet"):
        yield "model.joint.jointnet is missing: give it joint_hidden, activation and dropout"
    if sub_block(cfg, "preprocessor") and not is_count(cfg.preprocessor.get("features")):
        yield f"model.preprocessor.features is {cfg.preprocessor.get('features')!r}, wanted the number of mel bins"


def _missing_values(path: str, block: DictConfig) -> Iterator[str]:
    for key in block:
        if OmegaConf.is_missing(block, key):
            yield f"{path}.{key} is ???: give it a value"
        elif OmegaConf.is_dict(block[key]):
            yield from _missing_values(f"{path}.{key}", block[key])


def _decoder_problems(path: str, decoder: object) -> Iterator[str]:
    if not OmegaConf.is_dict(decoder):
        yield f"{path} is {decoder!r}, wanted a prediction network's block or null"
        return
    if "_target_" not in decoder:
        yield f"{path} has no _target_: name the class of the prediction network"
    if str(decoder.get("_target_")).endswith(".RNNTDecoder") and decoder.get("normalization_mode") is not None:
        # The states of NeMo's normalised LSTMs do not pass the type check of its own prediction network.
        yield f"{path}.normalization_mode is {decoder.normalization_mode!r}: NeMo cannot run it, set it to null"
    width = sub_block(decoder, "prednet").get("pred_hidden")
    if not is_count(width):
        yield f"{path}.prednet.pred_hidden is {width!r}, wanted the number of channels"


def _encoder_problems(name: str, encoder: DictConfig | dict) -> Iterator[str]:
    """Yield settings of NeMo's RNNEncoder that crash or make the output depend on the padding."""
    if not str(encoder.get("_target_")).endswith(".RNNEncoder"):
        return
    if encoder.get("rnn_type", "lstm") != "lstm":
        yield f"{name}.rnn_type is {encoder.rnn_type!r}: NeMo's RNNEncoder can only build lstm"
    if encoder.get("bidirectional", True):
        yield f"{name}.bidirectional is true: its output changes with the padding of a batch, set it to false"
    if encoder.get("subsampling", "striding") not in ("striding", "dw_striding"):
        yield f"{name}.subsampling is {encoder.subsampling!r}: its lengths vary, use striding or dw_striding"
    if "feat_out" in encoder:
        yield f"{name}.feat_out is not a key of RNNEncoder: its output width is proj_size, remove it"
    projection, channels = encoder.get("proj_size", -1), encoder.get("d_model")
    if not (is_count(projection) and is_count(channels) and projection < channels):
        yield f"{name}.proj_size is {projection!r}, wanted a number above 0 and below d_model ({channels!r})"


def _checkpointing_problems(name: str, encoder: DictConfig | dict, codert: DictConfig) -> Iterator[str]:
    is_trained = name == "model.student.encoder" or codert.teacher != "frozen"
    if not (codert.activation_checkpointing and is_trained and "_target_" in encoder):
        return
    if not str(encoder.get("_target_")).endswith(".ConformerEncoder"):
        yield (
            f"model.codert.activation_checkpointing is true but {name}._target_ is {encoder.get('_target_')!r}: only "
            "the layers of a ConformerEncoder can be computed again. Set activation_checkpointing to false"
        )


def _frame_rate_problems(cfg: DictConfig, student: DictConfig) -> Iterator[str]:
    teacher_stride, student_stride = map(encoder_stride, _encoders(cfg, student).values())
    if teacher_stride and student_stride and (problem := rate_problem(teacher_stride, student_stride)):
        yield problem


def _width_problems(cfg: DictConfig, student: DictConfig) -> Iterator[str]:
    """Yield sizes that a stock config states twice with different values."""
    features, defaults = sub_block(cfg, "preprocessor").get("features"), sub_block(cfg, "model_defaults")
    for name, encoder in _encoders(cfg, student).items():
        feat_in = encoder.get("feat_in")
        if features is not None and feat_in is not None and feat_in != features:
            yield f"{name}.feat_in is {feat_in!r} but model.preprocessor.features is {features!r}: make them equal"
    prediction_network = sub_block(sub_block(cfg, "decoder"), "prednet")
    wanted = {
        "enc_hidden": ("encoder's output width", _encoder_width(sub_block(cfg, "encoder"))),
        "pred_hidden": ("decoder.prednet.pred_hidden", prediction_network.get("pred_hidden")),
    }
    for key, (owner, width) in wanted.items():
        if width is not None and defaults and defaults.get(key) != width:
            yield f"model.model_defaults.{key} is {defaults.get(key)!r} but model.{owner} is {width!r}: set both alike"


def _encoder_width(encoder: DictConfig | dict) -> int | None:
    """Return the output channels that the config of a Conformer or RNNEncoder states, None if it states none."""
    kind = str(encoder.get("_target_")).rsplit(".", 1)[-1]
    if kind == "RNNEncoder":
        return encoder.get("proj_size")
    if kind != "ConformerEncoder":
        return None
    return encoder.get("feat_out") if is_count(encoder.get("feat_out")) else encoder.get("d_model")


def _keys_without_effect(cfg: DictConfig, codert: DictConfig, alone: str | None) -> Iterator[str]:
    if alone and sub_block(cfg, "student").get("init_from_teacher"):
        yield f"model.student.init_from_teacher has no effect: the {alone} is trained alone."
    if codert.teacher == "frozen" and codert.teacher_loss_weight not in (0.0, 1.0):
        yield "model.codert.teacher_loss_weight has no effect: the teacher is frozen."
    if codert.non_finite.action == "stop" and codert.non_finite.max_skips != NonFiniteConfig().max_skips:
        yield "model.codert.non_finite.max_skips has no effect: non_finite.action is stop."
    for key, default in vars(DistillationConfig()).items() if codert.distillation.weight == 0 else ():
        if key != "weight" and codert.distillation[key] != default:
            yield f"model.codert.distillation.{key} has no effect: distillation.weight is 0."
    if codert.teacher == "frozen" and codert.distillation.weight == 0 and not codert.share_decoder:
        yield (
            "model.codert.teacher has no effect on the student: it is frozen, distillation.weight is 0 and "
            "share_decoder is false. Set the weight above 0, share_decoder to true, or take strategy=student."
        )
    if cfg.get("aux_ctc") is not None and (alone or codert.teacher_logits == "joint"):
        yield "model.aux_ctc has no effect: nothing trains a CTC head, and teacher_logits: ctc alone reads it."
    if codert.teacher_logits == "ctc" and codert.distillation.weight == 0:
        yield "model.codert.teacher_logits has no effect: distillation.weight is 0."
    if cfg.joint.get("preserve_memory"):
        yield "model.joint.preserve_memory has no effect: a pair computes the joint itself."
    if cfg.joint.get("log_softmax") is not None:
        yield "model.joint.log_softmax has no effect in training: the losses take raw logits."
    for key in sub_block(cfg, "loss"):
        if key not in ("loss_name", "warprnnt_numba_kwargs") and not (is_tdt(cfg) and key == "tdt_kwargs"):
            yield f"model.loss.{key} has no effect: standard RNN-T reads warprnnt_numba_kwargs only."
