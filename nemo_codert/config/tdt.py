"""Durations of TDT models (Xu et al., arXiv:2304.06795) in a pair's config, and the settings of their loss.

The stock keys describe the teacher's; `model.student.durations` makes the student a TDT model too, with the same
durations. Imports omegaconf only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.teachers import HEAD_LOGITS
from nemo_codert.config.values import is_number, sub_block

TDT_LOSSES = ("tdt", "tdt_pytorch")
ADDITIVE_JOINT = "nemo_codert.modules.AdditiveRNNTJoint"


@dataclass(frozen=True)
class TDTSettings:
    """Settings of a TDT loss; see `nemo_codert.losses.additive_tdt_loss`."""

    durations: tuple[int, ...]
    sigma: float = 0.0
    omega: float = 0.0
    fastemit_lambda: float = 0.0


def is_tdt(cfg: DictConfig) -> bool:
    """Return True if a config describes a TDT model, whose joint has outputs for durations after those for tokens."""
    durations = sub_block(cfg, "decoding").get("durations")
    return sub_block(cfg, "loss").get("loss_name") in TDT_LOSSES or (OmegaConf.is_list(durations) and bool(durations))


def student_is_tdt(cfg: DictConfig) -> bool:
    """Return True if the student of a pair's config is a TDT model."""
    return bool(sub_block(cfg, "student").get("durations"))


def trains_tdt(codert: DictConfig, student: DictConfig, alone: str | None) -> bool:
    """Return whether a TDT loss trains a branch of a config that describes a TDT model.

    Args:
        alone: `student` or `teacher` where only that branch is trained.
    """
    trains_teacher = alone == "teacher" or (alone is None and codert.teacher == "co_trained")
    return trains_teacher or (alone != "teacher" and bool(student.durations))


def tdt_settings(cfg: DictConfig) -> TDTSettings | None:
    """Return the settings of the TDT loss that a pair's checked config has for its branches, None without durations.

    Example:
        >>> loss = {"loss_name": "tdt", "tdt_kwargs": {"durations": [0, 1], "sigma": 0.05}}
        >>> tdt_settings(OmegaConf.create({"loss": loss, "decoding": {"durations": [0, 1]}}))
        TDTSettings(durations=(0, 1), sigma=0.05, omega=0.0, fastemit_lambda=0.0)
    """
    if not is_tdt(cfg):
        return None
    given = loss_arguments(cfg)
    numbers = {key: float(given.get(key) or 0.0) for key in ("sigma", "omega", "fastemit_lambda")}
    return TDTSettings(tuple(cfg.decoding.durations), **numbers)


def loss_arguments(cfg: DictConfig) -> DictConfig | dict:
    """Return the arguments of the TDT loss that a config names, empty where it names none."""
    loss = sub_block(cfg, "loss")
    return sub_block(loss, f"{loss.get('loss_name')}_kwargs") if loss.get("loss_name") in TDT_LOSSES else {}


def tdt_problems(cfg: DictConfig, *, trained: bool) -> Iterator[str]:
    """Yield contradictions in the description of a TDT model by the stock keys.

    Args:
        trained: a TDT loss trains the teacher or the student.
    """
    loss, decoding = sub_block(cfg, "loss"), sub_block(cfg, "decoding")
    joint, durations = sub_block(cfg, "joint"), decoding.get("durations")
    if not OmegaConf.is_list(durations):
        yield f"model.decoding.durations is {durations!r}, wanted the list of durations of the TDT model"
        return
    if problem := _durations_problem(durations):
        yield f"model.decoding.durations is {list(durations)}, {problem}"
    elif trained and 1 not in durations:
        yield (
            f"model.decoding.durations is {list(durations)}, without 1: no sum of them fits the number of frames "
            "of some utterances, which then have no loss. Add 1, or beside a frozen teacher set "
            "model.student.durations to null"
        )
    if joint.get("num_extra_outputs") != len(durations):
        yield (
            f"model.joint.num_extra_outputs is {joint.get('num_extra_outputs')!r} but model.decoding.durations has "
            f"{len(durations)} durations: a TDT joint has one output for each"
        )
    if loss.get("loss_name", "default") not in ("default", "warprnnt_numba", *TDT_LOSSES):
        yield f"model.loss.loss_name is {loss.get('loss_name')!r}, wanted one of {', '.join(TDT_LOSSES)}"
    elif trained and loss.get("loss_name") not in TDT_LOSSES:
        yield (
            f"model.loss.loss_name is {loss.get('loss_name')!r} but what is trained is a TDT model by its "
            "decoding.durations: set it to tdt, with tdt_kwargs.durations"
        )
    of_loss = loss_arguments(cfg).get("durations")
    if loss.get("loss_name") in TDT_LOSSES and of_loss != durations:  # NeMo would use the loss's durations
        yield f"model.loss.{loss.loss_name}_kwargs.durations is {of_loss} but model.decoding.durations is {durations}"
    if trained:
        yield from _argument_problems(cfg)


def _durations_problem(durations: Sequence[object]) -> str | None:
    whole = all(type(each) is int and each >= 0 for each in durations)
    if whole and len(set(durations)) == len(durations) and any(durations):
        return None
    return "wanted different whole numbers of frames, 0 or more, at least one of them above 0"


def _argument_problems(cfg: DictConfig) -> Iterator[str]:
    ranges = {
        "sigma": ("a number, 0 or more", lambda value: value >= 0),
        "omega": ("a number in [0, 1]", lambda value: 0 <= value <= 1),
        "fastemit_lambda": ("a number in [0, 1)", lambda value: 0 <= value < 1),
        "clamp": ("-1: clamped gradients are not exact, clip with the trainer", lambda value: value <= 0),
    }
    path = f"model.loss.{sub_block(cfg, 'loss').get('loss_name')}_kwargs"
    for key, value in loss_arguments(cfg).items():
        if key == "durations":
            continue
        if key not in ranges:
            yield f"{path}.{key} is not supported, known are durations, {', '.join(ranges)}: remove it"
        elif not is_number(value) or not ranges[key][1](value):
            yield f"{path}.{key} is {value!r}, wanted {ranges[key][0]}"


def student_duration_problems(cfg: DictConfig, student: DictConfig) -> Iterator[str]:
    """Yield what `model.student.durations` contradicts: the durations of a TDT student are its teacher's."""
    path, own, has_teachers = "model.student.durations", student.durations, is_tdt(cfg)
    if own is not None and not OmegaConf.is_list(own):
        yield f"{path} is {own!r}, wanted a list of durations, or null for a standard RNN-T"
        return
    of_teacher = sub_block(cfg, "decoding").get("durations")
    if own and not has_teachers:
        yield (
            f"{path} is {list(own)} but the stock keys describe no TDT model: take the YAML of a TDT model, whose "
            "decoding.durations these are, or set it to null"
        )
    elif own and OmegaConf.is_list(of_teacher) and list(own) != list(of_teacher):
        yield (
            f"{path} is {list(own)} but model.decoding.durations is {list(of_teacher)}: a TDT student has the "
            "durations of its teacher, in the same order. Set both alike"
        )
    extra = sub_block(student, "joint").get("num_extra_outputs")
    if own and extra not in (None, len(own)):
        yield (
            f"model.student.joint.num_extra_outputs is {extra!r} but {path} has {len(own)} durations: remove it, or "
            f"set it to {len(own)}"
        )
    elif extra and not own:
        yield (
            f"model.student.joint.num_extra_outputs is {extra!r} but {path} is null: set it to the durations of a TDT "
            "student, or num_extra_outputs to 0"
        )


def pair_duration_problems(cfg: DictConfig, student: DictConfig, codert: DictConfig) -> Iterator[str]:
    """Yield settings of a pair that a TDT teacher or student does not go with."""
    if not is_tdt(cfg):
        return
    path, own = "model.student.durations", bool(student.durations)
    durations = sub_block(cfg, "decoding").get("durations")
    joint = sub_block(student, "joint") or sub_block(cfg, "joint")
    if codert.teacher == "ema" and not own:
        yield (
            f"{path} is null but model.codert.teacher is ema, an average of the student, and the stock keys describe "
            f"a TDT model: set it to {durations}"
        )
    if codert.share_decoder and not own and joint.get("_target_") == ADDITIVE_JOINT:
        yield (
            f"{path} is null but model.codert.share_decoder is true with additive joints: the teacher's projection of "
            f"the prediction network has outputs for durations. Set it to {durations}, or share_decoder to false"
        )
    if (
        own
        and codert.student_loss_weight == 0
        and not any(
            term.weight > 0 and term.get("durations_weight") and compares_durations(term, codert.teacher_logits)
            for term in codert.distillation.values()
        )
    ):
        yield (
            "model.codert.student_loss_weight is 0 but no term with a durations_weight above 0 would train the "
            f"durations of the student: set it above 0, or {path} to null"
        )


def compares_durations(term: DictConfig, teacher_logits: str) -> bool:
    """Return whether a term of a TDT pair with a `durations_weight` has durations to compare: a CTC head has none."""
    return term["at"] != "encoder" or teacher_logits not in HEAD_LOGITS


def nemo_loss_problems(cfg: DictConfig, student: DictConfig, codert: DictConfig, alone: str | None) -> Iterator[str]:
    """Yield a fault where NeMo's loss is chosen for a TDT model that this package's loss trains.

    Args:
        alone: branch that is trained alone: with a stock joint by NeMo's own class and loss.
    """
    joint = (sub_block(student, "joint") if alone == "student" else {}) or sub_block(cfg, "joint")
    if codert.rnnt_loss == "nemo" and is_tdt(cfg) and (alone is None or joint.get("_target_") == ADDITIVE_JOINT):
        yield "model.codert.rnnt_loss is nemo but a TDT model is trained, by this package's TDT loss: set it to auto"
