"""The rows of the stock joint's loss, at tiny sizes."""

import torch

from nemo_codert.benchmark.additive_loss import LossShape
from nemo_codert.benchmark.joint_loss import CHUNKED, MEMORY_SHAPE, NEMO, JointCase, joint_rows
from nemo_codert.benchmark.measure import MeasureSettings

SHAPE = LossShape(2, 7, 4, 9)


def test_both_losses_are_one():
    ours, nemo = (JointCase(name, SHAPE, hidden=6).prepare()() for name in (CHUNKED, NEMO))
    torch.testing.assert_close(ours, nemo, rtol=1e-5, atol=0)  # NeMo's recursion is in float32


def test_nemos_is_left_out_where_its_lattice_is_too_large():
    settings = MeasureSettings(rounds=3, slow_rounds=1, memory=False)
    rows, findings = joint_rows([SHAPE], 6, "cpu", 1e9, settings)
    assert [row.name for row in rows] == [CHUNKED, NEMO] and rows[0].ratio is not None and not findings
    rows, _ = joint_rows([SHAPE], 6, "cpu", 1, settings)
    assert [row.name for row in rows] == [CHUNKED] and len(rows[0].seconds) == 1


def test_peak_memory_is_a_finding_with_a_target_at_the_shape_named_for_it(forking):
    rows, (finding,) = joint_rows([SHAPE], 6, "cpu", 1, MeasureSettings(rounds=1, slow_rounds=1))
    assert rows[0].memory.allocator > 0 and finding.at_most is None
    assert MEMORY_SHAPE.lattice_bytes == 4 * 4 * 400 * 101 * 4097
