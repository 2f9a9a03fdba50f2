"""Checks of a run's config that need neither PyTorch nor NeMo: what they refuse is refused in a second.

`early_problems` is the one entry; `run_checks.check_run` makes the same checks again, and all others.
"""

import copy
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import sentencepiece
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, UnsupportedInterpolationType

from nemo_codert.config.checked import CheckedConfig, checked_config
from nemo_codert.config.criteria import is_named, named, trains_without_text
from nemo_codert.config.data_sections import is_stream, is_tarred, manifest_paths
from nemo_codert.config.derived import lone_branch
from nemo_codert.config.stock_checks import STOCK_JOINT
from nemo_codert.config.trainer_keys import callback_name_problems, manager_problems, trainer_problems
from nemo_codert.config.values import is_count, is_number
from nemo_codert.config.values import value_at as _value
from nemo_codert.data.manifest import parse_manifest, read_manifest
from nemo_codert.data.screening import Loader
from nemo_codert.data.target_header import TargetFault, read_header
from nemo_codert.training.logged_names import monitor_problems, validation_names
from nemo_codert.training.run_folders import unfinished_problems

PREPROCESSOR_SAMPLE_RATE = 16000  # Hz, NeMo's default
LENGTH_KEYS = (
    *("perturb_speed", "truncate_duration", "cut_into_windows_duration", "concatenate_samples", "pad_min_duration"),
    *("trim_silence", "augmentor.speed", "augmentor.time_stretch"),
)  # keys of the loaders that change the length of the audio
RESUME_KEYS = ("every_n_steps", "replay_streams", "unfinished")
NO_MODEL = "model is missing: a config needs the model section of a stock RNN-T plus student and codert"
LOGGERS = ("wandb", "mlflow", "clearml", "neptune")  # packages that exp_manager logs to
QUICKLY_READ = 2**20  # bytes of a manifest that is read before NeMo is imported; of a larger one the start of the run
# Names that NeMo 3.0 has, the last four with Apex.
OPTIMISERS = (
    *("sgd", "adam", "adamw", "adadelta", "adamax", "adagrad", "rmsprop", "rprop", "novograd", "adafactor", "adan"),
    *("lamb", "fused_adam", "distributed_fused_adam", "megatron_fused_adam"),
)
SCHEDULES = (
    *("WarmupPolicy", "WarmupHoldPolicy", "SquareAnnealing", "CosineAnnealing", "NoamAnnealing", "NoamHoldAnnealing"),
    *("WarmupHoldAnnealOneMinusSquareRoot", "WarmupHoldAnnealLinear", "WarmupAnnealing", "InverseSquareRootAnnealing"),
    *("T5InverseSquareRootAnnealing", "SquareRootAnnealing", "PolynomialDecayAnnealing"),
    *("PolynomialHoldDecayAnnealing", "StepLR", "ExponentialLR", "ReduceLROnPlateau", "CyclicLR"),
)
NEMO_FOLDER = "nemo_experiments"  # folder of all runs where exp_manager.exp_dir is null, in the working directory
OLDER_LIGHTNING = "pytorch_lightning."  # Lightning's package before it was lightning.pytorch
OTHER_SOURCES = ("input_cfg", "cuts_path", "shar_path")  # keys of lhotse in place of a manifest


def with_run_defaults(cfg: DictConfig) -> DictConfig:
    """Return a copy of a root config with the keys that a stock NeMo config lacks.

    Args:
        cfg: root config. It is not changed.

    Returns:
        A copy with `train`, `seed` and, where no metric is named by which the best checkpoint is chosen, `val_wer`.

    Example:
        >>> cfg = with_run_defaults(OmegaConf.create({"exp_manager": {"exp_dir": "runs"}}))
        >>> cfg.train, cfg.exp_manager.checkpoint_callback_params
        ('pair', {'monitor': 'val_wer', 'mode': 'min'})
    """
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        cfg.train, cfg.seed = cfg.get("train", "pair"), cfg.get("seed", 0)
        _set_recipe_defaults(cfg)
        params = "exp_manager.checkpoint_callback_params"
        if OmegaConf.is_dict(cfg.get("exp_manager")) and _value(cfg, f"{params}.monitor") is None:
            OmegaConf.update(cfg, params, {"monitor": "val_wer", "mode": "min"}, merge=True)
    return cfg


def _set_recipe_defaults(cfg: DictConfig) -> None:
    """Give null and older values that NeMo's recipes carry the meaning that they have in NeMo."""
    manager, trainer = cfg.get("exp_manager"), cfg.get("trainer")
    if OmegaConf.is_dict(manager) and "exp_dir" in manager and not manager.get("explicit_log_dir"):
        manager.exp_dir = NEMO_FOLDER if manager.exp_dir is None else manager.exp_dir
    if not OmegaConf.is_dict(trainer):
        return
    if "max_steps" in trainer and trainer.max_steps is None:
        trainer.max_steps = -1
    target = _value(trainer, "strategy._target_")
    if isinstance(target, str) and target.startswith(OLDER_LIGHTNING):
        trainer.strategy._target_ = f"lightning.pytorch.{target.removeprefix(OLDER_LIGHTNING)}"


def early_problems(cfg: DictConfig) -> list[str]:
    """Return the faults of a run's config that can be found before PyTorch and NeMo are imported.

    Args:
        cfg: root config, see `with_run_defaults`.

    Returns:
        One message a fault. None where the config has interpolations that only NeMo resolves.
    """
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except UnsupportedInterpolationType:
        return []
    except OmegaConfBaseException:
        pass  # reported below
    checked, problems = _early_model(cfg)
    checks = [*CHECKS, callback_name_problems, _test_files, _installed_problems]
    problems += data_problems(cfg, checked, most_bytes=QUICKLY_READ)
    problems += [problem for check in checks for problem in check(cfg)]
    problems += optimiser_problems(cfg, OPTIMISERS, SCHEDULES)
    if not validation_names(cfg):  # the prefixes of several are NeMo's
        problems += monitor_problems(cfg, checked, lambda name: None)
    return problems


def _early_model(cfg: DictConfig) -> tuple[CheckedConfig | None, list[str]]:
    """Return the checked model section and its faults; neither for a teacher that stored targets describe."""
    if not OmegaConf.is_dict(cfg.get("model")):
        return None, [NO_MODEL]
    alone = lone_branch(cfg)
    if alone is None and _value(cfg, "model.codert.teacher") == "cached":
        folder = _value(cfg, "model.codert.teacher_cache")
        try:
            read_header(folder) if isinstance(folder, str) else None
        except TargetFault as error:
            return None, [f"model.codert.teacher_cache: {error}"]
        return None, []
    try:
        return checked_config(cfg.model, alone=alone, warns=False), []
    except ValueError as error:
        return None, listed_faults(error)


def listed_faults(error: ValueError) -> list[str]:
    """Return the faults that an error lists, or its message."""
    return str(error).split("\n  - ")[1:] or [str(error)]


def refusal(problems: Sequence[str]) -> str:
    """Return the message of a run that cannot start."""
    return "This run cannot start:\n  - " + "\n  - ".join(problems)


def _test_files(cfg: DictConfig) -> Iterator[str]:
    """Yield test manifests that are not there; the lines of the others are read later."""
    try:
        paths = test_manifests(cfg)
    except ValueError as error:
        yield str(error)
        return
    for path in paths:
        if not os.path.isfile(path):
            yield f"model.test_ds.manifest_filepath: {path}: no such file"


def _installed_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield loggers that are switched on and whose package is not installed."""
    for package in LOGGERS:
        key = f"exp_manager.create_{package}_logger"
        if _value(cfg, key) and find_spec(package) is None:
            yield f"{key} is true but {package} is not installed: pip install {package}, or set it to false"


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


def optimiser_problems(cfg: DictConfig, optimisers: Iterable[str], schedules: Iterable[str]) -> Iterator[str]:
    """Find an optimizer, a schedule or a learning rate that NeMo would refuse once the model is built.

    Args:
        cfg: root config. optimisers, schedules: the names that there are.
    """
    optim, sched = _value(cfg, "model.optim"), _value(cfg, "model.optim.sched")
    if not OmegaConf.is_dict(optim):
        yield f"model.optim is {optim!r}, wanted a block with name, lr and, if wanted, sched"
        return
    if sched is not None and not OmegaConf.is_dict(sched):
        yield f"model.optim.sched is {sched!r}, wanted a block with name and warmup_steps, or null"
    for path, known in (("model.optim", optimisers), ("model.optim.sched", schedules)):
        name = _value(cfg, f"{path}.name")
        if name is not None and _value(cfg, f"{path}._target_") is None and name not in known:
            yield f"{path}.name is {name!r}, wanted one of {', '.join(known)}"
    rate = _value(cfg, "model.optim.lr")
    if rate is not None and not (is_number(rate) and 0 < rate < math.inf):
        yield f"model.optim.lr is {rate!r}, wanted a learning rate above 0"


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


def data_problems(cfg: DictConfig, checked: CheckedConfig | None, most_bytes: float = math.inf) -> Iterator[str]:
    """Find manifests that are missing or cannot be used.

    Args:
        cfg: root config. checked: its model section, None if it is not known.
        most_bytes: of larger manifests only the place is looked at.
    """
    unlabelled = checked is None or trains_without_text(checked.criteria)
    yield from _manifest_problems(cfg, "model.train_ds.manifest_filepath", unlabelled, most_bytes)
    yield from _manifest_problems(cfg, "model.validation_ds.manifest_filepath", False, most_bytes)


def _manifest_problems(cfg: DictConfig, key: str, unlabelled: bool, most_bytes: float) -> Iterator[str]:
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
            if os.path.isfile(path) and os.path.getsize(path) > most_bytes:
                continue
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


# Checks of a root config, in the order in which their faults are listed.
CHECKS = (
    *(_run_problems, _value_problems, trainer_problems, manager_problems, _resume_problems),
    *(unfinished_problems, _stream_problems, _tokenizer_problems),
)
