"""Lightning's trainer of a run: its settings, the callbacks of this package, and those that a config names.

NeMo's scripts build `trainer.strategy` and `trainer.callbacks` from blocks with `_target_`, and so does this module.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import get_class
from lightning.pytorch.callbacks import ProgressBar
from nemo.core.classes.common import safe_instantiate
from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.checked import CheckedConfig
from nemo_codert.config.trainer_keys import OLDER_KEYS, REFUSED_CALLBACKS, callback_blocks, callback_name_problems
from nemo_codert.nemo_compat import is_allowed_target
from nemo_codert.training.checkpoint_files import CheckpointFiles
from nemo_codert.training.finite_guard import FiniteGuard
from nemo_codert.training.load_watch import LoadWatch
from nemo_codert.training.progress import StepProgress
from nemo_codert.training.resume import ResumeState

logger = logging.getLogger(__name__)


def callback_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield the callbacks of `trainer.callbacks` that a run cannot have, each with its key.

    Args:
        cfg: root config.

    Returns:
        One message a fault.

    Example:
        >>> swa = {"_target_": "lightning.pytorch.callbacks.StochasticWeightAveraging", "swa_lrs": 0.1}
        >>> [fault] = callback_problems(OmegaConf.create({"trainer": {"callbacks": [swa]}}))
        >>> fault.split(":")[0]
        "trainer.callbacks[0]._target_ is 'lightning.pytorch.callbacks.StochasticWeightAveraging'"
    """
    named = list(callback_name_problems(cfg))
    yield from named
    for i, block in enumerate(callback_blocks(cfg)):
        target, key = block.get("_target_"), f"trainer.callbacks[{i}]._target_"
        if not is_allowed_target(target) or any(problem.startswith(key) for problem in named):
            continue  # run_checks names the key of a class that NeMo does not build
        inherited = {parent.__name__ for parent in get_class(target).__mro__}
        for name, reason in REFUSED_CALLBACKS.items():
            if name in inherited:
                yield f"{key} is {target!r}: {reason}"
                break


def make_trainer(cfg: DictConfig, checked: CheckedConfig) -> pl.Trainer:
    """Return Lightning's trainer with this package's callbacks; its progress bar counts optimizer steps.

    Args:
        cfg: root config. checked: its model section, as `check_run` returns it.

    Raises:
        ValueError: Lightning refuses a key of `trainer`, or a class that it names.
    """
    settings, codert = dict(cfg.trainer), checked.codert
    for key in ("logger", "enable_checkpointing"):  # exp_manager makes both; Lightning's default is to make its own
        settings[key] = False
    for key in OLDER_KEYS:
        if settings.pop(key, None) is not None:
            logger.warning("trainer.%s has no effect: Lightning's Trainer has no such argument any more.", key)
    if settings.get("sync_batchnorm") and not is_on_cuda(settings):
        logger.warning("trainer.sync_batchnorm has no effect: PyTorch synchronises batch norm on CUDA devices alone.")
        settings["sync_batchnorm"] = False
    strategy = settings.get("strategy")
    if OmegaConf.is_dict(strategy):
        settings["strategy"] = _built("trainer.strategy", strategy)
    own = [_built(f"trainer.callbacks[{i}]", block) for i, block in enumerate(settings.pop("callbacks", None) or ())]
    resume = {key: value for key, value in (cfg.get("resume") or {}).items() if key != "unfinished"}
    callbacks = [ResumeState(**resume)]  # first: it counts steps for the others
    has_own_bar = any(isinstance(callback, ProgressBar) for callback in own)
    if settings.pop("enable_progress_bar", None) is not False and not has_own_bar:
        callbacks.append(StepProgress())
    callbacks += [FiniteGuard(**codert.non_finite), LoadWatch(codert.bad_utterances), *own]
    plugins = [*(settings.pop("plugins", None) or ()), CheckpointFiles()]
    try:
        return pl.Trainer(**settings, enable_progress_bar=has_own_bar, callbacks=callbacks, plugins=plugins)
    except Exception as error:
        raise ValueError(
            f"trainer cannot be built: {error}. Its keys are the arguments of Lightning's Trainer"
        ) from error


def is_on_cuda(settings: Mapping[str, Any]) -> bool:
    """Return whether a trainer with these settings trains on CUDA devices."""
    return settings.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _built(key: str, block: DictConfig) -> Any:
    """Build the class that a block names.

    Raises:
        ValueError: it cannot be built; the message has the key.
    """
    try:
        return safe_instantiate(OmegaConf.to_container(block, resolve=True))
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"{key} cannot be built: {reason}. The keys beside _target_ are the arguments of {block._target_}"
        ) from error
