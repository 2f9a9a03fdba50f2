"""The names that a training logs, and the metrics by which something is decided. Imports neither PyTorch nor NeMo."""

from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.checked import CheckedConfig
from nemo_codert.config.criteria import teacher_transcribes
from nemo_codert.config.data_sections import is_tarred, manifest_paths
from nemo_codert.config.trainer_keys import monitors
from nemo_codert.config.values import value_at as _value

# What training and validation log, and so what a best checkpoint can be chosen by.
LOGGED = ("global_step", "train_loss", "val_loss", "val_wer", "val_wer_num", "val_wer_denom")
LOGGED_ALONE = ("learning_rate", "training_batch_wer")
LOGGED_OF_PAIRS = (
    "val_wer_teacher",
    "val_wer_teacher_num",
    "val_wer_teacher_denom",
)  # logged beside the terms of the loss


def monitor_problems(
    cfg: DictConfig, checked: CheckedConfig | None, prefix_of: Callable[[str], str | None]
) -> Iterator[str]:
    """Check the monitored names: one that is never logged would end the run after its first validation.

    Args:
        cfg: root config. checked: its model section, None if it has faults.
        prefix_of: name of one of several validation sets -> its prefix in NeMo's logs.
    """
    if cfg.train == "pair" and checked is None:
        return  # the terms of the loss are not known
    known = _logged_names(cfg, checked, prefix_of)
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


def _logged_names(cfg: DictConfig, checked: CheckedConfig | None, prefix_of: Callable[[str], str | None]) -> list[str]:
    """Return the names that training and validation log; NeMo repeats those of several validation sets by name."""
    if cfg.train != "pair":
        known = [*LOGGED, *LOGGED_ALONE]
    else:
        known = [*LOGGED, *(name for spec in checked.criteria for name in spec.log_names)]
        known += LOGGED_OF_PAIRS if teacher_transcribes(checked.codert) else ()
    if _value(cfg, "model.compute_eval_loss", True) is False:
        known.remove("val_loss")
    prefixes = [prefix for name in validation_names(cfg) or () if (prefix := prefix_of(name))]
    of_validation = [name for name in known if name.startswith("val_")]
    return [*known, *(prefix + name for prefix in prefixes for name in of_validation)]


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
