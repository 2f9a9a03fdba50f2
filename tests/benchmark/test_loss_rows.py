"""Losses of an additive and of a stock joint in the benchmark: one loss, one gradient, packages that may be absent."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

from nemo_codert.benchmark import additive_loss as loss_costs
from nemo_codert.benchmark import joint_loss, lattice_kl, tdt_loss
from nemo_codert.benchmark.additive_loss import (
    FLOOR,
    GPU_SHAPE,
    IMPLEMENTATIONS,
    MEMORY_SHAPE,
    NEMO,
    OURS,
    SPEED_SHAPE,
    Implementation,
    LossCase,
    LossShape,
    floor,
    largest_lattice,
    loss_and_gradient,
    loss_cases,
    loss_findings,
    loss_rows,
    make_loss_batch,
    named_shapes,
)
from nemo_codert.benchmark.joint_loss import CHUNKED, JointCase, joint_rows
from nemo_codert.benchmark.lattice_kl import SHARED, WHOLE, LatticeCase, lattice_rows
from nemo_codert.benchmark.measure import Measured, MeasureSettings, PeakMemory
from nemo_codert.benchmark.tdt_loss import (
    NEMO_ON_GPU,
    NEMO_VALUE,
    OUR_VALUE,
    TDTCase,
    tdt_cases,
    tdt_findings,
    tdt_rows,
)
from nemo_codert.losses import joint_rnnt_loss

pytestmark = pytest.mark.unit

# ---- additive joint -------------------------------------------------------------------------------------------------

SHAPE = LossShape(2, 7, 4, 9)
BY_NAME = {implementation.name: implementation for implementation in IMPLEMENTATIONS}


def gradients(implementation: Implementation) -> tuple[torch.Tensor, ...]:
    batch = make_loss_batch(SHAPE, "cpu")
    loss = implementation.make(batch)()
    return loss.detach(), *torch.autograd.grad(loss, [batch.encoder_logits, batch.prediction_logits])


def test_shapes_count_their_bytes():
    assert SHAPE.logits_bytes == 4 * 2 * (7 + 5) * 10
    assert SHAPE.lattice_bytes == 4 * 2 * 7 * 5 * 10
    assert str(LossShape(*SPEED_SHAPE)) == "(B, T, U, V) = (8, 150, 40, 1024)"


@pytest.mark.nemo
def test_ours_and_nemos_give_one_loss_and_one_gradient():
    for ours, nemo in zip(gradients(BY_NAME[OURS]), gradients(BY_NAME[NEMO]), strict=True):
        torch.testing.assert_close(ours, nemo, rtol=1e-4, atol=1e-5)  # NeMo's recursion is in float32


def lattice_loss(logits, targets, encoded_lengths, target_lengths, blank):
    """Stands in for another package's loss; those take 32-bit integers."""
    assert {x.dtype for x in (targets, encoded_lengths, target_lengths)} == {torch.int32}
    whole = (x.long() for x in (targets, encoded_lengths, target_lengths))
    return joint_rnnt_loss(logits, *whole, blank=blank, reduction="sum")


def rnnt_loss_simple(lm, am, symbols, termination_symbol, boundary, reduction):
    assert reduction == "sum" and boundary.tolist() == [[0, 0, 4, 7]] * 2
    lattice = am[:, :, None] + lm[:, None]
    ends = (symbols, boundary[:, 3], boundary[:, 2])
    return lattice_loss(lattice, *(x.int() for x in ends), termination_symbol)


def torchaudio_rnnt_loss(logits, targets, logit_lengths, target_lengths, blank, clamp, reduction):
    assert clamp < 0 and reduction == "sum"
    return lattice_loss(logits, targets, logit_lengths, target_lengths, blank)


def warp_rnnt_loss(log_probs, labels, frames_lengths, labels_lengths, reduction, blank, gather):
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:3]))
    assert reduction == "sum" and gather
    return lattice_loss(log_probs, labels, frames_lengths, labels_lengths, blank)


@pytest.mark.parametrize(
    "name, module, function, replacement",
    [
        ("k2 rnnt_loss_simple", "k2", "rnnt_loss_simple", rnnt_loss_simple),
        ("fast_rnnt rnnt_loss_simple", "fast_rnnt", "rnnt_loss_simple", rnnt_loss_simple),
        ("torchaudio rnnt_loss", "torchaudio.functional", "rnnt_loss", torchaudio_rnnt_loss),
        ("warp_rnnt", "warp_rnnt", "rnnt_loss", warp_rnnt_loss),
    ],
)
def test_another_package_is_recognised_and_gets_what_it_takes(monkeypatch, name, module, function, replacement):
    parent = module.partition(".")[0]
    for each in {parent, module}:
        monkeypatch.setitem(sys.modules, each, ModuleType(each))
    implementation = BY_NAME[name]
    assert not implementation.is_installed()  # an older or newer version without the function
    monkeypatch.setattr(sys.modules[module], function, replacement, raising=False)
    assert implementation.is_installed()
    assert name in [case.name for case in loss_cases(SHAPE, implementation.devices[-1], largest_lattice=1e9)]
    for ours, theirs in zip(gradients(BY_NAME[OURS]), gradients(implementation), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_absent_and_broken_packages_are_not_listed(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)  # importing it raises
    assert not BY_NAME["k2 rnnt_loss_simple"].is_installed()
    assert "k2 rnnt_loss_simple" not in [case.name for case in loss_cases(SHAPE, "cpu", largest_lattice=1e9)]


def test_a_lattice_that_is_too_large_is_left_out_and_said(caplog):
    with caplog.at_level("WARNING", logger="nemo_codert"):
        monkey = [case.name for case in loss_cases(SHAPE, "cpu", largest_lattice=SHAPE.lattice_bytes - 1)]
    assert OURS in monkey and FLOOR in monkey and NEMO not in monkey
    assert f"{NEMO} is left out" in caplog.text
    assert NEMO in [case.name for case in loss_cases(SHAPE, "cpu", largest_lattice=SHAPE.lattice_bytes)]


def test_only_nemos_loss_on_the_cpu_is_slow():
    slow = {(name, device) for name in (OURS, NEMO, FLOOR) for device in ("cpu", "cuda")}
    assert {key for key in slow if LossCase(key[0], SHAPE, key[1]).slow} == {(NEMO, "cpu")}


def test_the_floor_makes_three_products_and_no_gradient(monkeypatch):
    shapes = []
    bmm = torch.bmm
    monkeypatch.setattr(loss_costs.torch, "bmm", lambda *both: shapes.append(bmm(*both)) or shapes[-1])
    assert floor(make_loss_batch(SHAPE, "cpu"))() is None
    assert [tuple(shape.shape) for shape in shapes] == [(2, 7, 5), (2, 7, 10), (2, 5, 10)]
    assert not any(shape.requires_grad for shape in shapes)


def test_a_timed_call_leaves_no_gradient_behind():
    batch = make_loss_batch(SHAPE, "cpu")
    loss = loss_and_gradient(BY_NAME[OURS], batch)()
    assert batch.encoder_logits.grad is None and not loss.requires_grad


def test_rows_have_ratios_to_the_floor_and_the_bytes_of_the_logits():
    rows, findings = loss_rows([LossCase(name, SHAPE) for name in (OURS, FLOOR)], MeasureSettings(2, memory=False))
    assert [row.name for row in rows] == [OURS, FLOOR]
    assert rows[1].ratio == 1.0 and rows[0].ratio_to == FLOOR and rows[0].held_bytes == SHAPE.logits_bytes
    assert rows[0].sizes == {"batch": 2, "frames": 7, "tokens": 4, "vocabulary": 9}
    assert findings == []  # no target at this shape


def costs(**of: float) -> dict[str, Measured]:
    names = {"ours": OURS, "nemo": NEMO, "floor": FLOOR}
    memory = PeakMemory(LossShape(*MEMORY_SHAPE).logits_bytes * 3)
    first = {"ours": torch.tensor(5.0), "nemo": torch.tensor(5.00001), "floor": None}
    return {names[name]: Measured([seconds], first[name], memory) for name, seconds in of.items()}


def test_targets_stand_at_the_shapes_they_were_set_for():
    (speed, times) = loss_findings(LossShape(*SPEED_SHAPE), costs(ours=0.2, nemo=80.0, floor=0.1), "cpu")
    assert (speed.value, speed.met, times.value, times.met) == (2.0, True, 400.0, True)
    (speed, memory) = loss_findings(LossShape(*MEMORY_SHAPE), costs(ours=0.3, nemo=80.0, floor=0.1), "cpu")
    assert speed.met is False and (memory.value, memory.met) == (1.5, True)
    assert loss_findings(LossShape(8, 150, 40, 256), costs(ours=0.3, floor=0.1), "cpu") == []


@pytest.mark.parametrize("lattice", [(8, 37, 20), (8, 150, 80), (1, 4, 2)])
@pytest.mark.parametrize("vocabulary, count", [(1023, 0), (1024, 1), (16384, 1)])
def test_the_floor_is_held_at_every_lattice_from_v_1024_on(lattice, vocabulary, count):
    found = loss_findings(LossShape(*lattice, vocabulary), costs(ours=0.3, floor=0.1), "cpu")
    assert [(finding.value, finding.met) for finding in found] == [(pytest.approx(3.0), False)] * count


def test_a_gpu_is_held_to_targets_of_its_own():
    shape = LossShape(*GPU_SHAPE)
    assert named_shapes("cuda") == [*named_shapes("cpu"), shape] and shape not in named_shapes("cpu")
    measured = costs(ours=0.01, nemo=0.12, floor=0.001)
    measured[NEMO] = replace(measured[NEMO], memory=PeakMemory(60_000))
    measured[OURS] = replace(measured[OURS], memory=PeakMemory(3_000))
    floor, times, memory = loss_findings(shape, measured, "cuda")
    assert floor.met is None  # 2.5 is the CPU's
    assert (times.value, times.at_least, times.met) == (pytest.approx(12.0), 10, True)
    assert (memory.value, memory.at_least, memory.met) == (20.0, 30, False)
    _, times = loss_findings(LossShape(*SPEED_SHAPE), measured, "cuda")
    assert times.value == pytest.approx(12.0) and times.met is None  # 300 is the CPU's
    *_, memory = loss_findings(LossShape(*MEMORY_SHAPE), measured, "cuda")
    assert memory.met is None
    _, times, memory = loss_findings(shape, measured, "cpu")
    assert times.met is memory.met is None  # on the CPU nobody promised anything at this shape


def test_a_quarter_of_a_gpu_is_enough_for_nemos_lattice_at_the_shape_of_the_targets(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 * 2**30))
    assert largest_lattice("cpu") == 1e9 < LossShape(*GPU_SHAPE).lattice_bytes < largest_lattice("cuda")
    assert NEMO in [case.name for case in loss_cases(LossShape(*GPU_SHAPE), "cuda", largest_lattice("cuda"))]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80e9))
    assert largest_lattice("cuda") == 4 * 2**31


def test_a_loss_that_differs_from_ours_is_named():
    measured = costs(ours=0.2, nemo=80.0, floor=0.1)
    measured[NEMO] = Measured([80.0], torch.tensor(5.1), None)
    (finding,) = loss_findings(SHAPE, measured, "cpu")
    assert NEMO in finding.text and finding.met is False and finding.value == pytest.approx(0.02, rel=1e-3)


# ---- stock joint ----------------------------------------------------------------------------------------------------


@pytest.mark.nemo
def test_both_losses_are_one():
    ours, nemo = (JointCase(name, SHAPE, hidden=6).prepare()() for name in (CHUNKED, joint_loss.NEMO))
    torch.testing.assert_close(ours, nemo, rtol=1e-5, atol=0)  # NeMo's recursion is in float32


@pytest.mark.nemo
def test_nemos_is_left_out_where_its_lattice_is_too_large():
    settings = MeasureSettings(rounds=3, slow_rounds=1, memory=False)
    rows, findings = joint_rows([SHAPE], 6, "cpu", 1e9, settings)
    assert [row.name for row in rows] == [CHUNKED, joint_loss.NEMO] and rows[0].ratio is not None and not findings
    rows, _ = joint_rows([SHAPE], 6, "cpu", 1, settings)
    assert [row.name for row in rows] == [CHUNKED] and len(rows[0].seconds) == 1


def test_peak_memory_is_a_finding_with_a_target_at_the_shape_named_for_it(forking):
    rows, (finding,) = joint_rows([SHAPE], 6, "cpu", 1, MeasureSettings(rounds=1, slow_rounds=1))
    assert rows[0].memory.allocator > 0 and finding.at_most is None
    assert joint_loss.MEMORY_SHAPE.lattice_bytes == 4 * 4 * 400 * 101 * 4097


# ---- KL at the joint ------------------------------------------------------------------------------------------------


def test_products_and_the_whole_lattice_have_one_divergence():
    ours, whole = (LatticeCase(name, SHAPE).prepare()() for name in (lattice_kl.OURS, WHOLE))
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=0)  # float32 sums in another order
    assert LatticeCase(SHARED, SHAPE).prepare()() > 0


def test_the_whole_lattice_is_left_out_where_it_is_too_large(forking):
    settings = MeasureSettings(rounds=2, slow_rounds=1)
    rows, findings = lattice_rows([SHAPE], "cpu", 1e9, settings)
    assert [row.name for row in rows] == [lattice_kl.OURS, SHARED, lattice_kl.RNNT, WHOLE]
    assert len(findings) == 3 and all(finding.met is None and finding.value > 0 for finding in findings)
    rows, _ = lattice_rows([SHAPE], "cpu", 1, settings)
    assert WHOLE not in [row.name for row in rows]


def test_the_targets_are_those_of_one_shape(monkeypatch):
    seconds = {lattice_kl.OURS: 0.02, SHARED: 0.015, lattice_kl.RNNT: 0.01, WHOLE: 0.5}
    measured = {name: Measured([each], None, PeakMemory(10**8)) for name, each in seconds.items()}
    monkeypatch.setattr(lattice_kl, "measure", lambda cases, settings, title: measured)
    _, findings = lattice_rows([LossShape(*SPEED_SHAPE)], "cpu", 1e9, MeasureSettings())
    assert [finding.met for finding in findings] == [True, False, False]
    assert [finding.value for finding in findings] == pytest.approx([2.0, 25.0, 1e8 / 12529600])


# ---- TDT ------------------------------------------------------------------------------------------------------------


@pytest.mark.nemo
def test_our_tdt_loss_and_nemos_are_one():
    names = [tdt_loss.OURS, OUR_VALUE, tdt_loss.NEMO, NEMO_VALUE]
    values = [TDTCase(name, SHAPE).prepare()() for name in names]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-5, atol=0)  # NeMo's recursion is in float32
    assert "cuda" in repr(torch.Tensor.cuda)  # as it was


def test_nemos_tdt_loss_is_measured_where_it_can_be():
    def found(shape: LossShape, device: str = "cpu", largest: float = 1e9) -> list[str]:
        return [case.name for case in tdt_cases(shape, device, largest)][3:]

    assert found(SHAPE) == [NEMO_VALUE, tdt_loss.NEMO] and found(SHAPE, largest=1) == []
    assert found(LossShape(*SPEED_SHAPE)) == [NEMO_VALUE]  # its gradient would take hours
    assert found(LossShape(*SPEED_SHAPE), "cuda") == [NEMO_ON_GPU]
    assert tdt_loss.named_shapes("cpu")[0] == tdt_loss.named_shapes("cuda")[0] == LossShape(*SPEED_SHAPE)
    assert tdt_loss.named_shapes("cuda")[1] == LossShape(*GPU_SHAPE)


@pytest.mark.nemo
def test_tdt_rows_have_ratios_to_the_rnnt_loss_and_findings_against_nemos(forking):
    rows, findings = tdt_rows([SHAPE], "cpu", 1e9, MeasureSettings(rounds=2, slow_rounds=1))
    assert [row.name for row in rows] == [tdt_loss.OURS, OUR_VALUE, tdt_loss.RNNT, NEMO_VALUE, tdt_loss.NEMO]
    assert rows[2].ratio == 1.0 and rows[0].sizes["durations"] == 5 and rows[0].held_bytes == 4 * 2 * 12 * 15
    assert [finding.met for finding in findings] == [None] * len(findings)
    assert len(findings) == 4 and findings[0].value > 1


def test_tdt_targets_stand_at_the_shape_they_were_set_for():
    costs = {tdt_loss.OURS: (0.02, 10), OUR_VALUE: (0.01, 5), NEMO_VALUE: (2.0, 200)}
    measured = {name: Measured([seconds], None, PeakMemory(peak)) for name, (seconds, peak) in costs.items()}
    times, memory = tdt_findings(LossShape(*SPEED_SHAPE), measured, "cpu")
    assert (times.value, times.met, memory.value, memory.met) == (200.0, True, 20.0, False)
    assert [finding.met for finding in tdt_findings(SHAPE, measured, "cpu")] == [None, None]
