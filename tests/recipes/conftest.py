"""Fixtures of the tests of NeMo's recipes: a corpus whose utterances are long enough for frames of 80 ms."""

import json
import logging
import os
from pathlib import Path

import pytest
import soundfile
import torch

from tests.conftest import SAMPLE_RATE, SENTENCES, tone


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder with manifests train.json of eight utterances of 2 s and dev.json of two of them."""
    folder = tmp_path_factory.mktemp("recipes")
    lines = []
    for i, text in enumerate(SENTENCES):
        audio = tone(2.0, seed=i)
        soundfile.write(folder / f"{i}.wav", audio, SAMPLE_RATE)
        lines.append(json.dumps({"audio_filepath": str(folder / f"{i}.wav"), "duration": 2.0, "text": text}) + "\n")
    (folder / "train.json").write_text("".join(lines))
    (folder / "dev.json").write_text("".join(lines[:2]))
    return folder


@pytest.fixture(autouse=True)
def process_as_it_was():
    """Lightning's strategy ddp leaves a process group and variables of the environment, NeMo handlers of logs."""
    variables = dict(os.environ)
    loggers = [logging.getLogger(name) for name in ("nemo_codert", "nemo_logger", "pytorch_lightning", "lhotse")]
    states = [(log, log.level, log.propagate, list(log.handlers)) for log in loggers]
    os.environ.pop("NEMO_EXPM_VERSION", None)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(variables)
    for log, level, propagate, handlers in states:
        log.level, log.propagate, log.handlers[:] = level, propagate, handlers
