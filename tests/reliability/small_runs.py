"""Trainings of scripts/train.py that are small but leave nothing out: dropout, dither, SpecAugment, shuffling."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

SMALL = [
    "trainer.enable_progress_bar=false",
    "model.train_ds.batch_size=3",
    "model.encoder.n_layers=1",
    "model.encoder.d_model=32",
    "model.model_defaults.enc_hidden=32",
    "model.student.encoder.n_layers=1",
    "model.student.encoder.d_model=32",
    "model.preprocessor.window_stride=0.01",  # seconds; the utterances of the fixture are short
    "model.optim.sched.warmup_steps=4",
]


def small_run(folder: Path, manifest: Path, tokenizer_dir: Path, *overrides: str, steps: int) -> list[str]:
    """Overrides of conf/fsdd.yaml for a run into `folder`/run/v that validates once, at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(manifest, folder / "dev.json")  # NeMo validates with no file called manifest.json
    return [
        f"model.train_ds.manifest_filepath={manifest}",
        f"model.validation_ds.manifest_filepath={folder / 'dev.json'}",
        f"model.tokenizer.dir={tokenizer_dir}",
        f"exp_manager.exp_dir={folder}",
        "exp_manager.name=run",
        "+exp_manager.version=v",
        f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={steps}",
        *SMALL,
        *overrides,
    ]


def train(overrides: list[str], **environment: str) -> None:
    """Run scripts/train.py on one thread in a process of its own."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "scripts/train.py", "--config-name=fsdd", *overrides],
        cwd=REPOSITORY,
        env={**os.environ, **threads, **environment},
        check=True,
    )
