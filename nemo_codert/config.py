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
from nemo_codert.config_values import is_count, is_number, sub_block

logger = logging.getLogger(__name__)

ADDITIVE_JOINT = "nemo_codert.modules.AdditiveRNNTJoint"
STOCK_JOINT = "nemo.collections.asr.modules.RNNTJoint"
RNNT_LOSSES = ("default", "warprnnt_numba")
# NeMo's losses, each with a block of arguments of its name; standard RNN-T reads warprnnt_numba's alone.
OTHER_LOSSES = "warprnnt pytorch multiblank_rnnt multiblank_rnnt_pytorch graph_rnnt graph_w_transducer tdt tdt_pytorch"
LOSS_BLOCKS = tuple(f"{name}_kwargs" for name in (*RNNT_LOSSES, *OTHER_LOSSES.split()))
RNNT_REDUCTIONS = ("mean_batch", "mean", "mean_volume", "sum")


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
    activation_checkpointing: bool = False  # trained ConformerEncoders: layers are computed again in the backward pass


@dataclass
class StudentConfig:
    """`model.student`."""

    encoder: Any = None  # any NeMo encoder block, required
    decoder: Any = None  # own prediction network when not shared; null: same shape as model.decoder
    init_from: str | None = None  # .nemo path or pretrained name of an RNN-T to warm-start the student from


PARAMETER_GROUPS = ("encoder", "decoder", "joint", "student_encoder", "student_decoder", "student_joint")
CHOICES = {
    "teacher": ("co_trained", "frozen"),
    "rnnt_loss": ("auto", "exact", "nemo"),
    "bad_utterances": ("drop", "refuse"),
}


def checked_config(cfg: DictConfig, *, warn: bool = True, alone: bool = False) -> DictConfig:
    """Model config of a pair with all defaults of our blocks filled in and interpolations resolved.

    Args:
        cfg: the `model` section: a stock RNN-T config plus `student` and `codert`.
        warn: log one warning for each key that has no effect; False for a check before the real one.
        alone: the student or the teacher is trained alone, so that `codert.share_decoder` means nothing.

    Raises:
        ValueError: one error that lists every unknown key, wrong type and contradiction found.
    """
    cfg = _resolved(cfg)
    problems: list[str] = []
    student = _typed_block(cfg, "student", StudentConfig, problems)
    codert = _typed_block(cfg, "codert", CoDERTConfig, problems)
    shares = codert.share_decoder and not alone
    problems += [*_student_problems(student, shares), *_codert_problems(codert), *_stock_block_problems(cfg)]
    problems += [*_unsupported_options(cfg), *_optimisation_problems(cfg, shares)]
    for name, encoder in _encoders(cfg, student).items():
        problems += _encoder_problems(name, encoder)
        problems += _checkpointing_problems(name, encoder, codert)
    problems += [*_frame_rate_problems(cfg, student), *_width_problems(cfg, student)]
    if problems:
        raise ValueError("The model config cannot be used:\n  - " + "\n  - ".join(problems))
    for key in _keys_without_effect(cfg, codert) if warn else ():
        logger.warning("%s", key)
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
    if not is_count(factor):
        return None
    if "subsampling" in encoder and not encoder.get("subsampling"):
        factor = 1  # NeMo's encoders then leave the convolutions out, whatever the factor
    reduction = encoder.get("reduction_factor", 1) if encoder.get("reduction") else 1
    return factor * reduction if is_count(reduction) else None


def rate_problem(teacher_stride: int, student_stride: int) -> str | None:
    """Why teacher frames cannot be grouped into student frames, None where they can."""
    if student_stride % teacher_stride == 0:
        return None
    return (
        f"model.encoder makes one frame of {teacher_stride} feature frames, model.student.encoder one of "
        f"{student_stride}: teacher frames cannot be grouped into student frames. Make the student's subsampling "
        f"factor the teacher's or a whole multiple of it"
    )


def _resolved(cfg: DictConfig) -> DictConfig:
    """A copy without interpolations; `???` stays."""
    try:
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(f"The model config has an interpolation that cannot be resolved: {error}") from error


def _encoders(cfg: DictConfig, student: DictConfig) -> dict[str, DictConfig | dict]:
    """Config path -> block of both encoders, empty where there is none."""
    return {"model.encoder": sub_block(cfg, "encoder"), "model.student.encoder": sub_block(student, "encoder")}


def _typed_block(cfg: DictConfig, name: str, schema: type, problems: list[str]) -> DictConfig:
    """The block merged into its schema, key by key so that every fault is found and not just the first."""
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
    if student.decoder is None:
        return
    yield from _decoder_problems("model.student.decoder", student.decoder)
    if shares_decoder:
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
        "distillation.frame_shift": kd.frame_shift,
        "teacher_loss_weight": codert.teacher_loss_weight,
        "student_loss_weight": codert.student_loss_weight,
    }
    for key, value in at_least_zero.items():
        if not 0 <= value < math.inf:
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


def _stock_block_problems(cfg: DictConfig) -> Iterator[str]:
    """Blocks of a stock RNN-T config that are absent, of the wrong kind or incomplete."""
    for name in ("preprocessor", "encoder", "decoder", "joint", "decoding", "tokenizer", "model_defaults"):
        block = cfg.get(name)
        if block is None:
            yield f"model.{name} is missing: a pair starts from a complete stock RNN-T config"
        elif not OmegaConf.is_dict(block):
            yield f"model.{name} is {block!r}, wanted a block of keys"
        elif name != "tokenizer":
            yield from _missing_values(f"model.{name}", block)
    blocks = {name: cfg.get(name) for name in ("loss", "optim_param_groups", "variational_noise", "freeze_updates")}
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


def _unsupported_options(cfg: DictConfig) -> Iterator[str]:
    """Stock keys that a pair cannot honour, refused by name."""
    if sub_block(cfg, "joint"):
        yield from _joint_problems(cfg.joint)
    yield from _loss_problems(sub_block(cfg, "loss"))
    reduction = cfg.get("rnnt_reduction", "mean_batch")
    if reduction not in RNNT_REDUCTIONS:
        yield f"model.rnnt_reduction is {reduction!r}, wanted one of {', '.join(RNNT_REDUCTIONS)}"
    tokenizer, decoding = sub_block(cfg, "tokenizer"), sub_block(cfg, "decoding")
    if tokenizer and str(tokenizer.get("type")).lower() != "bpe":
        yield f"model.tokenizer.type is {tokenizer.get('type')!r}, wanted bpe (a SentencePiece tokenizer)"
    if tokenizer.get("custom_tokenizer") is not None:
        yield "model.tokenizer.custom_tokenizer is set: only a plain SentencePiece tokenizer is supported, remove it"
    for key in ("durations", "big_blank_durations"):
        if decoding.get(key):
            yield f"model.decoding.{key} is set (a TDT or multi-blank model): only standard RNN-T is supported"
    if decoding.get("model_type", "rnnt") != "rnnt":
        yield f"model.decoding.model_type is {decoding.get('model_type')!r}, wanted rnnt (standard RNN-T)"
    size = decoding.get("fused_batch_size")
    if is_number(size) and size > 0 and not sub_block(cfg, "joint").get("fuse_loss_wer"):
        yield f"model.decoding.fused_batch_size is {size} but model.joint.fuse_loss_wer is false: remove it"
    if cfg.get("aux_ctc") is not None:
        yield "model.aux_ctc is set (a hybrid RNN-T/CTC model): only standard RNN-T is supported, remove the block"
    if cfg.get("adapters"):
        yield "model.adapters is set: adapters act on the joint's sum and are not supported, remove the block"
    if sub_block(cfg, "preprocessor").get("frame_splicing", 1) not in (None, 1):
        yield f"model.preprocessor.frame_splicing is {cfg.preprocessor.frame_splicing!r}: not supported, set it to 1"


def _joint_problems(joint: DictConfig) -> Iterator[str]:
    target = joint.get("_target_")
    if target not in (ADDITIVE_JOINT, STOCK_JOINT):
        yield f"model.joint._target_ is {target!r}, wanted {ADDITIVE_JOINT} or {STOCK_JOINT}"
    if joint.get("num_extra_outputs"):
        yield "model.joint.num_extra_outputs is above 0 (a TDT model): only standard RNN-T is supported, set it to 0"
    masking = joint.get("masking_prob", -1.0)
    if not is_number(masking) or masking > 0:
        yield f"model.joint.masking_prob is {masking!r} (a HAINAN model): not supported, remove the key"
    if joint.get("experimental_fuse_loss_wer") is not None:
        yield "model.joint.experimental_fuse_loss_wer is an old name: use model.joint.fuse_loss_wer"
    size = joint.get("fused_batch_size")
    if joint.get("fuse_loss_wer") and not is_count(size):
        yield (
            f"model.joint.fused_batch_size is {size!r} but fuse_loss_wer is true: give the number of utterances that "
            "share one lattice, or set fuse_loss_wer to false"
        )
    if target == STOCK_JOINT and sub_block(joint, "jointnet"):
        for key in ("joint_hidden", "activation"):
            if joint.jointnet.get(key) is None:
                yield f"model.joint.jointnet.{key} is missing: NeMo's RNNTJoint needs it"


def _loss_problems(loss: DictConfig | dict) -> Iterator[str]:
    for key in loss:
        if key not in ("loss_name", *LOSS_BLOCKS):
            yield f"model.loss.{key} is no key of an RNN-T loss, known are loss_name, warprnnt_numba_kwargs: remove it"
    loss_name = loss.get("loss_name", "default")
    if loss_name not in RNNT_LOSSES:
        yield f"model.loss.loss_name is {loss_name!r}, wanted one of {', '.join(RNNT_LOSSES)} (standard RNN-T)"
    for key, value in sub_block(loss, "warprnnt_numba_kwargs").items():
        path = f"model.loss.warprnnt_numba_kwargs.{key}"
        if key == "fastemit_lambda":
            if not is_number(value) or not 0.0 <= value < 1.0:
                yield f"{path} is {value!r}, wanted a number in [0, 1)"
        elif key == "clamp":
            if not is_number(value) or value > 0:
                yield f"{path} is {value!r}: clamped gradients are not exact, set it to -1 and clip with the trainer"
        else:
            yield f"{path} is not supported, known are fastemit_lambda and clamp"


def _optimisation_problems(cfg: DictConfig, shares_decoder: bool) -> Iterator[str]:
    for key in ("normalize_joint_txu", "normalize_encoder_norm", "normalize_decoder_norm", "normalize_joint_norm"):
        if cfg.get(key):
            yield f"model.{key} is true: it would act on the teacher alone, set it to false"
    if sub_block(cfg, "variational_noise").get("std"):
        yield "model.variational_noise.std is above 0: it would act on the teacher alone, set it to 0"
    if sub_block(cfg, "freeze_updates").get("enabled"):
        yield (
            "model.freeze_updates.enabled is true: NeMo leaves dropout and batch-norm statistics of such modules "
            "live. Set it to false; a frozen teacher is model.codert.teacher: frozen"
        )
    for name in sub_block(cfg, "optim_param_groups"):
        if name not in PARAMETER_GROUPS:
            yield f"model.optim_param_groups.{name} is no part of a pair, known are {', '.join(PARAMETER_GROUPS)}"
        elif name == "student_decoder" and shares_decoder:
            yield (
                "model.optim_param_groups.student_decoder is set but model.codert.share_decoder is true: the shared "
                "prediction network has one learning rate, set it under decoder"
            )


def _encoder_problems(name: str, encoder: DictConfig | dict) -> Iterator[str]:
    """NeMo's RNNEncoder has settings that crash or whose output depends on the padding: refused by name."""
    if not str(encoder.get("_target_")).endswith(".RNNEncoder"):
        return
    if encoder.get("rnn_type", "lstm") != "lstm":
        yield f"{name}.rnn_type is {encoder.rnn_type!r}: NeMo's RNNEncoder can only build lstm"
    if encoder.get("bidirectional", True):
        yield f"{name}.bidirectional is true: its output changes with the padding of a batch, set it to false"
    if encoder.get("subsampling", "striding") not in ("striding", "dw_striding"):
        yield f"{name}.subsampling is {encoder.subsampling!r}: its lengths vary, use striding or dw_striding"
    if "feat_out" in encoder:
        yield f"{name}.feat_out is no key of RNNEncoder: its output width is proj_size, remove it"
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
    """Sizes that a stock config states twice and that must agree, where a config tells."""
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
    """Output channels as the config of a Conformer or RNNEncoder states them, None where it does not."""
    kind = str(encoder.get("_target_")).rsplit(".", 1)[-1]
    if kind == "RNNEncoder":
        return encoder.get("proj_size")
    if kind != "ConformerEncoder":
        return None
    return encoder.get("feat_out") if is_count(encoder.get("feat_out")) else encoder.get("d_model")


def _keys_without_effect(cfg: DictConfig, codert: DictConfig) -> Iterator[str]:
    if codert.teacher == "frozen" and codert.teacher_loss_weight not in (0.0, 1.0):
        yield "model.codert.teacher_loss_weight has no effect: the teacher is frozen."
    for key, default in vars(DistillationConfig()).items() if codert.distillation.weight == 0 else ():
        if key != "weight" and codert.distillation[key] != default:
            yield f"model.codert.distillation.{key} has no effect: distillation.weight is 0."
    if codert.teacher == "frozen" and codert.distillation.weight == 0 and not codert.share_decoder:
        yield (
            "model.codert.teacher has no effect on the student: it is frozen, distillation.weight is 0 and "
            "share_decoder is false. Set the weight above 0, share_decoder to true, or take strategy=student."
        )
    if cfg.joint.get("preserve_memory"):
        yield "model.joint.preserve_memory has no effect: a pair computes the joint itself."
    if cfg.joint.get("log_softmax") is not None:
        yield "model.joint.log_softmax has no effect in training: the losses take raw logits."
    for key in sub_block(cfg, "loss"):
        if key not in ("loss_name", "warprnnt_numba_kwargs"):
            yield f"model.loss.{key} has no effect: standard RNN-T reads warprnnt_numba_kwargs only."
