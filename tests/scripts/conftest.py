"""Fixtures of the tests of scripts/train.py: the script as a module, and configs of runs that could start.

And of scripts/compare_strategies.py: the script with a stub for a trainer.
"""

import copy
import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from nemo_codert.compare import plan as comparison_plan
from tests.compare.comparison_corpora import write_corpus
from tests.conftest import REPOSITORY, load_script

COMPOSED = comparison_plan.composed
STUB = [sys.executable, str(REPOSITORY / "tests" / "scripts" / "stub_trainer.py")]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loggers = [logging.getLogger(name) for name in ("nemo_codert", "nemo_logger", "pytorch_lightning", "lhotse")]
    states = [(log, log.level, log.propagate, list(log.handlers)) for log in loggers]
    levels = [(handler, handler.level) for log in (*loggers, logging.root) for handler in log.handlers]
    module = load_script("train")
    version = os.environ.pop("NEMO_EXPM_VERSION", None)
    yield module
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
def run_command(monkeypatch, capsys):
    """Runs a command of nemo_codert.cli in this process: exit status, standard output, standard error."""
    monkeypatch.setattr("nemo_codert.cli.console.quieten_libraries", lambda: None)  # would change the whole process

    def call(name: str, *arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = importlib.import_module(f"nemo_codert.cli.{name}").main([*map(str, arguments)])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


# ---- scripts/compare_strategies.py ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compare_script() -> ModuleType:
    return load_script("compare_strategies")


@functools.cache
def composed_once(config_name: str, strategy: str, *overrides: str) -> dict:
    """The files of conf/ do not change between tests, and Hydra takes a second for a comparison's strategies."""
    return COMPOSED(config_name, strategy, overrides)


@pytest.fixture
def run(compare_script, monkeypatch, capsys, tmp_path):
    """Runs the script in this process with the stub for a trainer: exit status, standard output, standard error."""

    def composed(config_name: str, strategy: str, overrides: Sequence[str]) -> dict:
        return copy.deepcopy(composed_once(config_name, strategy, *overrides))

    monkeypatch.setattr(comparison_plan, "composed", composed)
    monkeypatch.setattr(compare_script, "TRAINER", STUB)
    monkeypatch.setattr("nemo_codert.compare.runner.POLL_SECONDS", 0.02)
    monkeypatch.setenv("STUB_DIR", str(tmp_path))
    write_corpus(tmp_path / "data")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = compare_script.main(["--output-dir", str(tmp_path / "out"), *arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def compare(run, tmp_path):
    """The same on the corpus, seeds 0 and 1 unless others are given."""

    def call(*arguments: str) -> tuple[int, str, str]:
        seeds = [] if "--seeds" in arguments else ["--seeds", "0-1"]
        return run("--data-dir", str(tmp_path / "data"), *seeds, *arguments)

    return call


@pytest.fixture
def starts(tmp_path) -> Callable[[], list[str]]:
    """Trainings started since the last question, as fold/strategy/seed."""

    def take() -> list[str]:
        path = tmp_path / "starts.txt"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return names

    return take
