"""The one parse of a model config: defaults filled in, every fault listed in one error, the terms of the loss read.

A run calls `checked_config` once, before any weight is allocated, and everything else reads the resulting
`CheckedConfig`. Stock keys that are supported, ignored or refused: docs/configuration.md. Imports omegaconf only.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import get_type_hints

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nemo_codert import __version__
from nemo_codert.config.criteria import CriterionSpec, PairBlocks, criteria_specs, pair_problems, typed_terms
from nemo_codert.config.derived import encoders, make_teacher_like_student
from nemo_codert.config.number_checks import size_problems
from nemo_codert.config.pair_checks import (
    checkpointing_problems,
    codert_problems,
    doubtful_terms,
    ema_problems,
    frame_rate_problems,
    keys_without_effect,
    student_problems,
    teacher_source_problems,
)
from nemo_codert.config.schema import CoDERTConfig, StudentConfig
from nemo_codert.config.stock_checks import (
    encoder_problems,
    optimisation_problems,
    stock_block_problems,
    unsupported_options,
    width_problems,
)
from nemo_codert.config.tdt import (
    nemo_loss_problems,
    pair_duration_problems,
    student_duration_problems,
    trains_tdt,
)
from nemo_codert.config.values import sub_block

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedConfig:
    """A model config without faults: `checked_config` makes it, once in a run.

    Args:
        model: the `model` section, interpolations resolved, with all defaults of the blocks `student` and `codert`.
        alone: `student` or `teacher` where only that is trained, None for a pair.
    """

    model: DictConfig
    alone: str | None = None

    @property
    def student(self) -> DictConfig:
        """The block `model.student`."""
        return self.model.student

    @property
    def codert(self) -> DictConfig:
        """The block `model.codert`."""
        return self.model.codert

    @cached_property
    def criteria(self) -> tuple[CriterionSpec, ...]:
        """The terms of the pair's training loss; none where a branch is trained alone by NeMo's own class."""
        return () if self.alone else criteria_specs(self.model)


def checked_config(cfg: DictConfig, *, alone: str | None = None, warns: bool = True) -> CheckedConfig:
    """Check a pair's model config and fill in the defaults of the blocks `student` and `codert`.

    One warning is logged for each key that has no effect.

    Args:
        cfg: the `model` section: a stock RNN-T config plus `student` and `codert`. It is not changed.
        alone: `student` or `teacher` where only that branch is trained; `codert.share_decoder` then has no effect.
        warns: False where the config is checked a second time.

    Raises:
        ValueError: one error that lists every unknown key, wrong type and contradiction found.

    Returns:
        The config with all defaults filled in.

    Example:
        >>> from omegaconf import OmegaConf
        >>> checked_config(OmegaConf.create({"student": {"encoder": {}}, "codert": {"share_decode": True}}))
        Traceback (most recent call last):
        ...
        ValueError: The model config cannot be used:
          - ...
    """
    cfg = _resolved(cfg)
    problems: list[str] = []
    student = _typed_block(cfg, "student", StudentConfig, problems)
    codert = _typed_block(cfg, "codert", CoDERTConfig, problems)
    shares = codert.share_decoder and not alone
    if alone is None and codert.teacher == "ema":
        make_teacher_like_student(cfg, student)
    problems += [
        *student_problems(student, sub_block(cfg, "joint"), shares),
        *codert_problems(codert),
        *stock_block_problems(cfg),
        *student_duration_problems(cfg, student),
    ]
    if alone is None:
        problems += [*teacher_source_problems(cfg, student, codert), *ema_problems(codert)]
        problems += pair_duration_problems(cfg, student, codert)
        problems += pair_problems(PairBlocks(cfg, student, codert))
    trained = trains_tdt(codert, student, alone)
    problems += nemo_loss_problems(cfg, student, codert, alone) if trained else ()
    problems += [*unsupported_options(cfg, trains_tdt=trained), *optimisation_problems(cfg, shares)]
    for name, encoder in encoders(cfg, student).items():
        problems += encoder_problems(name, encoder)
        problems += checkpointing_problems(name, encoder, codert)
    problems += [*frame_rate_problems(cfg, student), *width_problems(cfg, student), *size_problems(cfg)]
    if problems:
        raise ValueError("The model config cannot be used:\n  - " + "\n  - ".join(problems))
    if warns:
        for warning in (*keys_without_effect(cfg, codert, alone), *(() if alone else doubtful_terms(codert))):
            logger.warning("%s", warning)
    with open_dict(cfg):
        if "sched" in sub_block(cfg, "optim") and cfg.optim.sched is None:
            cfg.optim.pop("sched")  # NeMo takes the key for a schedule
        cfg.pop("ipl", None)  # the recipe's paths in it are mandatory, and nothing reads the block
        cfg.student, cfg.codert, cfg.nemo_codert_version = student, codert, __version__
    return CheckedConfig(cfg, alone)


def _resolved(cfg: DictConfig) -> DictConfig:
    """Copy a config without its interpolations; `???` stays."""
    try:
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(f"The model config has an interpolation that cannot be resolved: {error}") from error


def _typed_block(cfg: DictConfig, name: str, schema: type, problems: list[str]) -> DictConfig:
    """Merge a block into its schema, key by key so that every fault is found and not just the first."""
    block = cfg.get(name)
    if block is None:
        problems.append(f"model.{name} is missing: add the block (docs/configuration.md lists its keys)")
    elif not OmegaConf.is_dict(block):
        problems.append(f"model.{name} is {block!r}, wanted a block of keys")
    typed = OmegaConf.structured(schema)
    block = OmegaConf.create(sub_block(cfg, name))
    if "distillation" in typed:
        is_missing = OmegaConf.is_missing(block, "distillation")  # named with the other keys
        terms = typed.distillation if is_missing else block.pop("distillation", typed.distillation)
        typed.distillation = typed_terms(terms, f"model.{name}.distillation", _merge, problems)
    _merge(typed, block, f"model.{name}", problems)
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
                wanted = get_type_hints(OmegaConf.get_type(typed))[key]
                problems.append(f"{path}.{key} is {block[key]!r}, wanted {getattr(wanted, '__name__', wanted)}")
