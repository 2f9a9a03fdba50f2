"""The run at Weights & Biases beside a training: its names, its start before the first step, its end.

NeMo's exp_manager makes the logger from `exp_manager.create_wandb_logger`. Imports wandb when it is used.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_codert.config.checked import CheckedConfig
from nemo_codert.export.training_record import strategy_name

DEFAULT_NAME = "default"  # NeMo's, of a run without exp_manager.name


def name_wandb_run(cfg: DictConfig, checked: CheckedConfig) -> None:
    """Fill in name and project of `exp_manager.wandb_logger_kwargs` where neither they nor the environment are given.

    The project has the name of the run, which its folders share; the name adds strategy and seed.

    Args:
        cfg: root config, changed. checked: its model section.
    """
    manager = cfg.exp_manager
    if not manager.get("create_wandb_logger"):
        return
    name = manager.get("name") or DEFAULT_NAME
    defaults = {
        "name": os.environ.get("WANDB_NAME") or f"{name}, {strategy_name(cfg.train, checked.codert)}, seed {cfg.seed}",
        "project": os.environ.get("WANDB_PROJECT") or name,
    }
    given = {key: value for key, value in (manager.get("wandb_logger_kwargs") or {}).items() if value is not None}
    with open_dict(cfg):
        manager.wandb_logger_kwargs = OmegaConf.create({**defaults, **given})


def start_wandb_run(trainer: pl.Trainer) -> None:
    """Start the run, which Lightning would start at the first step.

    Raises:
        ValueError: wandb refuses, as it does without a login.
    """
    for logger in _loggers(trainer):
        import wandb

        try:
            logger.experiment  # noqa: B018  (reading it starts the run)
        except wandb.Error as error:
            raise ValueError(
                f"exp_manager.create_wandb_logger is true, but wandb cannot start: {' '.join(str(error).split())}. "
                "Run wandb login, set WANDB_MODE=offline, or set the key to false"
            ) from error


@contextmanager
def ended_wandb_run(trainer: pl.Trainer) -> Iterator[None]:
    """End the run after the block, as failed where the block raises: a second training would log to it otherwise."""
    status = 1
    try:
        yield
        status = 0
    finally:
        for logger in _loggers(trainer):
            logger.experiment.finish(exit_code=status)


def _loggers(trainer: pl.Trainer) -> list[WandbLogger]:
    """Return the loggers for W&B; those of further ranks do nothing."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
