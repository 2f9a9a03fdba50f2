"""Fixtures of the tests of training runs: configs of runs that could start, and test sets."""

import copy
import functools
import logging
import os

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module", autouse=True)
def logs_and_run_folder_as_they_were():
    """NeMo gives its log files and names the run's folder in the environment."""
    loggers = [logging.getLogger(name) for name in ("nemo_codert", "nemo_logger", "pytorch_lightning", "lhotse")]
    states = [(log, log.level, log.propagate, list(log.handlers)) for log in loggers]
    levels = [(handler, handler.level) for log in (*loggers, logging.root) for handler in log.handlers]
    version = os.environ.pop("NEMO_EXPM_VERSION", None)
    yield
    os.environ.pop("NEMO_EXPM_VERSION", None)
    os.environ.update({"NEMO_EXPM_VERSION": version} if version else {})
    for log, level, propagate, handlers in states:
        log.level, log.propagate, log.handlers[:] = level, propagate, handlers
    for handler, level in levels:
        handler.setLevel(level)


@functools.cache
def composed_run(*choices: str) -> DictConfig:
    """conf/fsdd.yaml with these choices of files, composed once: a copy takes a tenth of the time."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        return compose("fsdd", [*choices])


def is_choice(override: str) -> bool:
    """Whether it chooses a file of a folder of conf/ (strategy=static), not a value."""
    return (REPOSITORY / "conf" / override.lstrip("+~").partition("=")[0].partition("@")[0]).is_dir()


@pytest.fixture
def run_config(tmp_path, manifest, tokenizer_dir):
    """Factory of the config of a run that could start, with overrides as on the command line."""

    def make(*overrides: str) -> DictConfig:
        given = {
            "model.train_ds.manifest_filepath": manifest,
            "model.validation_ds.manifest_filepath": manifest,
            "model.tokenizer.dir": tokenizer_dir,
            "exp_manager.exp_dir": tmp_path / "runs",
        }
        # 40 ms a frame: the utterances of the fixture are short.
        given["model.preprocessor.window_stride"] = 0.01
        given = [f"{key}={value}" for key, value in given.items() if not any(key in o for o in overrides)]
        cfg = copy.deepcopy(composed_run(*filter(is_choice, overrides)))
        values = [override for override in (*given, *overrides) if not is_choice(override)]
        # As Hydra itself does it, once the files are put together.
        ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), cfg)
        return cfg

    return make


@pytest.fixture
def test_sets(tmp_path, manifest):
    """Two test manifests, of eight and of three utterances."""
    lines = manifest.read_text().splitlines()
    paths = [tmp_path / "test_seen.json", tmp_path / "test_unseen.json"]
    for path, count in zip(paths, (8, 3), strict=True):
        path.write_text("\n".join(lines[:count]) + "\n")
    return paths
