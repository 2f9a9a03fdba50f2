"""Checks of the blocks `model.student` and `model.codert`. Imports omegaconf only."""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.criteria import ONE_TERM, at_least_zero, distils, kind_of
from nemo_codert.config.derived import encoder_stride, encoders, rate_problem
from nemo_codert.config.schema import CoDERTConfig, NonFiniteConfig
from nemo_codert.config.stock_checks import STOCK_JOINT, decoder_problems, joint_problems, missing_values
from nemo_codert.config.student_hears import student_hears_problems
from nemo_codert.config.tdt import compares_durations, is_tdt, loss_arguments, student_is_tdt
from nemo_codert.config.teachers import HEAD_LOGITS, TEACHERS, WITHOUT_GRADIENT
from nemo_codert.config.values import is_number, sub_block

CTC_REDUCTIONS = ("mean_batch", "mean_volume", "mean", "sum")
CHOICES = {
    "teacher": TEACHERS,
    "teacher_logits": ("joint", *HEAD_LOGITS),
    "rnnt_loss": ("auto", "exact", "nemo"),
    "bad_utterances": ("drop", "refuse"),
    "audio_check": ("auto", "headers", "samples"),
}
NON_FINITE_ACTIONS = ("stop", "skip")
NEMOS_RNNT_ARGUMENTS = {"fastemit_lambda": 0.0, "clamp": -1.0}  # the values of a block that does nothing


def student_problems(student: DictConfig, joint: DictConfig | dict, shares_decoder: bool) -> Iterator[str]:
    """Yield the faults of the block `model.student`; `joint` is the teacher's block `model.joint`."""
    if student.encoder is None:
        yield "model.student.encoder is missing: give it any NeMo encoder block (with its _target_)"
    elif "_target_" not in sub_block(student, "encoder"):
        yield "model.student.encoder has no _target_: name the encoder class, as in model.encoder"
    else:
        yield from missing_values("model.student.encoder", student.encoder)
    yield from _student_ctc_problems(student)
    if student.joint is not None:
        yield from _student_joint_problems(student.joint, joint, shares_decoder)
    if student.decoder is None:
        return
    yield from decoder_problems("model.student.decoder", student.decoder)
    if shares_decoder:
        yield (
            "model.student.decoder is set but model.codert.share_decoder is true: the student would never use its "
            "own prediction network. Set model.student.decoder to null or share_decoder to false"
        )


def _student_joint_problems(joint: object, of_teacher: DictConfig | dict, shares_decoder: bool) -> Iterator[str]:
    path = "model.student.joint"
    if not OmegaConf.is_dict(joint):
        yield f"{path} is {joint!r}, wanted a joint's block or null"
        return
    yield from missing_values(path, joint)
    yield from joint_problems(path, joint)
    if not OmegaConf.is_dict(joint.get("jointnet")):
        yield f"{path}.jointnet is {joint.get('jointnet')!r}, wanted a block of keys, {{}} for an additive joint"
        return
    keys = ("_target_", "jointnet.joint_hidden") if joint.get("_target_") == STOCK_JOINT else ("_target_",)
    for key in keys if shares_decoder else ():
        own, other = (OmegaConf.select(OmegaConf.create(block), key) for block in (joint, of_teacher))
        if own != other:
            yield (
                f"{path}.{key} is {own!r} but model.joint.{key} is {other!r} and model.codert.share_decoder is true: "
                "the student uses the teacher's projection joint.pred, whose outputs are those of model.joint. Set "
                "share_decoder to false or model.student.joint to null"
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


def codert_problems(codert: DictConfig) -> Iterator[str]:
    """Yield the faults of the block `model.codert` that its keys show by themselves."""
    for key, allowed in CHOICES.items():
        if codert[key] not in allowed:
            yield f"model.codert.{key} is {codert[key]!r}, wanted one of {', '.join(allowed)}"
    numbers = "teacher_loss_weight", "student_loss_weight", "student_loss_from_step"
    yield from at_least_zero("model.codert", {key: codert[key] for key in numbers})
    if not 0 <= codert.ema_decay < 1:
        yield f"model.codert.ema_decay is {codert.ema_decay}, wanted a number from 0 to below 1"
    yield from _first_stage_problems(codert)
    yield from student_hears_problems(codert.student_hears)
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
    if codert.teacher == "cached" and codert.teacher_cache is None:
        yield (
            "model.codert.teacher is cached but model.codert.teacher_cache is null: give the folder that codert cache "
            "made"
        )
    if codert.student_loss_weight == 0 and not (distils(codert) and codert.share_decoder):
        yield (
            "model.codert.student_loss_weight is 0: nothing would train the student's prediction network. "
            "Set it above 0 (0 is for a shared decoder with a distillation term)"
        )


def _first_stage_problems(codert: DictConfig) -> Iterator[str]:
    first = codert.student_loss_from_step
    starts = [term.from_step for term in codert.distillation.values() if term.weight > 0]
    if first > 0 and min(starts, default=first) > 0:
        yield (
            f"model.codert.student_loss_from_step is {first} but no term of model.codert.distillation starts at step "
            "0: nothing would train the student before. Set it to 0, or the from_step of a term to 0"
        )


def teacher_source_problems(cfg: DictConfig, student: DictConfig, codert: DictConfig) -> Iterator[str]:
    """Yield settings that take something from a pre-trained teacher and cannot."""
    head, logits = sub_block(sub_block(cfg, "aux_ctc"), "decoder"), codert.teacher_logits
    if logits in HEAD_LOGITS and not str(head.get("_target_")).endswith(".ConvASRDecoder"):
        yield (
            f"model.codert.teacher_logits is {logits} but model.aux_ctc.decoder._target_ is {head.get('_target_')!r}: "
            "take the teacher's block aux_ctc, whose decoder is a ConvASRDecoder, or set teacher_logits to joint"
        )
    if logits in HEAD_LOGITS and codert.teacher == "co_trained":
        yield (
            f"model.codert.teacher_logits is {logits} but model.codert.teacher is co_trained: a pair has no CTC loss "
            "for the teacher's CTC head. Set teacher to frozen or teacher_logits to joint"
        )
    if logits == "ctc_alone":
        yield from _ctc_alone_problems(head, codert)
    if not student.init_from_teacher:
        return
    if codert.teacher == "ema":
        yield (
            "model.student.init_from_teacher is true but model.codert.teacher is ema: the teacher starts as a copy of "
            "the student. Set it to false"
        )
        return
    if codert.teacher == "cached":
        yield (
            "model.student.init_from_teacher is true but the teacher is cached: its layers are not there. Set it to "
            "false"
        )
        return
    for name, encoder in encoders(cfg, student).items():
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


def _ctc_alone_problems(head: DictConfig | dict, codert: DictConfig) -> Iterator[str]:
    """Yield settings that need more of a teacher than its encoder and CTC head."""
    alone = "model.codert.teacher_logits is ctc_alone, which reads encoder and CTC head of the teacher alone"
    if codert.teacher == "cached":
        yield f"{alone}, but model.codert.teacher is cached: set it to frozen"
    if codert.share_decoder:
        yield f"{alone}, but model.codert.share_decoder is true: set it to false, or teacher_logits to ctc"
    for name, term in codert.distillation.items():
        if term.weight > 0 and not (kind_of(term).any_vocabulary or term["at"] == "ctc"):
            yield f"{alone}, but model.codert.distillation.{name}.at is {term['at']}: wanted hidden or ctc"
    names = head.get("vocabulary")
    if names and not (OmegaConf.is_list(names) and all(isinstance(name, str) for name in names)):
        yield f"model.aux_ctc.decoder.vocabulary is {names!r}, wanted the list of the teacher's characters"


def ema_problems(codert: DictConfig) -> Iterator[str]:
    """Yield settings that mean nothing where the teacher is an average of the student."""
    if codert.teacher != "ema":
        return
    if codert.share_decoder:
        yield (
            "model.codert.share_decoder is true but model.codert.teacher is ema: the average has a prediction network "
            "of its own. Set share_decoder to false"
        )
    if codert.teacher_checkpoint is not None:
        yield (
            f"model.codert.teacher_checkpoint is {codert.teacher_checkpoint!r} but model.codert.teacher is ema, which "
            "starts as a copy of the student: nothing would read it. Set it to null; model.student.init_from starts "
            "both from a checkpoint"
        )
    if codert.teacher_logits in HEAD_LOGITS:
        yield (
            f"model.codert.teacher_logits is {codert.teacher_logits} but model.codert.teacher is ema: only encoder, "
            "prediction network and joint are averaged. Set teacher_logits to joint"
        )


def checkpointing_problems(name: str, encoder: DictConfig | dict, codert: DictConfig) -> Iterator[str]:
    """Yield a fault where the layers of a trained encoder, at the config path `name`, cannot be computed again."""
    is_trained = name == "model.student.encoder" or codert.teacher == "co_trained"
    if not (codert.activation_checkpointing and is_trained and "_target_" in encoder):
        return
    if not str(encoder.get("_target_")).endswith(".ConformerEncoder"):
        yield (
            f"model.codert.activation_checkpointing is true but {name}._target_ is {encoder.get('_target_')!r}: only "
            "the layers of a ConformerEncoder can be computed again. Set activation_checkpointing to false"
        )


def frame_rate_problems(cfg: DictConfig, student: DictConfig) -> Iterator[str]:
    """Yield a fault where the strides that both encoders state cannot be bridged."""
    teacher_stride, student_stride = map(encoder_stride, encoders(cfg, student).values())
    if teacher_stride and student_stride and (problem := rate_problem(teacher_stride, student_stride)):
        yield problem


def keys_without_effect(cfg: DictConfig, codert: DictConfig, alone: str | None) -> Iterator[str]:
    """Yield one sentence for each key that does nothing in this config; `alone`: see `checked_config`."""
    if alone and sub_block(cfg, "student").get("init_from_teacher"):
        yield f"model.student.init_from_teacher has no effect: the {alone} is trained alone."
    if codert.teacher != "co_trained" and codert.teacher_loss_weight not in (0.0, 1.0):
        yield f"model.codert.teacher_loss_weight has no effect: the teacher is {codert.teacher}."
    if codert.ema_decay != CoDERTConfig.ema_decay and codert.teacher != "ema":
        yield f"model.codert.ema_decay has no effect: the teacher is {codert.teacher}."
    if codert.teacher_cache is not None and codert.teacher != "cached":
        yield f"model.codert.teacher_cache has no effect: the teacher is {codert.teacher}."
    if codert.non_finite.action == "stop" and codert.non_finite.max_skips != NonFiniteConfig().max_skips:
        yield "model.codert.non_finite.max_skips has no effect: non_finite.action is stop."
    yield from _terms_without_effect(codert, has_durations=student_is_tdt(cfg))
    if codert.teacher in WITHOUT_GRADIENT and not distils(codert) and not codert.share_decoder:
        remedy = "Add a term" if codert.teacher == "ema" else "Add a term, set share_decoder to true,"
        yield (
            f"model.codert.teacher has no effect on the student: it is {codert.teacher}, model.codert.distillation "
            f"has no term with a weight above 0 and share_decoder is false. {remedy} or take strategy=student."
        )
    if alone and codert.student_hears:
        yield f"model.codert.student_hears has no effect: the {alone} is trained alone, by NeMo's own class."
    if cfg.get("aux_ctc") is not None and (alone or codert.teacher_logits == "joint"):
        yield "model.aux_ctc has no effect: nothing trains a CTC head, and teacher_logits is joint."
    if sub_block(cfg, "ipl").get("m_updates"):
        yield "model.ipl has no effect: a run makes no pseudo-labels, codert pseudo-label does."
    if codert.teacher_logits in HEAD_LOGITS and not distils(codert):
        yield "model.codert.teacher_logits has no effect: model.codert.distillation has no term with a weight above 0."
    elif codert.teacher_logits == "ctc_alone" and not any(
        term.weight > 0 and term["at"] == "ctc" for term in codert.distillation.values()
    ):
        yield "model.codert.teacher_logits has no effect: model.codert.distillation compares hidden layers alone."
    if not alone and codert.teacher in WITHOUT_GRADIENT:
        for name in sub_block(cfg, "optim_param_groups"):
            if not name.startswith("student_"):
                yield f"model.optim_param_groups.{name} has no effect: the teacher is {codert.teacher}."
    for path, joint in {"model.joint": cfg.joint, "model.student.joint": cfg.student.get("joint") or {}}.items():
        if joint.get("preserve_memory"):
            yield f"{path}.preserve_memory has no effect: a pair computes the joint itself."
        if joint.get("log_softmax") is not None:
            yield f"{path}.log_softmax has no effect in training: the losses take raw logits."
    read = [] if is_tdt(cfg) and student_is_tdt(cfg) else ["warprnnt_numba_kwargs"]
    read += [f"{cfg.loss.loss_name}_kwargs"] if loss_arguments(cfg) else []
    for key, block in sub_block(cfg, "loss").items():
        if key not in ("loss_name", *read) and block not in (None, {}, NEMOS_RNNT_ARGUMENTS):
            yield f"model.loss.{key} has no effect: what is trained or distilled here reads {', '.join(read)} only."


def _terms_without_effect(codert: DictConfig, *, has_durations: bool) -> Iterator[str]:
    for name, term in codert.distillation.items():
        compared = has_durations and compares_durations(term, codert.teacher_logits)
        if term.get("durations_weight", 1.0) != 1.0 and not compared:
            yield f"model.codert.distillation.{name}.durations_weight has no effect: no durations are there."
        defaults = {**vars(kind_of(term).schema()), "weight": term.weight}
        trains_heads = bool(term.get("layers")) and term.get("ctc_weight", 0) > 0
        if term.weight == 0 and not trains_heads and (name != ONE_TERM or dict(term) != defaults):
            yield f"model.codert.distillation.{name} has no effect: its weight is 0."
        if not term.get("layers") and term.get("ctc_weight") != defaults.get("ctc_weight"):
            yield f"model.codert.distillation.{name}.ctc_weight has no effect: layers is null."


def doubtful_terms(codert: DictConfig) -> Iterator[str]:
    """Yield one warning for each term that compares the encoder logits of two decoders of their own.

    An additive joint does not determine its encoder logits: `E + c, G - c` is the same model for every c. Two decoders
    have different c, a mean prediction added to both sides removes it.
    """
    if codert.share_decoder or codert.teacher == "ema" or codert.teacher_logits == "ctc":
        return
    prior, joint = (" (static_prior)", " (static_joint)") if codert.teacher == "frozen" else ("", "")  # strategies
    for name, term in codert.distillation.items():
        if term.weight > 0 and (term["at"], term.get("prior")) == ("encoder", "none"):
            yield (
                f"model.codert.distillation.{name} compares encoder logits of two decoders of their own, which are "
                "determined up to a constant per class only. Such a term can help all the same (docs/results.md). To "
                f"compare what is determined: prior: mean_prediction{prior}, at: joint{joint}, or share_decoder: true."
            )
