"""Terms of a pair's training loss as the config states them: the table of kinds, the named terms and their checks.

`criteria_specs` is what every list of loss parts reads: the loss itself, logs, guard messages, clipping, curves, run
checks, training records and comparisons. A new criterion is one file in `nemo_codert/criteria`, one in
`nemo_codert/losses` for its maths, and one entry in `CRITERIA`. Imports omegaconf only.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_codert.config.schema import DistillationConfig

ONE_TERM = "encoder"  # name of the single term that a flat block `codert.distillation` describes
TERM_LOSS = "train_distillation_loss"  # log name of that term; another term's name is appended
FLAT_KEYS = tuple(vars(DistillationConfig()))  # keys of a flat block, which therefore cannot name a term
BRANCH_LOSSES = ("rnnt_student", "ctc_student", "rnnt_teacher")  # names of the terms that are not distillation
TERM_NAME = re.compile(r"[a-z][a-z0-9_]*")
REDUCTIONS = ("per_utterance", "per_frame")


@dataclass
class TermConfig:
    """Keys of every named term of `model.codert.distillation`."""

    at: str = "encoder"  # place where teacher and student are compared
    by: str = "kl"  # measure by which they are compared
    weight: float = 0.1  # factor of the term in the training loss, >= 0; 0 leaves the term out altogether
    from_step: int = 0  # first optimizer step with a weight above 0
    until_step: int | None = None  # first optimizer step without the term again; null: none
    ramp_steps: int = 0  # steps after from_step in which the weight grows linearly


@dataclass
class EncoderKLConfig(TermConfig):
    """Keys of a term at the encoder by KL divergence (arXiv:2106.07734)."""

    temperature: float = 1.0  # tau > 0, the term is scaled by tau squared
    reduction: str = "per_utterance"  # per_utterance: nats per utterance | per_frame: nats per frame
    frame_shift: int = 0  # student frames >= 0: the student's frame t + frame_shift learns from the teacher's frame t


@dataclass(frozen=True)
class CriterionKind:
    """Entry of `CRITERIA`: one kind of term, as far as it is known without building it.

    Args:
        target: the `nemo_codert.criteria.Criterion` behind it, as a class or its dotted name.
        schema: dataclass of a named term's keys, a subclass of `TermConfig`; None where no named term is of this kind.
        problems: yields the faults of such a term's values, given the term and its config path.
        needs_teacher: whether the term reads the teacher's output.
    """

    target: str | type
    schema: type[TermConfig] | None = None
    problems: Callable[[DictConfig, str], Iterator[str]] = lambda term, path: iter(())
    needs_teacher: bool = True


def _encoder_kl_problems(term: DictConfig, path: str) -> Iterator[str]:
    if term.reduction not in REDUCTIONS:
        yield f"{path}.reduction is {term.reduction!r}, wanted one of {', '.join(REDUCTIONS)}"
    if not (math.isfinite(term.temperature) and term.temperature > 0):
        yield f"{path}.temperature is {term.temperature}, wanted a number above 0"
    yield from at_least_zero(path, {"frame_shift": term.frame_shift})


# Kind of term -> its entry. Named terms are chosen by their keys `at` and `by`: the kind is "AT.BY".
CRITERIA: dict[str, CriterionKind] = {
    "rnnt": CriterionKind("nemo_codert.criteria.rnnt.RNNT", needs_teacher=False),
    "ctc": CriterionKind("nemo_codert.criteria.ctc.CTC", needs_teacher=False),
    "encoder.kl": CriterionKind("nemo_codert.criteria.encoder_kl.EncoderKL", EncoderKLConfig, _encoder_kl_problems),
}


@dataclass(frozen=True)
class CriterionSpec:
    """One term of a pair's training loss, as its config states it.

    Args:
        name: of the term, unique within a pair.
        kind: its key in `CRITERIA`.
        log_name: name under which the unweighted term is logged.
        weight: factor in the training loss once the schedule has run up.
        trains: branch that receives the gradient, `student` or `teacher`.
        is_distillation: whether it is a term of `codert.distillation`: scheduled, and left out at weight 0.
        from_step, until_step, ramp_steps: the schedule, in optimizer steps; see `TermConfig`.
        options: the other keys of the term.
    """

    name: str
    kind: str
    log_name: str
    weight: float
    trains: str = "student"
    is_distillation: bool = False
    from_step: int = 0
    until_step: int | None = None
    ramp_steps: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def weight_at(self, step: int) -> float:
        """Return the factor at an optimizer step: 0 outside the schedule, a linear ramp, then `weight`."""
        if step < self.from_step or (self.until_step is not None and step >= self.until_step):
            return 0.0
        if self.ramp_steps == 0:
            return self.weight
        return self.weight * min(1.0, (step - self.from_step + 1) / self.ramp_steps)

    def is_active(self, step: int) -> bool:
        """Return whether the term is computed at an optimizer step. The branches' own losses always are."""
        return not self.is_distillation or self.weight_at(step) > 0

    @property
    def needs_teacher(self) -> bool:
        """True if the term reads the teacher's output."""
        return self.trains == "teacher" or CRITERIA[self.kind].needs_teacher

    @property
    def log_names(self) -> list[str]:
        """Names of everything that is logged of the term: its value and, of a scheduled one, its weight."""
        return [self.log_name, self.weight_log_name] if self.is_distillation else [self.log_name]

    @property
    def weight_log_name(self) -> str:
        """Name under which the weight of a scheduled term is logged."""
        return self.log_name.replace("_loss", "_weight", 1)


def criteria_specs(cfg: DictConfig) -> tuple[CriterionSpec, ...]:
    """Return the terms of a pair's training loss in the order in which they are computed and summed.

    Args:
        cfg: the `model` section after `checked_config` has filled in the defaults.

    Example:
        >>> from omegaconf import OmegaConf
        >>> codert = {"teacher": "co_trained", "student_loss_weight": 1.0, "teacher_loss_weight": 1.0,
        ...           "distillation": {"weight": 0.1, "start_step": 100}}
        >>> specs = criteria_specs(OmegaConf.create({"student": {"aux_ctc": None}, "codert": codert}))
        >>> [(spec.name, spec.log_name, spec.weight_at(0)) for spec in specs]  # doctest: +NORMALIZE_WHITESPACE
        [('rnnt_student', 'train_rnnt_loss_student', 1.0), ('rnnt_teacher', 'train_rnnt_loss_teacher', 1.0),
         ('encoder', 'train_distillation_loss', 0.0)]
    """
    codert, ctc = cfg.codert, cfg.student.aux_ctc
    of_ctc = ctc.ctc_loss_weight if ctc else 0
    specs = [_branch_loss("rnnt", "student", codert.student_loss_weight * (1 - of_ctc))]
    if ctc:
        specs.append(_branch_loss("ctc", "student", codert.student_loss_weight * of_ctc))
    if codert.teacher != "frozen":
        specs.append(_branch_loss("rnnt", "teacher", codert.teacher_loss_weight))
    specs += [_term_spec(name, term) for name, term in distillation_terms(codert.distillation).items()]
    return tuple(specs)


def _branch_loss(kind: str, branch: str, weight: float) -> CriterionSpec:
    return CriterionSpec(f"{kind}_{branch}", kind, f"train_{kind}_loss_{branch}", weight, trains=branch)


def _term_spec(name: str, term: DictConfig) -> CriterionSpec:
    log_name = TERM_LOSS if name == ONE_TERM else f"{TERM_LOSS}_{name}"
    plain = OmegaConf.to_container(term) if OmegaConf.is_config(term) else dict(term)
    kind = f"{plain.pop('at')}.{plain.pop('by')}"
    schedule = {key: plain.pop(key) for key in ("weight", "from_step", "until_step", "ramp_steps")}
    return CriterionSpec(name, kind, log_name, **schedule, is_distillation=True, options=plain)


def distillation_terms(distillation: DictConfig) -> dict[str, Any]:
    """Return the named terms of a block `codert.distillation`; a flat block is one term at the encoder by KL.

    Args:
        distillation: the block, with or without its defaults.

    Returns:
        Name -> keys of the term, with those of `TermConfig` and of its kind's schema.
    """
    if is_named(distillation):
        return dict(distillation)
    flat = {**vars(DistillationConfig()), **distillation}
    flat["from_step"] = flat.pop("start_step")
    return {ONE_TERM: {**vars(EncoderKLConfig()), **flat}}


def is_named(distillation: object) -> bool:
    """Return whether a block `codert.distillation` is a mapping of named terms, not the flat keys of one term."""
    if not OmegaConf.is_dict(distillation):
        return False
    names = [key for key in distillation if key not in FLAT_KEYS and not OmegaConf.is_missing(distillation, key)]
    return any(OmegaConf.is_dict(distillation[name]) for name in names)


def distils(codert: DictConfig) -> bool:
    """Return whether any term of a block `codert` has a weight above 0."""
    return any(term["weight"] > 0 for term in distillation_terms(codert.distillation).values())


def typed_terms(
    block: DictConfig, path: str, merge: Callable[..., None], problems: list[str]
) -> dict[str, DictConfig]:
    """Return the named terms of a block, each merged into the schema of its kind.

    Args:
        block: the mapping of named terms.
        path: config path of the block, for messages.
        merge: merges a block into a typed config and appends its faults to a list.
        problems: list to which every fault is appended.
    """
    typed = {}
    for name in block:
        if name in FLAT_KEYS or OmegaConf.is_missing(block, name) or not OmegaConf.is_dict(block[name]):
            problems.append(
                f"{path}.{name} stands beside named terms: keys of a single term and named terms cannot be mixed. "
                f"Move {name} into a term of its own, e.g. {ONE_TERM}: {{{name}: ...}}"
            )
        elif not TERM_NAME.fullmatch(str(name)) or name in BRANCH_LOSSES:
            problems.append(
                f"{path}.{name} is not a name for a term: use small letters, digits and _, and none of "
                f"{', '.join(BRANCH_LOSSES)}"
            )
        elif (kind := _kind_of(block[name])) not in named_kinds():
            problems.append(f"{path}.{name} has at.by {kind!r}, wanted one of {', '.join(named_kinds())}")
        else:
            term = OmegaConf.structured(CRITERIA[kind].schema)
            merge(term, block[name], f"{path}.{name}", problems)
            typed[name] = OmegaConf.create(OmegaConf.to_container(term))
    return typed


def named_kinds() -> list[str]:
    """Return the kinds that a named term can have."""
    return [name for name, kind in CRITERIA.items() if kind.schema is not None]


def _kind_of(term: DictConfig) -> str:
    defaults = TermConfig()
    try:
        return f"{term.get('at', defaults.at)}.{term.get('by', defaults.by)}"
    except OmegaConfBaseException:
        return "???"


def distillation_problems(distillation: DictConfig, path: str = "model.codert.distillation") -> Iterator[str]:
    """Yield the faults in the values of a block `codert.distillation` whose keys and types are right."""
    if not is_named(distillation):
        schedule = {key: distillation[key] for key in ("weight", "start_step", "ramp_steps")}
        yield from at_least_zero(path, schedule)
        yield from _encoder_kl_problems(distillation, path)
        return
    for name, term in distillation.items():
        yield from at_least_zero(f"{path}.{name}", {key: term[key] for key in ("weight", "from_step", "ramp_steps")})
        if term.until_step is not None and term.until_step <= term.from_step:
            yield f"{path}.{name}.until_step is {term.until_step}, wanted a step after from_step ({term.from_step})"
        yield from CRITERIA[f"{term['at']}.{term['by']}"].problems(term, f"{path}.{name}")


def at_least_zero(path: str, values: Mapping[str, float]) -> Iterator[str]:
    """Yield a fault for each value that is negative or not finite."""
    for key, value in values.items():
        if not 0 <= value < math.inf:
            yield f"{path}.{key} is {value}, wanted a number that is 0 or above"
