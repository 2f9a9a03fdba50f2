"""Checks of a run's config, made before anything is built or written.

`check_run` is the one entry. It adds the files that a run reads to the model's own checks (`config.checked`).
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS
from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS
from nemo.utils.model_utils import parse_dataset_as_name
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_codert.config.checked import CheckedConfig, checked_config
from nemo_codert.config.criteria import teacher_transcribes
from nemo_codert.config.data_sections import is_tarred
from nemo_codert.config.derived import lone_branch
from nemo_codert.config.validation_times import epoch_batches, is_past_epoch, never_validated
from nemo_codert.config.values import sub_block
from nemo_codert.config.values import value_at as _value
from nemo_codert.data.screening import tools_loader
from nemo_codert.evaluation.long_audio import refuse_without_memory
from nemo_codert.evaluation.transcribe import usable_entries
from nemo_codert.export.training_record import DataRecord
from nemo_codert.models.stored_targets import target_problems, unread_header, with_stand_in
from nemo_codert.nemo_compat import is_allowed_target, targets_in
from nemo_codert.training.early_checks import (
    CHECKS,
    NO_MODEL,
    data_problems,
    listed_faults,
    optimiser_problems,
    refusal,
    test_manifests,
)
from nemo_codert.training.logged_names import monitor_problems
from nemo_codert.training.trainer import callback_problems, is_on_cuda

TEST_BATCH_SIZE = 16  # utterances, used where model.test_ds has no batch_size
logger = logging.getLogger(__name__)


def check_run(cfg: DictConfig) -> CheckedConfig:
    """Check all of a run that can be checked before anything is built or written.

    Args:
        cfg: root config, with `train` and `seed`.

    Returns:
        Its model section with every default filled in, see `checked_config`.

    Raises:
        ValueError: one error that lists the faults of the model config, missing or unreadable manifests, a missing
            tokenizer, and settings that contradict each other.
    """
    checked, problems = _checked_model(cfg)
    problems += data_problems(cfg, checked)
    problems += [problem for check in (*CHECKS, _target_problems, callback_problems) for problem in check(cfg)]
    problems += optimiser_problems(cfg, AVAILABLE_OPTIMIZERS, AVAILABLE_SCHEDULERS)
    problems += [*_test_problems(cfg), *monitor_problems(cfg, checked, _prefix)]
    if problems:
        raise ValueError(refusal(problems))
    check_validations(cfg)
    return checked


def _checked_model(cfg: DictConfig) -> tuple[CheckedConfig | None, list[str]]:
    """Return the checked model section, or None and its faults."""
    if not OmegaConf.is_dict(cfg.get("model")):
        return None, [NO_MODEL]
    try:
        given = with_stand_in(cfg.model) if lone_branch(cfg) is None else cfg.model
        checked = checked_config(given, alone=lone_branch(cfg))
        header = unread_header(cfg.model) if lone_branch(cfg) is None else None
        return checked, list(target_problems(checked.model, header, None)) if header else []
    except ValueError as error:
        return None, listed_faults(error)


def _target_problems(cfg: DictConfig) -> Iterator[str]:
    """Find classes that NeMo does not build, each with its key: NeMo's own error names the class alone."""
    for name in ("preprocessor", "spec_augment", "encoder", "student", "decoder", "joint", "optim"):
        block = _value(cfg, f"model.{name}")
        if not OmegaConf.is_dict(block):
            continue
        try:
            plain = OmegaConf.to_container(block, resolve=True, throw_on_missing=False)
        except OmegaConfBaseException:
            continue  # reported by the model's own checks
        for path, target in targets_in(plain, f"model.{name}"):
            if not is_allowed_target(target):
                yield f"{path} is {target!r}, wanted a class of NeMo's or of nemo_codert.modules"
    for key in ("trainer.strategy", "trainer.callbacks"):
        block = _value(cfg, key)
        if not OmegaConf.is_config(block):
            continue
        for path, target in targets_in(OmegaConf.to_container(block, throw_on_missing=False), key):
            if not is_allowed_target(target):
                yield f"{path} is {target!r}, wanted a class of Lightning's or of NeMo's"


def _prefix(name: str) -> str | None:
    """Return the prefix of a validation set in NeMo's logs, None for a name that a model cannot be built with."""
    try:
        return parse_dataset_as_name(name)
    except ValueError:
        return None


def check_validations(cfg: DictConfig, utterances: int | None = None, processes: int = 1) -> str | None:
    """Check that a validation can come, and warn where none can.

    Args:
        cfg: root config that has passed the other checks.
        utterances: usable ones in the training manifests, None if unknown. processes: that share them.

    Returns:
        The reason why nothing is validated, None where something is.

    Raises:
        ValueError: Lightning would refuse the interval when training begins.
    """
    batches = epoch_batches(cfg, utterances, processes)
    reason = never_validated(cfg, batches)
    if reason and not _value(cfg, "model.train_ds.use_lhotse") and is_past_epoch(cfg, batches):
        raise ValueError(refusal([reason]))
    if reason and (utterances is None or not never_validated(cfg, epoch_batches(cfg))):  # else warned of already
        logger.warning("%s: nothing is validated and no best checkpoint is chosen.", reason)
    return reason


def check_epochs(cfg: DictConfig, data: Sequence[DataRecord], processes: int) -> None:
    """Check the times of validation again, by the number of utterances that can be trained on.

    Args:
        cfg: root config that `check_run` has passed.
        data: the training manifests after screening.
        processes: that share the utterances.

    Raises:
        ValueError: see `check_validations`.
    """
    counts = [record.utterances for record in data]
    if counts and None not in counts:
        check_validations(cfg, sum(counts), processes)


def _test_problems(cfg: DictConfig) -> Iterator[str]:
    key = "model.test_ds.manifest_filepath"
    try:
        paths = test_manifests(cfg)
    except ValueError as error:
        yield str(error)
        return
    stems = [Path(path).stem for path in paths]
    for stem in sorted({stem for stem in stems if stems.count(stem) > 1}):
        yield f"{key} names {stems.count(stem)} files {stem!r}: predictions are kept by that name. Rename one"
    try:
        reading = test_reading(cfg)
    except ValueError as error:
        yield str(error).removesuffix(".")
        return
    front_end, encoders = _value(cfg, "model.preprocessor"), _tested_encoders(cfg)
    device = "cuda" if is_on_cuda(sub_block(cfg, "trainer")) else "cpu"
    for path in paths:
        try:  # a fault found after the training would come too late
            entries = usable_entries(path, **reading)
            for encoder in encoders if OmegaConf.is_dict(front_end) else ():
                refuse_without_memory(encoder, front_end, entries, test_batch_size(cfg), device)
        except ValueError as error:
            yield f"{key}: {error}"


def _tested_encoders(cfg: DictConfig) -> list[DictConfig]:
    """Return the block of the encoder of each branch that transcribes the test sets."""
    keys = {"student": "model.student.encoder", "teacher": "model.encoder"}
    if alone := lone_branch(cfg):
        keys = {alone: keys[alone]}
    elif not teacher_transcribes(_value(cfg, "model.codert") or OmegaConf.create()):
        del keys["teacher"]
    return [block for key in keys.values() if OmegaConf.is_dict(block := _value(cfg, key))]


def test_batch_size(cfg: DictConfig) -> int:
    """Return the number of utterances of the test sets that are transcribed at a time."""
    return _value(cfg, "model.test_ds.batch_size") or TEST_BATCH_SIZE


def test_reading(cfg: DictConfig) -> dict[str, Any]:
    """Return how the manifests of model.test_ds are read: the keywords of `usable_entries`.

    Raises:
        ValueError: a channel_selector that is neither a number nor a key of the lines.
    """
    block = cfg.model.test_ds if OmegaConf.is_dict(_value(cfg, "model.test_ds")) else {}
    return {"loader": tools_loader(block, "model.test_ds"), "text_field": block.get("text_field") or "text"}


def plain_sources(block: DictConfig) -> list[DictConfig]:
    """Return the parts of a data section that name plain manifests: itself, or sources of lhotse's `input_cfg`."""
    return [source for source, _ in _plain(block, "text")]


def text_fields(block: DictConfig) -> list[str]:
    """Return the key of the transcript for each of `plain_sources`: that of lhotse's `text_field`."""
    return [text_field for _, text_field in _plain(block, "text")]


def _plain(block: DictConfig, text_field: str) -> Iterator[tuple[DictConfig, str]]:
    """Yield the plain sources of a section with their text fields; a source inherits that of the part around it."""
    text_field = _value(block, "text_field") or text_field
    inner = _value(block, "input_cfg")
    if not OmegaConf.is_list(inner):
        if _value(block, "manifest_filepath") is not None and not is_tarred(block):
            yield block, text_field
        return
    for source in inner:
        kind = source.get("type") if OmegaConf.is_dict(source) else None
        if kind == "group" and OmegaConf.is_list(_value(source, "input_cfg")):
            yield from _plain(source, text_field)
        elif kind == "nemo" and source.get("manifest_filepath"):
            yield source, source.get("text_field") or text_field
