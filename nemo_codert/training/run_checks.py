"""Checks of a run's config, made before anything is built or written.

`check_run` is the one entry. It adds the files that a run reads to the model's own checks (`config.checked`).
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS
from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS
from nemo.utils.model_utils import parse_dataset_as_name
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_codert.config.checked import CheckedConfig, checked_config
from nemo_codert.config.criteria import is_named, named, teacher_transcribes, trains_without_text
from nemo_codert.config.data_sections import is_stream, is_tarred
from nemo_codert.config.derived import lone_branch
from nemo_codert.config.stock_checks import STOCK_JOINT
from nemo_codert.config.trainer_keys import manager_problems, trainer_problems
from nemo_codert.config.validation_times import epoch_batches, is_past_epoch, never_validated
from nemo_codert.config.values import is_count, is_number
from nemo_codert.config.values import value_at as _value
from nemo_codert.data.manifest import parse_manifest, read_manifest
from nemo_codert.data.screening import Loader, tools_loader
from nemo_codert.evaluation.transcribe import usable_entries
from nemo_codert.export.training_record import DataRecord
from nemo_codert.models.stored_targets import target_problems, unread_header, with_stand_in
from nemo_codert.nemo_compat import is_allowed_target, targets_in
from nemo_codert.training.run_folders import unfinished_problems
from nemo_codert.training.trainer import callback_problems, monitors

logger = logging.getLogger(__name__)

# What training and validation log, and so what a best checkpoint can be chosen by.
LOGGED = ("global_step", "train_loss", "val_loss", "val_wer", "val_wer_num", "val_wer_denom")
LOGGED_ALONE = ("learning_rate", "training_batch_wer")
LOGGED_OF_PAIRS = (
    "val_wer_teacher",
    "val_wer_teacher_num",
    "val_wer_teacher_denom",
)  # logged beside the terms of the loss
PREPROCESSOR_SAMPLE_RATE = 16000  # Hz, NeMo's default
LENGTH_KEYS = (
    *("perturb_speed", "truncate_duration", "cut_into_windows_duration", "concatenate_samples", "pad_min_duration"),
    *("trim_silence", "augmentor.speed", "augmentor.time_stretch"),
)  # keys of the loaders that change the length of the audio
RESUME_KEYS = ("every_n_steps", "replay_streams", "unfinished")
OTHER_SOURCES = ("input_cfg", "cuts_path", "shar_path")  # keys of lhotse in place of a manifest


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
    checks = [_run_problems, _value_problems, _target_problems, _optimiser_problems]
    checks += [trainer_problems, manager_problems, callback_problems]
    checks += [partial(_data_problems, checked=checked), _test_problems, _resume_problems]
    checks += [unfinished_problems, _stream_problems, _tokenizer_problems]
    problems += [problem for check in checks for problem in check(cfg)]
    problems += _monitor_problems(cfg, checked)
    if problems:
        raise ValueError("This run cannot start:\n  - " + "\n  - ".join(problems))
    check_validations(cfg)
    return checked


def _checked_model(cfg: DictConfig) -> tuple[CheckedConfig | None, list[str]]:
    """Return the checked model section, or None and its faults."""
    if not OmegaConf.is_dict(cfg.get("model")):
        return None, ["model is missing: a config needs the model section of a stock RNN-T plus student and codert"]
    try:
        given = with_stand_in(cfg.model) if lone_branch(cfg) is None else cfg.model
        checked = checked_config(given, alone=lone_branch(cfg))
        header = unread_header(cfg.model) if lone_branch(cfg) is None else None
        return checked, list(target_problems(checked.model, header, None)) if header else []
    except ValueError as error:
        return None, str(error).split("\n  - ")[1:] or [str(error)]


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


def _run_problems(cfg: DictConfig) -> Iterator[str]:
    codert = _value(cfg, "model.codert")
    train, codert = cfg.get("train"), codert if OmegaConf.is_dict(codert) else {}
    if train not in ("pair", "student", "teacher"):
        yield f"train is {train!r}, wanted pair, student or teacher (set by strategy=...)"
    if train in ("student", "teacher") and OmegaConf.is_dict(codert.get("distillation")):
        yield from _distillation_alone(codert.distillation, train)
    if train == "pair" and codert.get("teacher") == "frozen" and not codert.get("teacher_checkpoint"):
        yield "model.codert.teacher is frozen but model.codert.teacher_checkpoint is null: give a trained RNN-T"
    unread = {"student": "model.codert.teacher_checkpoint", "teacher": "model.student.init_from"}.get(train)
    if unread and (name := _value(cfg, unread)):
        yield (
            f"{unread} is {name!r} but train is {train}: nothing would read it. Set it to null or choose a strategy "
            "that trains a pair"
        )
    for key in ("model.codert.teacher_checkpoint", "model.student.init_from"):
        name = _value(cfg, key)
        if isinstance(name, str) and name.endswith(".nemo") and not os.path.isfile(name):
            yield f"{key} is {name!r}: no such file. Give the path of a .nemo file or a pretrained name"
    own = _value(cfg, "model.student.joint._target_") if train == "student" else None
    joint = own or _value(cfg, "model.joint._target_")
    if train in ("student", "teacher") and joint == STOCK_JOINT and codert.get("rnnt_loss") == "exact":
        yield (
            f"model.codert.rnnt_loss is exact but train is {train} with the stock joint: NeMo's own class trains "
            "with NeMo's own loss. Set it to auto or nemo, or take the additive joint"
        )
    manager = cfg.get("exp_manager")
    if not OmegaConf.is_dict(manager) or OmegaConf.is_missing(manager, "exp_dir") or not manager.get("exp_dir"):
        yield "exp_manager.exp_dir is missing: give the folder for this run"
    else:
        yield from _folder_problems(Path(str(manager.exp_dir)))
    if _value(cfg, "model.skip_nan_grad"):
        yield (
            "model.skip_nan_grad is true: NeMo would set a gradient that is not finite to zero and let the optimizer "
            "step all the same. Leave it out and set model.codert.non_finite.action to skip"
        )
    for key in cfg:
        if str(key).startswith("init_from_"):
            yield f"{key} is not supported: use model.codert.teacher_checkpoint and model.student.init_from"


def _folder_problems(folder: Path) -> Iterator[str]:
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not there.is_dir():
        yield f"exp_manager.exp_dir is {str(folder)!r} but {there} is a file: give a folder, it is made if need be"


def _distillation_alone(distillation: DictConfig, train: str) -> Iterator[str]:
    """Yield the terms of the distillation that a branch trained alone cannot have."""
    for name, term in named(distillation).items():
        weight = term.get("weight", 1) if OmegaConf.is_dict(term) or isinstance(term, dict) else 0
        if weight:
            key = f"{name}.weight" if is_named(distillation) else "weight"
            yield (
                f"model.codert.distillation.{key} is {weight} but train is {train}: there is no pair to distil in. "
                "Set the weight to 0 or choose a strategy with a teacher"
            )


def _value_problems(cfg: DictConfig) -> Iterator[str]:
    """Find numbers that only a loader or the front end would refuse."""
    for section in ("train_ds", "validation_ds", "test_ds"):
        size = _value(cfg, f"model.{section}.batch_size")
        if size is not None and not is_count(size):
            yield f"model.{section}.batch_size is {size!r}, wanted a number of utterances, 1 or more"
    seed = _value(cfg, "seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        yield f"seed is {seed!r}, wanted a whole number from 0 to {2**32 - 1}"
    for key in ("model.preprocessor.window_size", "model.preprocessor.window_stride"):
        seconds = _value(cfg, key, 0.01)
        if not (is_number(seconds) and 0 < seconds < math.inf):
            yield f"{key} is {seconds!r}, wanted seconds above 0"
    for name in ("model.encoder", "model.student.encoder"):
        heads, width = _value(cfg, f"{name}.n_heads", 1), _value(cfg, f"{name}.d_model", 0)
        if not is_count(heads) or (is_count(width) and width % heads):
            yield f"{name}.n_heads is {heads!r}, wanted a divisor of its d_model ({width!r})"
    for key in ("model.decoding.greedy.max_symbols", "model.decoding.greedy.max_symbols_per_step"):
        if _value(cfg, key, 1) is None:
            yield f"{key} is null: an untrained model's decoding would not end. Give a number, e.g. 10"
    yield from _sample_rate_problems(cfg)
    yield from _perturbation_problems(cfg)


def _perturbation_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield settings that change the audio whose targets are stored."""
    if _value(cfg, "model.codert.teacher") != "cached" or lone_branch(cfg):
        return
    if (channel := _value(cfg, "model.train_ds.channel_selector")) not in (None, "average", "channel"):
        yield (
            f"model.train_ds.channel_selector is {channel!r} but model.codert.teacher is cached: stored targets are "
            "of the channel that a line states as channel, else of all channels mixed. Set it to channel, or leave it "
            "out"
        )
    for key in LENGTH_KEYS:
        if value := _value(cfg, f"model.train_ds.{key}"):
            yield (
                f"model.train_ds.{key} is {value} but model.codert.teacher is cached: stored targets belong to the "
                "audio as it is. Leave the key out"
            )


def _sample_rate_problems(cfg: DictConfig) -> Iterator[str]:
    rate = _value(cfg, "model.sample_rate")
    if not is_count(rate):
        yield f"model.sample_rate is {rate!r}, wanted the Hz that all audio is brought to, 16000 as a rule"
        return
    defaults = {"preprocessor": PREPROCESSOR_SAMPLE_RATE, "train_ds": rate, "validation_ds": rate}
    for section, default in defaults.items():
        own = _value(cfg, f"model.{section}.sample_rate", default)
        if own != rate:
            yield f"model.{section}.sample_rate is {own!r} but model.sample_rate is {rate}: make them equal"


def _optimiser_problems(cfg: DictConfig) -> Iterator[str]:
    optim, sched = _value(cfg, "model.optim"), _value(cfg, "model.optim.sched")
    if not OmegaConf.is_dict(optim):
        yield f"model.optim is {optim!r}, wanted a block with name, lr and, if wanted, sched"
        return
    if sched is not None and not OmegaConf.is_dict(sched):
        yield f"model.optim.sched is {sched!r}, wanted a block with name and warmup_steps, or null"
    for path, known in (("model.optim", AVAILABLE_OPTIMIZERS), ("model.optim.sched", AVAILABLE_SCHEDULERS)):
        name = _value(cfg, f"{path}.name")
        if name is not None and _value(cfg, f"{path}._target_") is None and name not in known:
            yield f"{path}.name is {name!r}, wanted one of {', '.join(known)}"
    rate = _value(cfg, "model.optim.lr")
    if rate is not None and not (is_number(rate) and 0 < rate < math.inf):
        yield f"model.optim.lr is {rate!r}, wanted a learning rate above 0"


def _monitor_problems(cfg: DictConfig, checked: CheckedConfig | None) -> Iterator[str]:
    """Check the monitored names: one that is never logged would end the run after its first validation."""
    if cfg.train == "pair" and checked is None:
        return  # the terms of the loss are not known
    known = _logged_names(cfg, checked)
    for key, monitor in _monitored(cfg):
        if str(monitor) not in known:
            yield f"{key} is {str(monitor)!r}, which nothing is logged by, wanted one of {', '.join(known)}"
    key = "model.optim.sched.monitor"
    monitor, at_steps = _value(cfg, key, "loss"), [name for name in known if name.startswith("train_")]
    if _value(cfg, "model.optim.sched.name") == "ReduceLROnPlateau" and monitor not in at_steps:
        yield f"{key} is {monitor!r}, but the schedule reads it at every step: wanted one of {', '.join(at_steps)}"


def _monitored(cfg: DictConfig) -> Iterator[tuple[str, object]]:
    """Yield key and value of each metric by which something is decided."""
    if _value(cfg, "exp_manager.create_checkpoint_callback", True):
        key = "exp_manager.checkpoint_callback_params.monitor"
        yield key, _value(cfg, key, "val_loss")
    if _value(cfg, "exp_manager.create_early_stopping_callback", False):
        key = "exp_manager.early_stopping_callback_params.monitor"
        yield key, _value(cfg, key, "val_loss")
    yield from monitors(cfg)


def _logged_names(cfg: DictConfig, checked: CheckedConfig | None) -> list[str]:
    """Return the names that training and validation log; NeMo repeats those of several validation sets by name."""
    if cfg.train != "pair":
        known = [*LOGGED, *LOGGED_ALONE]
    else:
        known = [*LOGGED, *(name for spec in checked.criteria for name in spec.log_names)]
        known += LOGGED_OF_PAIRS if teacher_transcribes(checked.codert) else ()
    if _value(cfg, "model.compute_eval_loss", True) is False:
        known.remove("val_loss")
    prefixes = [prefix for name in validation_names(cfg) or () if (prefix := _prefix(name))]
    of_validation = [name for name in known if name.startswith("val_")]
    return [*known, *(prefix + name for prefix in prefixes for name in of_validation)]


def _prefix(name: str) -> str | None:
    """Return the prefix of a validation set in NeMo's logs, None for a name that a model cannot be built with."""
    try:
        return parse_dataset_as_name(name)
    except ValueError:
        return None


def validation_names(cfg: DictConfig) -> list[str] | None:
    """Return the names of several validation sets, by which NeMo logs each besides the first: those of the files.

    Args:
        cfg: root config, whose manifests are those that the user named.

    Returns:
        One for each manifest, as `model.validation_ds.name` lists them where it does; None for a single set.

    Example:
        >>> block = {"manifest_filepath": ["data/dev.json", "data/dev_other.json"]}
        >>> validation_names(OmegaConf.create({"model": {"validation_ds": block}}))
        ['dev', 'dev_other']
    """
    block = _value(cfg, "model.validation_ds")
    given = _value(block, "manifest_filepath") if OmegaConf.is_dict(block) else None
    if not OmegaConf.is_list(given) and not isinstance(given, str):
        return None
    paths = manifest_paths(given)
    if len(paths) < 2 or is_tarred(block) or not (OmegaConf.is_list(given) or _value(block, "use_lhotse")):
        return None
    own = _value(block, "name")
    return [str(name) for name in own] if OmegaConf.is_list(own) and own else [Path(path).stem for path in paths]


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
        raise ValueError(f"This run cannot start:\n  - {reason}")
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


def _resume_problems(cfg: DictConfig) -> Iterator[str]:
    block = _value(cfg, "resume", {})
    if not OmegaConf.is_dict(block):
        return
    for key in block:
        if key not in RESUME_KEYS:
            yield f"resume.{key} is not a key of resume, which has {', '.join(RESUME_KEYS)}"
    every, replay = block.get("every_n_steps", 0), block.get("replay_streams", True)
    if every != 0 and not is_count(every):
        yield f"resume.every_n_steps is {every!r}, wanted a number of optimizer steps, or 0 for none"
    if not isinstance(replay, bool):
        yield f"resume.replay_streams is {replay!r}, wanted true or false"
    manager = "exp_manager.create_checkpoint_callback", "exp_manager.checkpoint_callback_params.save_last"
    for key in manager:
        if every and not _value(cfg, key, True):
            yield f"resume.every_n_steps is {every!r} but {key} is false: nothing would be saved. Set it to true"


def _stream_problems(cfg: DictConfig) -> Iterator[str]:
    """Check that processes differ: lhotse gives each the whole stream of shards, with one seed the same batches."""
    devices, nodes = _value(cfg, "trainer.devices", 1), _value(cfg, "trainer.num_nodes", 1)
    block = _value(cfg, "model.train_ds")
    if not OmegaConf.is_dict(block) or not _value(block, "use_lhotse") or devices in (1, "1", [0]) and nodes == 1:
        return
    seed, workers = _value(block, "shard_seed", "trng"), _value(block, "num_workers", 0)
    if is_stream(block) and (isinstance(seed, int) or seed == "randomized" and not workers):
        yield (
            f"model.train_ds.shard_seed is {seed!r} with num_workers {workers} and trainer.devices {devices}: every "
            "process would train on the same utterances of the shards. Set shard_seed to randomized and num_workers "
            "to 1 or more"
        )


def _data_problems(cfg: DictConfig, checked: CheckedConfig | None) -> Iterator[str]:
    unlabelled = checked is None or trains_without_text(checked.criteria)
    yield from _manifest_problems(cfg, "model.train_ds.manifest_filepath", unlabelled)
    yield from _manifest_problems(cfg, "model.validation_ds.manifest_filepath", False)


def _manifest_problems(cfg: DictConfig, key: str, unlabelled: bool) -> Iterator[str]:
    section, name = key.rsplit(".", 1)
    block = _value(cfg, section)
    if not OmegaConf.is_dict(block):
        yield f"{section} is missing: give it a manifest_filepath"
        return
    yield from _reading_problems(block, section)
    absent = name not in block or block[name] is None  # a value of ??? counts as absent
    if absent and any(_value(block, source) for source in OTHER_SOURCES):
        return
    if absent:
        yield f"{key} is missing: codert prepare makes manifests"
    elif is_tarred(block):
        return  # its manifests may be patterns
    elif not isinstance(block[name], str) and not OmegaConf.is_list(block[name]):
        yield f"{key} is {block[name]!r}, wanted a path or a list of paths"
    else:
        how = {"unlabelled": unlabelled, "text_field": _value(block, "text_field") or "text"}
        for path in manifest_paths(block[name]):
            try:
                # Lines that cannot be read are dropped or refused by the screening, unless there are no others.
                entries, _ = parse_manifest(path, **how)
                if _value(cfg, "model.codert.bad_utterances", "drop") != "drop" or not entries:
                    read_manifest(path, **how)
            except ValueError as error:
                yield f"{key}: {error}"


def _reading_problems(block: DictConfig, section: str) -> Iterator[str]:
    """Find settings of a loader that it would not read, or fail at in the middle of a training."""
    try:
        Loader.of(block, section)
    except OmegaConfBaseException:
        return  # reported by the model's own checks
    except ValueError as error:
        yield str(error).removesuffix(".")
    field = _value(block, "text_field")
    if field not in (None, "text") and not _value(block, "use_lhotse"):
        yield f"{section}.text_field is {field!r} but use_lhotse is false, whose loader reads text: set it to true"


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
    for path in paths:
        try:
            usable_entries(path, **reading)  # a fault found after the training would come too late
        except ValueError as error:
            yield f"{key}: {error}"


def test_reading(cfg: DictConfig) -> dict[str, Any]:
    """Return how the manifests of model.test_ds are read: the keywords of `usable_entries`.

    Raises:
        ValueError: a channel_selector that is neither a number nor a key of the lines.
    """
    block = cfg.model.test_ds if OmegaConf.is_dict(_value(cfg, "model.test_ds")) else {}
    return {"loader": tools_loader(block, "model.test_ds"), "text_field": block.get("text_field") or "text"}


def test_manifests(cfg: DictConfig) -> list[str]:
    """Return the manifests to transcribe after training; none without model.test_ds or for tarred data.

    Raises:
        ValueError: neither a path nor a list of paths.
    """
    block = _value(cfg, "model.test_ds")
    if not OmegaConf.is_dict(block) or is_tarred(block) or "manifest_filepath" not in block:
        return []
    value = block.manifest_filepath
    if value is None:
        return []
    if not isinstance(value, str) and not OmegaConf.is_list(value):
        raise ValueError(f"model.test_ds.manifest_filepath is {value!r}, wanted a path or a list of paths")
    return manifest_paths(value)


def _tokenizer_problems(cfg: DictConfig) -> Iterator[str]:
    folder = _value(cfg, "model.tokenizer.dir")
    if not folder:
        yield "model.tokenizer.dir is missing: codert prepare makes a tokenizer"
        return
    for name in ("tokenizer.model", "vocab.txt"):
        if not os.path.isfile(Path(str(folder)) / name):
            yield f"model.tokenizer.dir is {folder!r}: no {name} in there. codert prepare makes one"
            return
    try:
        sentencepiece.SentencePieceProcessor(model_file=str(Path(str(folder)) / "tokenizer.model"))
    except (OSError, RuntimeError) as error:
        yield (
            f"model.tokenizer.dir is {folder!r}: its tokenizer.model is not a SentencePiece model ({error}). "
            "codert prepare makes one"
        )


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


def manifest_paths(value: object) -> list[str]:
    """Return the paths of a manifest setting: one path, several separated by commas, or a list, as in NeMo."""
    if not isinstance(value, str):
        return [str(path) for path in value]
    return [value] if os.path.isfile(value) else [path.strip() for path in value.split(",")]
