"""Checks of `trainer` and `exp_manager`: every argument of Lightning's Trainer, and what a run does with it.

A key that a run cannot honour is refused here by its name, before anything is built. May import omegaconf only.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.data_sections import is_bucketed, is_stream
from nemo_codert.config.nearest import nearest
from nemo_codert.config.values import is_count, is_number, value_at

QUICK_LOOK = "trainer.max_steps=2 trainer.val_check_interval=2"


def _is_off(value: object) -> bool:
    return value is None or value is False or (is_number(value) and value == 0)


def _is_switch(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _is_limit(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and 0.0 <= value <= 1.0)


def _is_block(value: object) -> bool:
    return OmegaConf.is_dict(value) and isinstance(value.get("_target_"), str)


def _is_blocks(value: object) -> bool:
    return value is None or (OmegaConf.is_list(value) and all(_is_block(item) for item in value))


def _is_anything(value: object) -> bool:
    return True


SWITCH = (_is_switch, "true or false")
COUNT = (_is_whole, "a whole number, 0 or above, or null")
LIMIT = (_is_limit, "a number of batches, or a share of them up to 1.0")
OWN_CHECK = (_is_anything, "")  # checked below, or by Lightning when the trainer is built
# Argument of Lightning's Trainer -> whether a value is accepted, and the words for what is.
TRAINER_KEYS: dict[str, tuple[Callable[[object], bool], str]] = {
    "accelerator": (lambda value: isinstance(value, str), "a name: auto, cpu, gpu, ..."),
    "strategy": (
        lambda value: isinstance(value, str) or _is_block(value),
        "a name (auto, ddp, ...) or a block with the _target_ of a strategy of Lightning's",
    ),
    "devices": OWN_CHECK,
    "num_nodes": (is_count, "a number of machines, 1 or more"),
    "precision": OWN_CHECK,
    "logger": (
        _is_off,
        "false: exp_manager makes the loggers, see exp_manager.create_tensorboard_logger and create_wandb_logger",
    ),
    "callbacks": (_is_blocks, "a list of blocks, each with the _target_ of a callback of Lightning's or NeMo's"),
    "fast_dev_run": (
        _is_off,
        "false: NeMo's exp_manager makes no folder for such a run, and nothing would be written. codert check builds "
        f"and tries everything without training, {QUICK_LOOK} trains two steps",
    ),
    "max_epochs": OWN_CHECK,
    "min_epochs": COUNT,
    "max_steps": OWN_CHECK,
    "min_steps": COUNT,
    "max_time": OWN_CHECK,
    "limit_train_batches": (
        lambda value: _is_limit(value) and (value is None or value > 0),
        "a number of batches above 0, or a share of an epoch up to 1.0",
    ),
    "limit_val_batches": LIMIT,
    "limit_test_batches": OWN_CHECK,
    "limit_predict_batches": OWN_CHECK,
    "overfit_batches": (
        _is_off,
        "0: Lightning would take the order from the loader. Give trainer.limit_train_batches and the manifest of "
        "training for model.validation_ds.manifest_filepath",
    ),
    "val_check_interval": OWN_CHECK,
    "check_val_every_n_epoch": (
        lambda value: value is None or is_count(value),
        "a number of epochs, 1 or more, or null to count the batches of all epochs",
    ),
    "num_sanity_val_steps": (lambda value: value == -1 or _is_whole(value), "a number of batches, 0: none, -1: all"),
    "log_every_n_steps": COUNT,
    "enable_checkpointing": (_is_off, "false: exp_manager makes the checkpoints"),
    "enable_progress_bar": SWITCH,
    "enable_model_summary": SWITCH,
    "accumulate_grad_batches": OWN_CHECK,
    "gradient_clip_val": (
        lambda value: value is None or (is_number(value) and value >= 0),
        "a norm, 0 or above, or null",
    ),
    "gradient_clip_algorithm": (lambda value: value in (None, "norm", "value"), "norm or value"),
    "deterministic": (lambda value: _is_switch(value) or value == "warn", "true, false or warn"),
    "benchmark": SWITCH,
    "inference_mode": SWITCH,
    "use_distributed_sampler": SWITCH,
    "profiler": (lambda value: value is None or isinstance(value, str), "a name: simple, advanced, pytorch, or null"),
    "detect_anomaly": SWITCH,
    "barebones": (_is_off, "false: Lightning would log nothing, and no best checkpoint could be chosen"),
    "plugins": (
        lambda value: not value,
        "null: plugins are Python objects. The precision is trainer.precision, a strategy trainer.strategy",
    ),
    "sync_batchnorm": SWITCH,
    "reload_dataloaders_every_n_epochs": (_is_off, "0: the loader that is trained from keeps the place to resume at"),
    "default_root_dir": OWN_CHECK,
}

# Argument of earlier Trainers that recipes of NeMo's carry -> whether a value can be left out, and the words for it.
OLDER_KEYS: dict[str, tuple[Callable[[object], bool], str]] = {
    "resume_from_checkpoint": (_is_off, "null: --resume continues a run, model.student.init_from starts from weights"),
    "progress_bar_refresh_rate": (_is_whole, "a whole number, or trainer.enable_progress_bar"),
}

MANAGER_KEYS = (  # fields of NeMo's ExpManagerConfig
    "explicit_log_dir", "exp_dir", "name", "version", "use_datetime_version", "resume_if_exists", "resume_past_end",
    "resume_ignore_no_checkpoint", "resume_from_checkpoint", "create_tensorboard_logger", "summary_writer_kwargs",
    "create_wandb_logger", "wandb_logger_kwargs", "create_mlflow_logger", "mlflow_logger_kwargs",
    "create_dllogger_logger", "dllogger_logger_kwargs", "create_clearml_logger", "clearml_logger_kwargs",
    "create_neptune_logger", "neptune_logger_kwargs", "create_checkpoint_callback", "checkpoint_callback_params",
    "create_early_stopping_callback", "create_ipl_epoch_stopper_callback", "early_stopping_callback_params",
    "ipl_epoch_stopper_callback_params", "create_preemption_callback", "files_to_copy", "log_step_timing",
    "log_delta_step_timing", "step_timing_kwargs", "disable_validation_on_resume", "ema", "max_time_per_run",
    "seconds_to_sleep", "create_straggler_detection_callback", "straggler_detection_params",
    "create_fault_tolerance_callback", "fault_tolerance", "log_tflops_per_sec_per_gpu",
)  # fmt: skip

OTHER_WEIGHTS = (
    "the files of a run would hold other weights than those validated. strategy=ema trains an average of the student"
)
OWN_LOOP = "it trains before the run and changes its settings. Choose the values and leave it out"
# Callback, by the name of its class or of one that it inherits from -> why a run cannot have it.
REFUSED_CALLBACKS = {
    "StochasticWeightAveraging": OTHER_WEIGHTS,
    "WeightAveraging": OTHER_WEIGHTS,
    "ModelPruning": "the files of a run would hold masks beside the weights",
    "LearningRateFinder": OWN_LOOP,
    "BatchSizeFinder": OWN_LOOP,
    "BaseFinetuning": "it freezes a part by name. A frozen teacher is model.codert.teacher: frozen",
    "Checkpoint": "exp_manager makes the checkpoints, see exp_manager.checkpoint_callback_params and resume",
}
LIGHTNING_CALLBACKS = (  # names in lightning.pytorch.callbacks
    "BackboneFinetuning", "BaseFinetuning", "BasePredictionWriter", "BatchSizeFinder", "Callback", "Checkpoint",
    "DeviceStatsMonitor", "EarlyStopping", "GradientAccumulationScheduler", "LambdaCallback", "LearningRateFinder",
    "LearningRateMonitor", "ModelCheckpoint", "ModelPruning", "ModelSummary", "OnExceptionCheckpoint", "ProgressBar",
    "RichModelSummary", "RichProgressBar", "StochasticWeightAveraging", "SpikeDetection", "ThroughputMonitor", "Timer",
    "TQDMProgressBar",
)  # fmt: skip
CALLBACK_PACKAGES = ("lightning.pytorch.callbacks", "pytorch_lightning.callbacks")

# Switch of exp_manager -> the package that its logger needs.
LOGGER_PACKAGES = {
    "exp_manager.create_tensorboard_logger": "tensorboard",
    "exp_manager.create_wandb_logger": "wandb",
    "exp_manager.create_mlflow_logger": "mlflow",
    "exp_manager.create_clearml_logger": "clearml",
    "exp_manager.create_neptune_logger": "neptune",
}


def missing_logger(key: str) -> str | None:
    """Return the fault of a switch of a logger that is on, None where the logger's package is installed.

    Example:
        >>> missing_logger("exp_manager.create_tensorboard_logger")
    """
    package = LOGGER_PACKAGES[key]
    spec = find_spec(package)
    if spec is not None and spec.origin is not None:  # a folder of that name, as W&B leaves one, has no origin
        return None
    return f"{key} is true, but {package} is not installed: pip install {package}"


def trainer_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield the faults of a root config's `trainer`.

    Args:
        cfg: root config.

    Returns:
        One message a fault, with key, value and what is wanted instead.

    Example:
        >>> next(trainer_problems(OmegaConf.create({"trainer": {"max_step": 10}})))
        "trainer.max_step is not an argument of Lightning's Trainer, the nearest is max_steps: rename it"
    """
    block = cfg.get("trainer")
    if not OmegaConf.is_dict(block):
        yield "trainer is missing: give it max_steps, val_check_interval and what else Lightning's Trainer takes"
        return
    for key in block:
        if key not in TRAINER_KEYS and key not in OLDER_KEYS:
            yield (
                f"trainer.{key} is not an argument of Lightning's Trainer, the nearest is "
                f"{nearest(str(key), TRAINER_KEYS)}: rename it"
            )
            continue
        accepts, wanted = TRAINER_KEYS.get(key) or OLDER_KEYS[key]
        value = value_at(block, key)
        if not accepts(value):
            yield f"trainer.{key} is {value!r}, wanted {wanted}"
    yield from _length_problems(cfg)
    yield from _interval_problems(cfg)
    yield from _loader_problems(cfg)


def _length_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield faults of the keys by which a training ends."""
    steps, epochs = value_at(cfg, "trainer.max_steps", -1), value_at(cfg, "trainer.max_epochs")
    if steps != -1 and not is_count(steps):
        yield f"trainer.max_steps is {steps!r}, wanted a number of optimizer steps, 1 or more"
    if epochs not in (None, -1) and not is_count(epochs):
        yield f"trainer.max_epochs is {epochs!r}, wanted a number of epochs, 1 or more, or -1 for no limit"
    if steps == -1 and epochs == -1 and value_at(cfg, "trainer.max_time") is None:
        yield "trainer.max_steps is -1 and max_epochs -1: training would never end. Give trainer.max_steps"
    is_scheduled = value_at(cfg, "model.optim.sched") and not value_at(cfg, "model.optim.sched.max_steps")
    if steps == -1 and is_scheduled and value_at(cfg, "model.train_ds.use_lhotse"):
        yield (
            "trainer.max_steps is -1 but model.optim.sched needs it, and lhotse's loader cannot determine how many "
            "batches an epoch has: give trainer.max_steps, or set model.optim.sched to null"
        )
    batches = value_at(cfg, "trainer.accumulate_grad_batches", 1)
    if not is_count(batches):
        yield f"trainer.accumulate_grad_batches is {batches!r}, wanted batches per optimizer step, 1 or more"


def _interval_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield faults of the interval between validations."""
    interval = value_at(cfg, "trainer.val_check_interval", 1.0)
    counts_all_batches = value_at(cfg, "trainer.check_val_every_n_epoch", 1) is None
    if counts_all_batches and is_count(value_at(cfg, "trainer.max_epochs")):
        yield (
            f"trainer.max_epochs is {value_at(cfg, 'trainer.max_epochs')} but check_val_every_n_epoch is null: NeMo "
            "compares the two. Set check_val_every_n_epoch to 1 and val_check_interval to 1.0, or max_epochs to -1"
        )
    if counts_all_batches or value_at(cfg, "model.train_ds.use_lhotse"):  # the length of an epoch is unknown
        is_share, wanted = not counts_all_batches and interval in (None, 1.0), "a number of batches, 1 or more"
    else:
        is_share = interval is None or (isinstance(interval, float) and 0.0 < interval <= 1.0)
        wanted = "a number of batches, 1 or more, or a share of an epoch up to 1.0"
    if not is_count(interval) and not is_share:
        yield f"trainer.val_check_interval is {interval!r}, wanted {wanted}"


def _loader_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield keys of the trainer and of the data that contradict each other."""
    for section, limit in (("train_ds", "limit_train_batches"), ("validation_ds", "limit_val_batches")):
        block, batches = value_at(cfg, f"model.{section}"), value_at(cfg, f"trainer.{limit}")
        given = "missing" if batches is None else batches
        if not OmegaConf.is_dict(block) or not value_at(block, "use_lhotse"):
            continue
        is_finite = value_at(block, "force_finite") and section == "validation_ds"
        if is_stream(block) and not is_finite and not is_count(batches) and not _is_zero(batches):
            yield (
                f"trainer.{limit} is {given} but model.{section} is tarred or sharded, which lhotse repeats "
                f"without an end: give trainer.{limit} the number of batches of an epoch"
            )
        elif isinstance(batches, float) and batches not in (0.0, 1.0):
            yield (
                f"trainer.{limit} is {batches} but lhotse's loader has no length: give a number of batches, or 1.0 "
                "for all"
            )
        if is_bucketed(block) and value_at(block, "concurrent_bucketing", False):
            yield (
                f"model.{section}.concurrent_bucketing is true: lhotse's thread fills the buckets in an order that no "
                "seed repeats, and does not end with the training where the data do not fit into them, so that the "
                "process hangs. Set it to false or leave it out"
            )
    devices, nodes = value_at(cfg, "trainer.devices", 1), value_at(cfg, "trainer.num_nodes", 1)
    is_map = value_at(cfg, "model.train_ds.use_lhotse") and not is_stream(value_at(cfg, "model.train_ds"))
    several = (is_count(devices) and devices > 1) or (is_count(nodes) and nodes > 1)
    if is_map and several and value_at(cfg, "trainer.use_distributed_sampler", True):
        yield (
            "trainer.use_distributed_sampler is true but model.train_ds.use_lhotse too: lhotse gives each process its "
            "share. Set trainer.use_distributed_sampler to false"
        )


def _is_zero(value: object) -> bool:
    return is_number(value) and value == 0


def manager_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield loggers without their package, and keys of `exp_manager` by which the files would hold other weights than
    those validated.

    Args:
        cfg: root config.

    Returns:
        One message a fault.

    Example:
        >>> [fault] = manager_problems(OmegaConf.create({"exp_manager": {"ema": {"enable": True}}}))
        >>> fault[:30]
        'exp_manager.ema.enable is true'
    """
    for key in LOGGER_PACKAGES:
        if value_at(cfg, key) is True and (fault := missing_logger(key)):
            yield fault
    if value_at(cfg, "exp_manager.ema.enable"):
        yield (
            "exp_manager.ema.enable is true: NeMo would validate averaged weights and save the others in the .nemo "
            "files, and such a run cannot be resumed. Leave exp_manager.ema out; strategy=ema, or "
            "model.codert.teacher=ema, trains an average of the student, and pair.nemo holds it"
        )
    if not value_at(cfg, "exp_manager.create_checkpoint_callback", True):
        return
    path = "exp_manager.checkpoint_callback_params"
    if value_at(cfg, f"{path}.async_save"):
        yield f"{path}.async_save is true: a checkpoint is written whole before the next step. Set it to false"
    if value_at(cfg, f"{path}.save_weights_only") and value_at(cfg, "exp_manager.resume_if_exists"):
        yield (
            f"{path}.save_weights_only is true but exp_manager.resume_if_exists too: a run cannot be resumed without "
            "the state of its optimizer. Set one of them to false"
        )
    if not str(value_at(cfg, f"{path}.monitor", "val_loss")).startswith(("train_", "global_step", "learning_rate")):
        yield from _late_checkpoints(cfg, path)


def _late_checkpoints(cfg: DictConfig, path: str) -> Iterator[str]:
    """Yield keys that save checkpoints at other steps than those validated, under the score of an earlier step."""
    remedy = "resume.every_n_steps saves between validations, beside the best checkpoints"
    for key in ("every_n_train_steps", "train_time_interval"):
        if value := value_at(cfg, f"{path}.{key}"):
            yield (
                f"{path}.{key} is {value!r}: best checkpoints would be saved between validations, under the score of "
                f"other weights. Leave it out; {remedy}"
            )
    at_ends = value_at(cfg, "trainer.val_check_interval", 1.0) in (None, 1.0)
    each = value_at(cfg, "trainer.check_val_every_n_epoch", 1) == 1
    if value_at(cfg, f"{path}.save_on_train_epoch_end") and not (at_ends and each):
        yield (
            f"{path}.save_on_train_epoch_end is true but validations are not at the end of each epoch: best "
            f"checkpoints would be saved under the score of other weights. Set it to false; {remedy}"
        )


def callback_name_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield the callbacks of `trainer.callbacks` that can be refused by their names alone, each with its key.

    Args:
        cfg: root config.

    Returns:
        One message a fault.

    Example:
        >>> block = {"_target_": "lightning.pytorch.callbacks.EarlyStoping"}
        >>> [fault] = callback_name_problems(OmegaConf.create({"trainer": {"callbacks": [block]}}))
        >>> fault.split(": ")[1]
        'Lightning has no such callback, the nearest is EarlyStopping'
    """
    for i, block in enumerate(callback_blocks(cfg)):
        target = str(block.get("_target_"))
        package, _, name = target.rpartition(".")
        key = f"trainer.callbacks[{i}]._target_ is {target!r}"
        if name in REFUSED_CALLBACKS:
            yield f"{key}: {REFUSED_CALLBACKS[name]}"
        elif package in CALLBACK_PACKAGES and name not in LIGHTNING_CALLBACKS:
            yield f"{key}: Lightning has no such callback, the nearest is {nearest(name, LIGHTNING_CALLBACKS)}"


def monitors(cfg: DictConfig) -> Iterator[tuple[str, object]]:
    """Yield key and value of each metric by which a callback of `trainer.callbacks` decides."""
    for i, block in enumerate(callback_blocks(cfg)):
        if "monitor" in block:
            yield f"trainer.callbacks[{i}].monitor", block.monitor


def callback_blocks(cfg: DictConfig) -> list[DictConfig]:
    """Return the blocks of `trainer.callbacks`."""
    blocks = value_at(cfg, "trainer.callbacks")
    return [block for block in blocks if OmegaConf.is_dict(block)] if OmegaConf.is_list(blocks) else []
