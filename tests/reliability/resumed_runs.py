"""Overrides that make scripts/train.py a run of seconds, and what such runs end with."""

from pathlib import Path

import torch

STEPS, EVERY_VALIDATION = 16, 4
SMALL = [
    *("--config-name=quickstart", "strategy=shared_kd", "seed=3"),
    *("model.model_defaults.enc_hidden=24", "model.model_defaults.pred_hidden=16", "model.encoder.n_layers=1"),
    *("model.encoder.d_model=24", "model.student.encoder.n_layers=1", "model.student.encoder.d_model=16"),
    *("model.encoder.subsampling_factor=4", "model.student.encoder.subsampling_factor=4"),
    *("model.encoder.subsampling_conv_channels=8", "model.student.encoder.subsampling_conv_channels=8"),
    *("model.train_ds.batch_size=3", "model.validation_ds.batch_size=2", "model.optim.sched.warmup_steps=4"),
    *(f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={EVERY_VALIDATION}"),
    *("trainer.enable_progress_bar=false", "exp_manager.create_tensorboard_logger=false"),
    *("exp_manager.resume_if_exists=true", "hydra.run.dir=.", "hydra.output_subdir=null"),
]


def last_checkpoint(folder: Path) -> dict:
    """What a run in this `exp_dir` has saved last."""
    (path,) = (folder / "quickstart" / "checkpoints").glob("*-last.ckpt")
    return torch.load(path, map_location="cpu", weights_only=False)


def differences(first: dict, second: dict) -> list[str]:
    """What is not the same, bit for bit, in weights, optimizer, schedule and step of two checkpoints."""
    found = [n for n, value in first["state_dict"].items() if not torch.equal(value, second["state_dict"][n])]
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (first, second)]
    for key, values in states[0].items():
        found += [f"{key} {n}" for n, value in values.items() if not torch.equal(value, states[1][key][n])]
    found += [k for k in ("_last_lr", "last_epoch") if first["lr_schedulers"][0][k] != second["lr_schedulers"][0][k]]
    return found + ["global_step"] * (first["global_step"] != second["global_step"])
