"""The losses are usable where NeMo is not installed, and where Numba is not."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"{name} is blocked by this test")

sys.meta_path.insert(0, Blocked())
import torch
import nemo_codert.losses as losses

logits, lengths, targets = torch.zeros(1, 2, 3, requires_grad=True), torch.tensor([2]), torch.tensor([[0]])
tokens = torch.tensor([1])
losses.encoder_distillation_loss(student_logits=logits, teacher_logits=logits, lengths=lengths).backward()
losses.additive_rnnt_loss(logits, torch.zeros(1, 2, 3), targets, lengths, tokens, blank=2).backward()
losses.joint_rnnt_loss(torch.zeros(1, 2, 2, 3), targets, lengths, tokens, blank=2)
losses.additive_tdt_loss(logits, torch.zeros(1, 2, 3), targets, lengths, tokens, blank=1, durations=[1]).backward()
assert not [name for name in sys.modules if name.partition(".")[0] in sys.argv[1:]]
print("done without", *sys.argv[1:])
"""


@pytest.mark.parametrize("blocked, warnings", [
    (("nemo", "lightning", "omegaconf"), 0), (("nemo", "lightning", "omegaconf", "numba", "llvmlite"), 1),
])  # fmt: skip
def test_the_losses_work_in_a_process_that_cannot_import_nemo(blocked, warnings):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", SCRIPT, *blocked]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert process.stdout.strip() == " ".join(("done without", *blocked)), process.stderr
    assert process.stderr.count("compiled CPU kernels of the losses cannot be used") == warnings
