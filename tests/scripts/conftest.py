"""Fixtures of the tests of scripts/train.py: the script as a module, and configs of runs that could start."""

import importlib.util
import logging
import os
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loggers = [logging.getLogger(name) for name in ("nemo_codert", "nemo_logger", "pytorch_lightning", "lhotse")]
    states = [(log, log.level, log.propagate, list(log.handlers)) for log in loggers]
    levels = [(handler, handler.level) for log in (*loggers, logging.root) for handler in log.handlers]
    spec = importlib.util.spec_from_file_location("codert_train_script", REPOSITORY / "scripts" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    version = os.environ.pop("NEMO_EXPM_VERSION", None)
    yield module
    os.environ.pop("NEMO_EXPM_VERSION", None)
    os.environ.update({"NEMO_EXPM_VERSION": version} if version else {})
    for log, level, propagate, handlers in states:
        log.level, log.propagate, log.handlers[:] = level, propagate, handlers
    for handler, level in levels:
        handler.setLevel(level)


@pytest.fixture
def run_config(tmp_path, manifest, tokenizer_dir):
    """Factory of the config of a run that could start, with overrides as on the command line."""

    def make(*overrides: str) -> DictConfig:
        GlobalHydra.instance().clear()
        given = {
            "model.train_ds.manifest_filepath": manifest,
            "model.validation_ds.manifest_filepath": manifest,
            "model.tokenizer.dir": tokenizer_dir,
            "exp_manager.exp_dir": tmp_path / "runs",
        }
        # 40 ms a frame: the utterances of the fixture are short.
        given["model.preprocessor.window_stride"] = 0.01
        given = [f"{key}={value}" for key, value in given.items() if not any(key in o for o in overrides)]
        with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
            return compose("fsdd", [*given, *overrides])

    return make
