"""Short trainings with everything random switched on, stopped anywhere and resumed, and what they end with."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from nemo.utils.exp_manager import exp_manager
from omegaconf import OmegaConf

from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.nemo_compat import checkpoint_folder, seed_augmentation
from nemo_codert.training.last_checkpoint import prepare_resume
from nemo_codert.training.resume import ResumeState
from tests.conftest import conformer
from tests.training.sharded_data import write_shards

DATA = {"sample_rate": 16000, "batch_size": 3, "num_workers": 0}
LOADERS = {
    "lhotse": {"use_lhotse": True, "seed": 0, "shard_seed": 0, "pretokenize": False},
    "buckets": {
        **{"use_lhotse": True, "seed": 0, "shard_seed": 0, "pretokenize": False, "batch_size": None},
        **{"batch_duration": 3.5, "use_bucketing": True, "num_buckets": 2, "bucket_buffer_size": 8},
    },
    "stream": {"use_lhotse": True, "seed": 0, "shard_seed": 0, "pretokenize": False},
    "classic": {},
}
MANAGER = {
    "name": "run",
    "seconds_to_sleep": 0,
    "create_tensorboard_logger": False,
    "resume_if_exists": True,
    "resume_ignore_no_checkpoint": True,
}
CHECKPOINTS = {"monitor": "val_wer", "mode": "min", "save_top_k": 1, "save_nemo_on_train_end": False}


class Stopped(Exception):
    """Raised in place of a kill."""


class Stop(Callback):
    """Ends a training by an error where `where` says so of (hook, optimizer step)."""

    def __init__(self, where: Callable[[str, int], bool]) -> None:
        self._where = where

    def _ask(self, hook: str, trainer: Trainer) -> None:
        if self._where(hook, trainer.global_step):
            raise Stopped

    def on_train_batch_start(self, trainer, *_) -> None:
        self._ask("batch_start", trainer)

    def on_train_batch_end(self, trainer, *_) -> None:
        self._ask("batch_end", trainer)

    def on_validation_batch_end(self, trainer, *_) -> None:
        self._ask("validation", trainer)

    def on_train_epoch_end(self, trainer, *_) -> None:
        self._ask("epoch_end", trainer)


class Diary(Callback):
    """Losses of the batches and optimizer steps of the validations, in order."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.validations: list[int] = []
        self.utterances: list[list[str]] = []

    def on_train_batch_end(self, trainer, model, outputs, *_) -> None:
        self.losses.append(float(outputs["loss"]))
        self.utterances.append(list(getattr(trainer.train_dataloader, "current_utterances", [])))

    def on_validation_end(self, trainer, model) -> None:
        self.validations.append(trainer.global_step)


class Ended(NamedTuple):
    """What a training ends with."""

    model: EncDecCoDERTBPEModel
    trainer: Trainer
    diary: Diary


def dev_set(manifest: Path) -> Path:
    """The same utterances under a name that NeMo accepts for validation."""
    path = manifest.with_name("dev.json")
    shutil.copyfile(manifest, path)
    return path


def random_pair(make_config, manifest: Path, loader: str, workers: int = 0):
    """Config of a pair that draws random numbers wherever a training can: dropout, dither, masks, order."""
    train = {**DATA, **LOADERS[loader], "num_workers": workers, "shuffle": True, "manifest_filepath": str(manifest)}
    evaluated = {**DATA, "shuffle": False, "manifest_filepath": str(dev_set(manifest))}
    dropout = dict.fromkeys(("dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att"), 0.1)
    spec = {"_target_": "nemo.collections.asr.modules.SpectrogramAugmentation", "freq_masks": 1, "time_masks": 1}
    cfg = make_config(
        teacher={**conformer(layers=2, channels=24), **dropout},
        student={**conformer(layers=1, channels=16), **dropout, "stochastic_depth_drop_prob": 0.0},
        train_ds=train,
        validation_ds=evaluated,
        spec_augment={**spec, "freq_width": 8, "time_width": 0.1},
        codert={"distillation": {"weight": 0.3, "start_step": 2, "ramp_steps": 5}},
    )
    if loader == "stream":
        cfg.train_ds = {**train, **write_shards(manifest, manifest.parent / "tarred")["lhotse"]}
    cfg.preprocessor.dither = 1e-3
    cfg.optim.sched = {"name": "CosineAnnealing", "warmup_steps": 2, "min_lr": 1e-5}
    return cfg


def train(cfg, folder: Path, where=None, *, seed: int = 0, every: int = 0, state: bool = True, **settings) -> Ended:
    """Train in a folder, resuming what is there. Raises Stopped where `where` says so."""
    os.environ.pop("NEMO_EXPM_VERSION", None)
    # Seeds of resumed parts differ to show that they do not matter; a start from scratch has the seed of the run.
    seed = seed if list(folder.rglob("*.ckpt")) else 0
    seed_everything(seed, verbose=False)
    diary = Diary()
    callbacks = [*([ResumeState(every_n_steps=every)] if state else []), diary]
    callbacks += [Stop(where)] if where else []
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    counted = {"max_epochs": -1, "val_check_interval": 3, "check_val_every_n_epoch": None, "max_steps": 7}
    lhotse = bool(cfg.train_ds.get("use_lhotse"))
    given = {**quiet, **counted, "use_distributed_sampler": not lhotse, "gradient_clip_val": 5.0, **settings}
    checkpoints = {**CHECKPOINTS, **given.pop("checkpoints", {})}
    trainer = Trainer(accelerator="cpu", devices=1, num_sanity_val_steps=0, callbacks=callbacks, **given)
    manager = OmegaConf.create({**MANAGER, "exp_dir": str(folder), "checkpoint_callback_params": checkpoints})
    prepare_resume(checkpoint_folder(trainer, manager), trainer.strategy.checkpoint_io.load_checkpoint, is_writer=True)
    exp_manager(trainer, manager)
    torch.manual_seed(0)
    model = EncDecCoDERTBPEModel(cfg, trainer=trainer)
    seed_augmentation(model, seed)
    seed_everything(seed, verbose=False)
    trainer.fit(model)
    return Ended(model, trainer, diary)


def stopped(cfg, folder: Path, where, **settings: Any) -> bool:
    """True where the training was stopped, False where it came to its end."""
    try:
        train(cfg, folder, where, **settings)
    except Stopped:
        return True
    return False


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def differences(first: Ended, second: Ended) -> list[str]:
    """Names of weights, optimizer states, schedules and counters that are not the same, bit for bit."""
    found = [f"global_step {first.trainer.global_step} {second.trainer.global_step}"]
    found = found if first.trainer.global_step != second.trainer.global_step else []
    weights = first.model.state_dict(), second.model.state_dict()
    found += [name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])]
    states = [ended.trainer.optimizers[0].state_dict()["state"] for ended in (first, second)]
    found += ["optimizer parameters"] if states[0].keys() != states[1].keys() else []
    for key, values in states[0].items():
        found += [f"{key} {n}" for n, value in values.items() if not torch.equal(value, states[1][key][n])]
    schedules = [e.trainer.lr_scheduler_configs[0].scheduler.state_dict() for e in (first, second)]
    found += [f"schedule {k}" for k in ("last_epoch", "_last_lr") if schedules[0][k] != schedules[1][k]]
    best = [Path(e.trainer.checkpoint_callback.best_model_path).name for e in (first, second)]
    found += [f"best checkpoint {best}"] if best[0] != best[1] else []
    return found
