"""Two processes, one of them with a batch that is not finite: both drop the step, or both stop, and nobody hangs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from nemo_codert.training.finite_guard import SKIPPED_STEPS
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.reliability
TRAINING = Path(__file__).with_name("two_rank_training.py")
STEPS = 4


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_all_ranks_do_the_same(action, make_config, batch, campaign, tmp_path):
    OmegaConf.save(make_config(strategy="shared_kd"), tmp_path / "config.yaml")
    torch.save([part.clone() for part in batch], tmp_path / "batch.pt")  # without the types that NeMo adds
    paths = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(TRAINING), str(tmp_path), action]
    subprocess.run(command, check=True, timeout=240, env={**os.environ, **paths}, cwd=REPOSITORY)
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    survived = first == second and first["steps"] == (STEPS if action == "skip" else 1)
    lost = "the step, on both" if action == "skip" else "nothing: the optimizer has not moved"
    campaign.record(f"NaN on one of two ranks, {action}", injected=1, survived=int(survived), lost=lost)
    assert survived
    hashes = first["hashes"]
    if action == "stop":
        assert first["error"].startswith("step 1: rank 1: the training loss is not finite: train_rnnt_loss_student")
        assert "rank1-step1-0 (its signal is not finite)" in first["error"] and "rank0" not in first["error"]
        assert len(hashes) == 1
    else:
        assert first["skipped"] == 1 and hashes[1] == hashes[0] and len(set(hashes)) == STEPS - 1
        lines = [json.loads(line) for line in (tmp_path / SKIPPED_STEPS).read_text().splitlines()]
        found = [(line["rank"], line["step"], bool(line["suspects"])) for line in lines]
        assert found == [(0, 1, False), (1, 1, True)]
