"""SIGKILL while a checkpoint is being written: what has the final name is whole."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from nemo_codert.files.checkpoints import read_checkpoint
from nemo_codert.training.checkpoint_files import CheckpointFiles

pytestmark = pytest.mark.reliability
KILLS = 20


def save_for_ever(path: Path) -> None:
    """Checkpoints of 16 MiB under one name, as fast as the disk takes them."""
    number = 0
    while True:
        number += 1
        content = {"number": number, "w": [torch.full((2**16,), float(number)) for _ in range(64)]}
        CheckpointFiles().save_checkpoint(content, path)


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(tmp_path, campaign):
    path, delay, amid, whole = tmp_path / "last.ckpt", random.Random(0), 0, 0
    for _ in range(KILLS):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path,))
        process.start()
        while not path.exists():
            assert process.is_alive()
        deadline = time.monotonic() + delay.uniform(0.02, 0.3)
        while time.monotonic() < deadline or not list(tmp_path.glob(".*.part")):
            assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        left = list(tmp_path.glob(".*.part"))
        amid += bool(left)
        content = read_checkpoint(path)
        whole += all(bool((tensor == content["number"]).all()) for tensor in content["w"])
        for file in left:
            file.unlink()
    lost = f"the save under way ({amid} were hit while it ran)"
    campaign.record("SIGKILL while a checkpoint is written", injected=KILLS, survived=whole, lost=lost)
    assert whole == KILLS and amid > KILLS // 2
