"""Terms of a pair's training loss as the config states them: the table of kinds, the named terms and their checks.

`criteria_specs` is what every list of loss parts reads: the loss itself, logs, guard messages, clipping, curves, run
checks, training records and comparisons. A new criterion is one file in `nemo_codert/criteria`, one in
`nemo_codert/losses` for its maths, and one entry in `CRITERIA`. Imports omegaconf only.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_codert.config.tdt import is_tdt
from nemo_codert.config.teachers import WITHOUT_GRADIENT
from nemo_codert.config.values import is_count, sub_block

ONE_TERM = "encoder"  # name of the single term that a flat block `codert.distillation` describes
TERM_LOSS = "train_distillation_loss"  # log name of that term; another term's name is appended
BRANCH_LOSSES = ("rnnt_student", "ctc_student", "rnnt_teacher")  # names of the terms that are not distillation
TERM_NAME = re.compile(r"[a-z][a-z0-9_]*")
OLDER_KEYS = {"start_step": "from_step"}  # older names of a term's keys
REDUCTIONS = ("per_utterance", "per_frame")
PRIORS = ("none", "mean_prediction")
NODES = ("all", "non_blank", "occupied", "best_path")
CLASSES = ("all", "target_blank_rest")
ADAPTIVE = "adaptive"
HEADS = "ctc_heads"  # kind of the CTC loss of heads in the middle of the student's encoder


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

    temperature: Any = 1.0  # tau > 0, the term is scaled by tau squared; adaptive: one tau a frame
    temperature_floor: float = 0.5  # nats, with adaptive: the least tau >= 1 that lifts the teacher's entropy to it
    prior: str = "none"  # none | mean_prediction: the utterance's mean prediction logits are added to both sides
    reduction: str = "per_utterance"  # per_utterance: nats per utterance | per_frame: nats per frame
    frame_shift: int = 0  # student frames >= 0: the student's frame t + frame_shift learns from the teacher's frame t
    both_ways: bool = False  # co-trained pairs: the teacher learns from the student too
    durations_weight: float = 1.0  # TDT pairs: factor >= 0 of the divergence of the durations' distributions


@dataclass
class HiddenConfig(TermConfig):
    """Keys of a term at hidden layers."""

    by: str = "mse"
    layers: Any = None  # required: {student layer: teacher layer}, 1 is the first; the term is the mean over the pairs
    reduction: str = "per_utterance"  # per_utterance: summed over frames | per_frame: mean over frames
    frame_shift: int = 0  # student frames >= 0: the student's frame t + frame_shift learns from the teacher's frame t


@dataclass
class CorrelationConfig(HiddenConfig):
    """Keys of a term at hidden layers by correlation (arXiv:2312.12153)."""

    by: str = "correlation"
    self_weight: float = 0.0  # >= 0, factor of the student's correlations among its own channels


@dataclass
class CTCConfig(TermConfig):
    """Keys of a term at CTC heads (arXiv:2211.15075)."""

    layers: Any = None  # student layers that get a head of their own, 1 is the first; null: the hybrid student's head
    ctc_weight: float = 0.3  # factor of the heads' own CTC loss, >= 0; 0 leaves it out; read where there are layers
    temperature: Any = 1.0  # tau > 0, the term is scaled by tau squared; adaptive: one tau a frame
    temperature_floor: float = 0.5  # nats, with adaptive: the least tau >= 1 that lifts the teacher's entropy to it
    reduction: str = "per_utterance"  # per_utterance: summed over frames | per_frame: mean over frames
    frame_shift: int = 0  # student frames >= 0: the student's frame t + frame_shift learns from the teacher's frame t


@dataclass
class JointKLConfig(TermConfig):
    """Keys of a term at the joint by KL divergence, at the nodes of the lattice."""

    at: str = "joint"
    nodes: str = "all"  # all | non_blank | occupied | best_path: nodes by their weight under the teacher
    classes: str = "all"  # all | target_blank_rest: next label, blank and all others
    temperature: Any = 1.0  # tau > 0, the term is scaled by tau squared; adaptive: one tau an utterance
    temperature_floor: float = 0.5  # nats, with adaptive: the least tau >= 1 that lifts the teacher's entropy to it
    reduction: str = "per_utterance"  # per_utterance: nats per utterance | per_frame: nats per frame
    frame_shift: int = 0  # student frames >= 0: the student's frame t + frame_shift learns from the teacher's frame t
    both_ways: bool = False  # co-trained pairs: the teacher learns from the student too
    durations_weight: float = 1.0  # TDT pairs: factor >= 0 of the divergence of the durations' distributions


@dataclass
class SequenceConfig(TermConfig):
    """Keys of a term at the log-likelihood of the transcript (arXiv:2303.05958)."""

    at: str = "sequence"
    by: str = "l2"


# Keys of a flat block, which therefore cannot name a term.
FLAT_KEYS = (*(key for key in vars(EncoderKLConfig()) if key not in ("at", "by")), *OLDER_KEYS)


class PairBlocks(NamedTuple):
    """The blocks that the checks of a term may read: the `model` section, and its checked `student` and `codert`."""

    model: DictConfig
    student: DictConfig
    codert: DictConfig


Layers = tuple[int, ...]


@dataclass(frozen=True)
class CriterionKind:
    """Entry of `CRITERIA`: one kind of term, as far as it is known without building it.

    Args:
        target: the `nemo_codert.criteria.Criterion` behind it, as a class or its dotted name.
        schema: dataclass of a named term's keys, a subclass of `TermConfig`; None where no named term is of this kind.
        problems: yields the faults of such a term's values, given the term and its config path.
        pair_problems: yields the faults of such a term in its pair, given the term, its config path and `PairBlocks`.
        needs_teacher: whether the term reads the teacher's output.
        needs_text: whether the term reads transcripts; utterances without text are left out of it.
        any_vocabulary: whether the teacher of such a term may have another tokenizer.
        layers: the encoder layers of student and teacher that a term reads, given its options; 1 is the first layer.
    """

    target: str | type
    schema: type[TermConfig] | None = None
    problems: Callable[[DictConfig, str], Iterator[str]] = lambda term, path: iter(())
    pair_problems: Callable[[DictConfig, str, PairBlocks], Iterator[str]] = lambda term, path, pair: iter(())
    needs_teacher: bool = True
    needs_text: bool = False
    any_vocabulary: bool = False
    layers: Callable[[Mapping[str, Any]], tuple[Layers, Layers]] = lambda options: ((), ())


def temperature_problems(term: DictConfig, path: str) -> Iterator[str]:
    """Yield the faults of a term's keys `temperature` and `temperature_floor`."""
    tau, floor = term.temperature, term.temperature_floor
    is_above_0 = isinstance(tau, (int, float)) and not isinstance(tau, bool) and math.isfinite(tau) and tau > 0
    if tau != ADAPTIVE and not is_above_0:
        yield f"{path}.temperature is {tau!r}, wanted a number above 0, or {ADAPTIVE}"
    yield from at_least_zero(path, {"temperature_floor": floor})


def frame_problems(term: DictConfig, path: str) -> Iterator[str]:
    """Yield the faults of a term's keys `reduction` and `frame_shift`."""
    if term.reduction not in REDUCTIONS:
        yield f"{path}.reduction is {term.reduction!r}, wanted one of {', '.join(REDUCTIONS)}"
    yield from at_least_zero(path, {"frame_shift": term.frame_shift})


def mirror_problems(term: DictConfig, path: str, pair: PairBlocks) -> Iterator[str]:
    """Yield the faults of a term's key `both_ways` in a pair."""
    if not term.both_ways:
        return
    if pair.codert.teacher != "co_trained":
        yield (
            f"{path}.both_ways is true but model.codert.teacher is {pair.codert.teacher}: only a teacher that is "
            "trained in the same run can learn from the student. Set both_ways to false"
        )
    if term.frame_shift:
        yield (
            f"{path}.both_ways is true with frame_shift {term.frame_shift}: set frame_shift to 0 or both_ways to false"
        )


def _encoder_kl_problems(term: DictConfig, path: str) -> Iterator[str]:
    if term.prior not in PRIORS:
        yield f"{path}.prior is {term.prior!r}, wanted one of {', '.join(PRIORS)}"
    yield from at_least_zero(path, {"durations_weight": term.durations_weight})
    yield from temperature_problems(term, path)
    yield from frame_problems(term, path)


def _encoder_kl_pair_problems(term: DictConfig, path: str, pair: PairBlocks) -> Iterator[str]:
    yield from mirror_problems(term, path, pair)
    if term.prior == "mean_prediction" and pair.codert.teacher_logits == "ctc":
        yield (
            f"{path}.prior is mean_prediction but model.codert.teacher_logits is ctc: the logits of a CTC head have "
            "no prediction network beside them. Set prior to none or teacher_logits to joint"
        )


def _joint_kl_problems(term: DictConfig, path: str) -> Iterator[str]:
    for key, choices in (("nodes", NODES), ("classes", CLASSES)):
        if term[key] not in choices:
            yield f"{path}.{key} is {term[key]!r}, wanted one of {', '.join(choices)}"
    yield from at_least_zero(path, {"durations_weight": term.durations_weight})
    yield from temperature_problems(term, path)
    yield from frame_problems(term, path)


def _joint_kl_pair_problems(term: DictConfig, path: str, pair: PairBlocks) -> Iterator[str]:
    yield from mirror_problems(term, path, pair)
    if not is_tdt(pair.model):
        return
    if term.nodes == "best_path":
        yield (
            f"{path}.nodes is best_path but the teacher is a TDT model, whose most probable alignment is not computed "
            "here. Set nodes to occupied, the probability that an alignment passes a node"
        )
    if term.classes == "target_blank_rest" and not pair.student.durations:
        yield (
            f"{path}.classes is target_blank_rest but the teacher is a TDT model, whose labels also move on in time: "
            "the classes do not mean the same in both. Set classes to all, or model.student.durations"
        )


def layer_pairs(options: Mapping[str, Any]) -> tuple[Layers, Layers]:
    """Return the layers of student and teacher that a term at hidden layers compares, pair by pair."""
    pairs = options["layers"] or {}
    return tuple(map(int, pairs)), tuple(map(int, pairs.values()))


def head_layers(options: Mapping[str, Any]) -> tuple[Layers, Layers]:
    """Return the layers of the student that have a CTC head of a term, and none of the teacher's."""
    return tuple(options["layers"] or ()), ()


def _hidden_problems(term: DictConfig, path: str) -> Iterator[str]:
    yield from frame_problems(term, path)
    if "self_weight" in term:
        yield from at_least_zero(path, {"self_weight": term.self_weight})
    pairs = term.layers if OmegaConf.is_dict(term.layers) else {}
    if not pairs or not all(_is_layer(number) for pair in pairs.items() for number in pair):
        yield (
            f"{path}.layers is {_plain(term.layers)!r}, wanted student layers with the teacher layers that they learn "
            "from, e.g. {4: 8}; 1 is the first layer"
        )


def _ctc_problems(term: DictConfig, path: str) -> Iterator[str]:
    yield from temperature_problems(term, path)
    yield from frame_problems(term, path)
    yield from at_least_zero(path, {"ctc_weight": term.ctc_weight})
    numbers = list(term.layers) if OmegaConf.is_list(term.layers) else []
    is_right = bool(numbers) and all(type(number) is int and number >= 1 for number in numbers)
    if term.layers is not None and not (is_right and len(set(numbers)) == len(numbers)):
        yield (
            f"{path}.layers is {_plain(term.layers)!r}, wanted different layers of the student as a list, e.g. "
            "[4, 6], where 1 is the first; null for the head of a hybrid student"
        )


def _is_layer(number: object) -> bool:
    return str(number).isdecimal() and int(number) >= 1


def _plain(value: object) -> object:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _layer_problems(term: DictConfig, path: str, pair: PairBlocks) -> Iterator[str]:
    """Yield a fault for each encoder whose layers cannot be read, and for each layer that it does not have."""
    if any(kind_of(term).problems(term, path)):
        return
    blocks = sub_block(pair.student, "encoder"), sub_block(pair.model, "encoder")
    names = "model.student.encoder", "model.encoder"
    for name, block, numbers in zip(names, blocks, kind_of(term).layers(term), strict=True):
        count = block.get("n_layers")
        if numbers and not str(block.get("_target_")).endswith((".ConformerEncoder", ".CachedEncoder")):
            yield f"{path}.layers needs a ConformerEncoder, {name}._target_ is {block.get('_target_')!r}"
        elif numbers and block.get("reduction"):
            yield f"{path}.layers needs layers of one frame rate, {name}.reduction is {block.get('reduction')!r}"
        elif is_count(count) and numbers and max(numbers) > count:
            yield f"{path}.layers has layer {max(numbers)} of {name}, whose n_layers is {count}"


def _ctc_pair_problems(term: DictConfig, path: str, pair: PairBlocks) -> Iterator[str]:
    name = path.rpartition(".")[2]
    if term.layers and heads_name(name) in pair.codert.distillation:
        yield f"{path}: its heads' CTC loss is named {heads_name(name)}, as another term is. Rename one of them"
    if not term.layers and not pair.student.aux_ctc:
        yield (
            f"{path} compares CTC heads but model.student.aux_ctc is null: give the student a head, or the term "
            "layers for heads in the middle"
        )
    if term.weight > 0 and pair.codert.teacher_logits == "joint" and pair.codert.teacher != "cached":
        yield (
            f"{path} compares CTC heads but model.codert.teacher_logits is joint: set it to "
            "ctc, for a frozen hybrid teacher, or to ctc_alone, which reads encoder and CTC head of a teacher alone"
        )
    yield from _layer_problems(term, path, pair)


def _sequence_pair_problems(term: DictConfig, path: str, pair: PairBlocks) -> Iterator[str]:
    if is_tdt(pair.model) and not pair.student.durations:
        yield (
            f"{path} compares log-likelihoods but the teacher is a TDT model, whose likelihood is that of its "
            "durations too: set model.student.durations, or choose another at"
        )


# Kind of term -> its entry. Named terms are chosen by their keys `at` and `by`: the kind is "AT.BY".
CRITERIA: dict[str, CriterionKind] = {
    "rnnt": CriterionKind("nemo_codert.criteria.rnnt.RNNT", needs_teacher=False, needs_text=True),
    "ctc": CriterionKind("nemo_codert.criteria.ctc.CTC", needs_teacher=False, needs_text=True),
    "encoder.kl": CriterionKind(
        "nemo_codert.criteria.encoder_kl.EncoderKL", EncoderKLConfig, _encoder_kl_problems, _encoder_kl_pair_problems
    ),
    **{
        f"hidden.{by}": CriterionKind(
            "nemo_codert.criteria.hidden.Hidden",
            CorrelationConfig if by == "correlation" else HiddenConfig,
            _hidden_problems,
            _layer_problems,
            any_vocabulary=True,
            layers=layer_pairs,
        )
        for by in ("mse", "cosine", "correlation", "energy", "gram")
    },
    **{
        f"ctc.{by}": CriterionKind(
            "nemo_codert.criteria.ctc_heads.CTCDivergence",
            CTCConfig,
            _ctc_problems,
            _ctc_pair_problems,
            layers=head_layers,
        )
        for by in ("kl", "l2")
    },
    HEADS: CriterionKind(
        "nemo_codert.criteria.ctc_heads.HeadsCTC", needs_teacher=False, needs_text=True, layers=head_layers
    ),
    "joint.kl": CriterionKind(
        "nemo_codert.criteria.joint_kl.JointKL",
        JointKLConfig,
        _joint_kl_problems,
        _joint_kl_pair_problems,
        needs_text=True,
    ),
    "sequence.l2": CriterionKind(
        "nemo_codert.criteria.sequence.SequenceL2",
        SequenceConfig,
        pair_problems=_sequence_pair_problems,
        needs_text=True,
    ),
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
        """Return whether the term is computed at an optimizer step, a branch's own loss also where its weight is 0."""
        return step >= self.from_step if not self.is_distillation else self.weight_at(step) > 0

    @property
    def needs_teacher(self) -> bool:
        """True if the term reads the teacher's output."""
        return self.trains == "teacher" or CRITERIA[self.kind].needs_teacher

    @property
    def needs_text(self) -> bool:
        """True if utterances without text are left out of the term."""
        return CRITERIA[self.kind].needs_text

    @property
    def student_layers(self) -> Layers:
        """Encoder layers of the student that the term reads; 1 is the first."""
        return CRITERIA[self.kind].layers(self.options)[0]

    @property
    def teacher_layers(self) -> Layers:
        """Encoder layers of the teacher that the term reads; 1 is the first."""
        return CRITERIA[self.kind].layers(self.options)[1]

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
    first = codert.get("student_loss_from_step", 0)
    specs = [_branch_loss("rnnt", "student", codert.student_loss_weight * (1 - of_ctc), first)]
    if ctc:
        specs.append(_branch_loss("ctc", "student", codert.student_loss_weight * of_ctc, first))
    if codert.teacher not in WITHOUT_GRADIENT:
        specs.append(_branch_loss("rnnt", "teacher", codert.teacher_loss_weight))
    for name, term in distillation_terms(codert.distillation).items():
        specs.append(_term_spec(name, term))
        if specs[-1].options.get("ctc_weight") and specs[-1].student_layers:
            specs.append(_heads_spec(specs[-1]))
    return tuple(specs)


def _branch_loss(kind: str, branch: str, weight: float, from_step: int = 0) -> CriterionSpec:
    log_name = f"train_{kind}_loss_{branch}"
    return CriterionSpec(f"{kind}_{branch}", kind, log_name, weight, trains=branch, from_step=from_step)


def _term_spec(name: str, term: Mapping[str, Any]) -> CriterionSpec:
    log_name = TERM_LOSS if name == ONE_TERM else f"{TERM_LOSS}_{name}"
    plain = OmegaConf.to_container(term) if OmegaConf.is_config(term) else dict(term)
    kind = f"{plain.pop('at')}.{plain.pop('by')}"
    schedule = {key: plain.pop(key) for key in ("weight", "from_step", "until_step", "ramp_steps")}
    return CriterionSpec(name, kind, log_name, **schedule, is_distillation=True, options=plain)


def heads_name(term: str) -> str:
    """Return the name of the CTC loss that trains the heads of a term in the middle of the student's encoder."""
    return f"{term}_heads"


def _heads_spec(term: CriterionSpec) -> CriterionSpec:
    name, options = heads_name(term.name), {"of": term.name, "layers": term.options["layers"]}
    weight = term.options["ctc_weight"]
    return replace(term, name=name, kind=HEADS, log_name=f"train_ctc_loss_{name}", weight=weight, options=options)


def distillation_terms(distillation: DictConfig | None) -> dict[str, Any]:
    """Return the named terms of a block `codert.distillation`; a flat block is one term at the encoder by KL.

    Args:
        distillation: the block, with or without its defaults; null or empty: no terms.

    Returns:
        Name -> keys of the term, with those of `TermConfig` and of its kind's schema.

    Example:
        >>> terms = distillation_terms(OmegaConf.create({"weight": 0.3, "start_step": 100}))
        >>> {name: (term["at"], term["weight"], term["from_step"]) for name, term in terms.items()}
        {'encoder': ('encoder', 0.3, 100)}
    """
    terms = {}
    for name, term in named(distillation).items():
        given = {OLDER_KEYS.get(key, key): value for key, value in (term or {}).items()}
        schema = CRITERIA[_kind_of(given)].schema
        terms[name] = {**vars(schema()), **given}
    return terms


def named(distillation: DictConfig | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a block as a mapping of named terms as they are given; a flat block is the term `encoder`."""
    if not distillation:
        return {}
    if not is_named(distillation):
        return {ONE_TERM: dict(distillation)}
    distillation = with_flat_keys_in_their_term(distillation)
    return {name: term for name, term in distillation.items() if term is not None}


def with_flat_keys_in_their_term(distillation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return named terms with the flat keys that stand beside a term `encoder` moved into it, where it lacks them.

    A YAML with a flat block, chosen together with a strategy that names its terms, is merged to such a block. Without
    a term `encoder` the block is returned as it is.

    Example:
        >>> with_flat_keys_in_their_term({"weight": 0.3, "temperature": 2.0, "encoder": {"weight": 0.1}})
        {'encoder': {'weight': 0.1, 'temperature': 2.0}}
        >>> with_flat_keys_in_their_term({"weight": 0.3, "encoder": None, "joint": {"at": "joint"}})
        {'encoder': None, 'joint': {'at': 'joint'}}
    """
    if ONE_TERM not in distillation or not (set(distillation) & set(FLAT_KEYS)):
        return distillation
    is_config = OmegaConf.is_config(distillation)
    plain = OmegaConf.to_container(distillation, resolve=False) if is_config else dict(distillation)
    flat = {key: plain.pop(key) for key in list(plain) if key in FLAT_KEYS}
    if isinstance(plain[ONE_TERM], Mapping):
        plain[ONE_TERM] = {**flat, **plain[ONE_TERM]}
    if not is_config:
        return plain
    made = OmegaConf.create(plain)
    made._set_parent(distillation._get_parent())  # interpolations are resolved from the root
    return made


def is_named(distillation: object) -> bool:
    """Return whether a block `codert.distillation` is a mapping of named terms, not the flat keys of one term."""
    if not isinstance(distillation, Mapping) and not OmegaConf.is_dict(distillation):
        return False
    is_config = OmegaConf.is_config(distillation)
    names = [key for key in distillation if key not in FLAT_KEYS]
    names = [key for key in names if not (is_config and OmegaConf.is_missing(distillation, key))]
    return any(_is_block(distillation[name]) or distillation[name] is None for name in names)


def _is_block(value: object) -> bool:
    return isinstance(value, dict) or OmegaConf.is_dict(value)


def distils(codert: DictConfig) -> bool:
    """Return whether any term of a block `codert` has a weight above 0."""
    return any(term["weight"] > 0 for term in distillation_terms(codert.distillation).values())


def teacher_transcribes(codert: DictConfig) -> bool:
    """Return whether a pair's teacher is there as a whole: not stored targets, nor an encoder (and CTC head) alone."""
    return codert.get("teacher") != "cached" and not reads_encoder_alone(codert)


def reads_encoder_alone(codert: DictConfig) -> bool:
    """Return whether the encoder, and with `teacher_logits: ctc_alone` a CTC head, is all that is loaded of a teacher.

    The encoder alone is loaded where a frozen teacher is compared at hidden layers only. A teacher of which no decoder
    is loaded may have another tokenizer, and need not be an RNN-T.
    """
    if codert.get("teacher_logits") == "ctc_alone":
        return True
    if codert.get("teacher") != "frozen" or codert.get("share_decoder", True):
        return False
    kinds = [kind_of(term) for term in distillation_terms(codert.get("distillation")).values() if term["weight"] > 0]
    return bool(kinds) and all(kind.any_vocabulary for kind in kinds)


def typed_terms(
    block: DictConfig | None, path: str, merge: Callable[..., None], problems: list[str]
) -> dict[str, DictConfig]:
    """Return the terms of a block, each merged into the schema of its kind, with every fault of its values listed.

    Args:
        block: named terms, the flat keys of the one term `encoder`, or null.
        path: config path of the block, for messages.
        merge: merges a block into a typed config and appends its faults to a list.
        problems: list to which every fault is appended.
    """
    if block is None or not OmegaConf.is_dict(block):
        if block is not None:
            problems.append(f"{path} is {block!r}, wanted a block of keys")
        return {}
    if not is_named(block):
        if block and (kind := _kind_of(block)) != f"{ONE_TERM}.kl":
            problems.append(f"{path} has at.by {kind!r} but no name: write NAME: {{at: ..., by: ...}}")
            return {}
        return {ONE_TERM: _typed_term(block, path, f"{ONE_TERM}.kl", merge, problems)} if block else {}
    block, typed = with_flat_keys_in_their_term(block), {}
    for name in block:
        if name not in FLAT_KEYS and not OmegaConf.is_missing(block, name) and block[name] is None:
            continue  # a term that this file takes away from what it inherits
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
            typed[name] = _typed_term(block[name], f"{path}.{name}", kind, merge, problems)
    return typed


def _typed_term(
    block: DictConfig, path: str, kind: str, merge: Callable[..., None], problems: list[str]
) -> DictConfig:
    given = {}
    for key in block:
        if key in OLDER_KEYS and OLDER_KEYS[key] in block:
            problems.append(f"{path}.{key} is the older name of {OLDER_KEYS[key]}, which is there too: leave it out")
        elif key in OLDER_KEYS and not OmegaConf.is_missing(block, key):
            given[OLDER_KEYS[key]] = block[key]
        else:
            given[key] = block._get_node(key)
    typed = OmegaConf.structured(CRITERIA[kind].schema)
    merge(typed, OmegaConf.create(given), path, problems)
    term = OmegaConf.create(OmegaConf.to_container(typed))
    problems += at_least_zero(path, {key: term[key] for key in ("weight", "from_step", "ramp_steps")})
    if term.until_step is not None and term.until_step <= term.from_step:
        problems.append(f"{path}.until_step is {term.until_step}, wanted a step after from_step ({term.from_step})")
    problems += CRITERIA[kind].problems(term, path)
    return term


def named_kinds() -> list[str]:
    """Return the kinds that a named term can have."""
    return [name for name, kind in CRITERIA.items() if kind.schema is not None]


def term_keys() -> set[str]:
    """Return the keys that a named term of any kind may have."""
    return {key for name in named_kinds() for key in vars(CRITERIA[name].schema())}


def kind_of(term: Mapping[str, Any]) -> CriterionKind:
    """Return the entry of `CRITERIA` of a term with its defaults."""
    return CRITERIA[f"{term['at']}.{term['by']}"]


def _kind_of(term: Mapping[str, Any]) -> str:
    defaults = TermConfig()
    try:
        return f"{term.get('at', defaults.at)}.{term.get('by', defaults.by)}"
    except OmegaConfBaseException:
        return "???"


def pair_problems(pair: PairBlocks, path: str = "model.codert.distillation") -> Iterator[str]:
    """Yield the faults of terms whose own values are right, but which cannot be computed in this pair."""
    for name, term in pair.codert.distillation.items():
        yield from kind_of(term).pair_problems(term, f"{path}.{name}", pair)


def trains_without_text(specs: Iterable[CriterionSpec]) -> bool:
    """Return whether a term of the loss trains on utterances without transcript."""
    return any(spec.weight > 0 and not spec.needs_text for spec in specs)


def at_least_zero(path: str, values: Mapping[str, float]) -> Iterator[str]:
    """Yield a fault for each value that is negative or not finite."""
    for key, value in values.items():
        if not 0 <= value < math.inf:
            yield f"{path}.{key} is {value}, wanted a number that is 0 or above"
