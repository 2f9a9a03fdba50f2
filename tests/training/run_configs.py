"""Parts of configs of runs, and the answers of this package's checks to a config."""

from pathlib import Path

import pytest
from omegaconf import DictConfig

from nemo_codert.config.checked import checked_config
from nemo_codert.config.derived import lone_branch
from nemo_codert.training.run_checks import check_run
from nemo_codert.training.usable_data import screen_data

SMALL = [
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "model.model_defaults.enc_hidden=16",
    "model.model_defaults.pred_hidden=16",
    "model.preprocessor.features=32",
    *(f"model.{name}.{key}=1" for name in ("encoder", "student.encoder") for key in ("n_layers", "n_heads")),
    *(f"model.{name}.d_model=16" for name in ("encoder", "student.encoder")),
]
TEST_SETS = "model.test_ds.manifest_filepath"


def refusal(cfg: DictConfig) -> str:
    """The message with which a config is refused."""
    with pytest.raises(ValueError) as caught:
        check_run(cfg)
    return str(caught.value)


def listed(cfg: DictConfig) -> list[str]:
    """The faults that it lists."""
    return refusal(cfg).split("\n  - ")[1:]


def screened(cfg: DictConfig, folder: Path) -> dict:
    """`screen_data` of a config that `check_run` has not seen."""
    return screen_data(cfg, checked_config(cfg.model, alone=lone_branch(cfg)), folder)
