"""The losses are usable where NeMo is not installed."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys

class NoNeMo:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nemo", "lightning", "omegaconf"):
            raise ModuleNotFoundError(f"{name} is blocked by this test")

sys.meta_path.insert(0, NoNeMo())
import torch
import nemo_codert.losses as losses

logits, lengths, targets = torch.zeros(1, 2, 3, requires_grad=True), torch.tensor([2]), torch.tensor([[0]])
tokens = torch.tensor([1])
losses.encoder_distillation_loss(student_logits=logits, teacher_logits=logits, lengths=lengths).backward()
losses.additive_rnnt_loss(logits, torch.zeros(1, 2, 3), targets, lengths, tokens, blank=2).backward()
losses.joint_rnnt_loss(torch.zeros(1, 2, 2, 3), targets, lengths, tokens, blank=2)
assert not [name for name in sys.modules if name.partition(".")[0] == "nemo"]
print("done without NeMo")
"""


def test_the_losses_work_in_a_process_that_cannot_import_nemo():
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=120)
    assert process.stdout.strip() == "done without NeMo", process.stderr
