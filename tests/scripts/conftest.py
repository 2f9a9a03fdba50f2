"""Fixtures of the tests of the scripts: a script's main in this process, and comparisons with a stub for a trainer."""

import copy
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nemo_codert.cli.compare import main
from nemo_codert.compare import plan as comparison_plan
from tests.compare.comparison_corpora import write_corpus
from tests.conftest import REPOSITORY

COMPOSED = comparison_plan.composed
STUB = [sys.executable, str(REPOSITORY / "tests" / "scripts" / "stub_trainer.py")]


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


@functools.cache
def composed_once(config_name: str, strategy: str, *overrides: str) -> dict:
    """The files of conf/ do not change between tests, and Hydra takes a second for a comparison's strategies."""
    return COMPOSED(config_name, strategy, overrides)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the script in this process with the stub for a trainer: exit status, standard output, standard error."""

    def composed(config_name: str, strategy: str, overrides: Sequence[str]) -> dict:
        return copy.deepcopy(composed_once(config_name, strategy, *overrides))

    monkeypatch.setattr(comparison_plan, "composed", composed)
    monkeypatch.setattr("nemo_codert.compare.run.TRAINER", STUB)
    monkeypatch.setattr("nemo_codert.compare.run.CACHER", STUB)
    monkeypatch.setattr("nemo_codert.compare.runner.POLL_SECONDS", 0.02)
    monkeypatch.setenv("STUB_DIR", str(tmp_path))
    write_corpus(tmp_path / "data")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main(["--output-dir", str(tmp_path / "out"), *arguments])
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
