"""Fixture of the benchmarks: processes that start in no time."""

import multiprocessing

import pytest


@pytest.fixture
def forking(monkeypatch) -> None:
    """The measurements' own processes are forked: where what they hand back is the point, not what they hold."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr("nemo_codert.benchmark.measure.get_context", lambda _: context)
