"""The losses' CUDA path: its kernels in Numba's simulator anywhere, and the whole against the float64 recursion on a
GPU, where 1e-4 is asked for."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from nemo_codert.losses import (
    additive_lattice_kl,
    additive_rnnt_loss,
    additive_tdt_loss,
    chunked_joint_rnnt_loss,
    joint_tdt_loss,
    lattice,
    tdt_lattice,
)
from tests.losses import test_lattice_kl as lattice_kl
from tests.losses import test_tdt as tdt
from tests.losses.test_additive_rnnt import (
    LOGITS,
    SHAPES,
    dominated_by_blank,
    fill_padding,
    in_float64,
    loss_and_gradients,
    one_hot_confident,
    random_batch,
)
from tests.losses.test_additive_rnnt import assert_exact as exact_within

pytestmark = pytest.mark.unit


def gpu(test: Callable) -> Callable:
    """Mark a test that needs the device."""
    reason = "no CUDA device here: the kernels cannot run"
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)(test))


def test_the_kernels_give_the_cpus_losses_and_occupancies_in_the_simulator():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.losses.simulated_cuda"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert run.stdout.endswith("as on the CPU"), run.stderr


@pytest.mark.parametrize("available, found", [(True, ["kernels", "torch"]), (False, ["torch", "torch"])])
def test_torch_takes_what_the_kernels_cannot(monkeypatch, caplog, available, found):
    """More states than a block has threads, or a machine on which Numba cannot compile for CUDA."""
    from numba import cuda

    from nemo_codert.losses.cuda import lattice_kernels as cuda_kernels

    monkeypatch.setattr(cuda, "is_available", lambda: available)
    monkeypatch.setattr(cuda_kernels, "cuda_occupancies", lambda *_: "kernels")
    monkeypatch.setattr(lattice, "_torch_occupancies", lambda *_: "torch")
    lattice.has_cuda_kernels.cache_clear()
    lengths = torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    taken = [lattice._cuda_occupancies(torch.zeros(1, 1, u), torch.zeros(1, 1, u + 1), *lengths) for u in (511, 512)]
    lattice.has_cuda_kernels.cache_clear()
    assert taken == found and caplog.text.count("no CUDA toolkit") == (0 if available else 1)


@pytest.mark.parametrize("available, found", [(True, ["kernels", "torch"]), (False, ["torch", "torch"])])
def test_torch_takes_what_the_tdt_kernels_cannot(monkeypatch, available, found):
    from nemo_codert.losses.cuda import tdt_kernels

    monkeypatch.setattr(tdt_lattice, "has_cuda_kernels", lambda: available)
    monkeypatch.setattr(tdt_kernels, "cuda_tdt_occupancies", lambda *_: "kernels")
    monkeypatch.setattr(tdt_lattice, "_torch_occupancies", lambda *_: "torch")
    lengths = torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    taken = [tdt_lattice._cuda_occupancies(torch.zeros(1, 1, states, 3), *lengths, (1,)) for states in (512, 513)]
    assert taken == found


def to_cuda(batch: dict) -> dict:
    """The batch with its tensors on the GPU."""
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in batch.items()}


def on_cuda(batch: dict, **options: object) -> tuple[torch.Tensor, ...]:
    """Losses [B] and the gradients of their sum, computed on the GPU, on the CPU."""
    return tuple(each.cpu() for each in loss_and_gradients(to_cuda(batch), reduction="none", **options))


assert_exact = partial(exact_within, tolerance=1e-4)


@gpu
@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0, 100.0])
@pytest.mark.parametrize("B, T, U, V", [*SHAPES, (4, 60, 20, 600), (2, 300, 80, 4096)])
def test_value_and_gradients_match_the_recursion_at_any_scale(B, T, U, V, scale):
    batch = random_batch(B, T, U, V, scale)
    assert_exact(on_cuda(batch), in_float64(batch))


@gpu
@pytest.mark.parametrize("disagreement", [8.0, 14.0, 18.0, 22.0, 50.0, 200.0, 1000.0])
def test_maxima_that_disagree_do_not_underflow_unseen(disagreement):
    batch = random_batch(2, 12, 5, 16, disagreement=disagreement)
    assert_exact(on_cuda(batch), in_float64(batch))


@gpu
@pytest.mark.parametrize("make", [dominated_by_blank, one_hot_confident])
@pytest.mark.parametrize("margin", [10.0, 20.0])
def test_lattices_that_are_nearly_certain_are_exact_too(make, margin):
    batch = make(random_batch(2, 24, 6, 1024), margin)
    assert_exact(on_cuda(batch), in_float64(batch))


@gpu
@pytest.mark.parametrize("fastemit_lambda", [0.0, 0.25])
def test_fastemit_is_that_of_the_cpu(fastemit_lambda):
    batch = random_batch()
    expected = loss_and_gradients(batch, reduction="none", fastemit_lambda=fastemit_lambda)
    assert_exact(on_cuda(batch, fastemit_lambda=fastemit_lambda), tuple(each.double() for each in expected))


@gpu
@pytest.mark.parametrize("U", [511, 600])
def test_as_many_states_as_a_block_has_threads_and_more_are_exact_too(U):
    batch = random_batch(1, 20, U, 4)
    assert_exact(on_cuda(batch), in_float64(batch))


@gpu
def test_garbage_in_the_padding_changes_nothing():
    batch = random_batch()
    for result, expected in zip(on_cuda(fill_padding(batch, float("nan"))), on_cuda(batch), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


@gpu
def test_another_stream_than_the_default_is_followed():
    batch = random_batch(2, 60, 20, 64)
    with torch.cuda.stream(torch.cuda.Stream()):
        results = on_cuda(batch)
    assert_exact(results, in_float64(batch))


@gpu
def test_the_loss_of_any_joint_is_that_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    encoder, prediction, weight = (
        torch.randn(*shape, generator=generator) for shape in ((2, 9, 8), (2, 5, 8), (8, 17))
    )
    lengths = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([9, 6]), torch.tensor([4, 2])
    results = []
    for device in ("cpu", "cuda"):
        leaves = [each.clone().to(device).requires_grad_() for each in (encoder, prediction, weight)]
        loss = chunked_joint_rnnt_loss(
            lambda e, g, leaves=leaves: (e + g).tanh() @ leaves[2],
            *leaves[:2],
            *(each.to(device) for each in lengths),
            num_classes=17,
            blank=16,
            reduction="sum",
        )
        loss.backward()
        results.append([loss.detach().cpu()[None], *(leaf.grad.cpu() for leaf in leaves)])
    assert_exact(tuple(results[1]), tuple(each.double() for each in results[0]))


@gpu
def test_the_host_waits_no_more_often_than_in_nemos_own_loss():
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    batch = to_cuda(random_batch())
    encoder_logits, prediction_logits = (batch[name].requires_grad_() for name in LOGITS)
    lengths = {"input_lengths": batch["encoded_lengths"], "target_lengths": batch["target_lengths"]}
    nemos = RNNTLoss(batch["blank"], loss_name="warprnnt_numba")

    def nemos_loss() -> torch.Tensor:
        lattice_logits = encoder_logits[:, :, None] + prediction_logits[:, None]
        return nemos(log_probs=lattice_logits, targets=batch["targets"], **lengths)

    waits = []
    for loss in (nemos_loss, lambda: additive_rnnt_loss(**batch)):
        loss().sum().backward()  # compiled
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                loss().sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(warning.message) for warning in caught))
    assert waits[1] <= min(2, waits[0]), waits


# ---- divergence on the lattice --------------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("name", lattice_kl.SETTINGS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_divergence_on_the_lattice_is_that_of_brute_force(name, dtype, tolerance):
    given = lattice_kl.graphed(to_cuda(lattice_kl.batch(dtype=dtype)))
    plain = lattice_kl.graphed(
        {key: x.double() if x.is_floating_point() else x for key, x in lattice_kl.batch(dtype=dtype).items()}
    )
    chosen = lattice_kl.SETTINGS[name]
    value = additive_lattice_kl(**given, **to_cuda(chosen))
    expected = lattice_kl.brute_force(plain, chosen.get("node_weights"), chosen.get("temperature", 1.0))
    torch.testing.assert_close(value.cpu().double(), expected, rtol=tolerance, atol=0)
    value.backward()
    expected.backward()
    for side in lattice_kl.SIDES[:2]:
        torch.testing.assert_close(given[side].grad.cpu().double(), plain[side].grad, rtol=tolerance, atol=tolerance)
    assert all(given[side].grad is None for side in lattice_kl.SIDES[2:])


@gpu
def test_the_divergence_on_the_lattice_launches_as_many_kernels_at_any_size():
    counts = []
    for frames, tokens, classes in ((20, 5, 32), (200, 40, 1024)):
        generator = torch.Generator().manual_seed(0)
        sizes = (frames, tokens + 1) * 2
        sides = [torch.randn(4, size, classes, generator=generator).cuda().requires_grad_() for size in sizes]
        given = dict(zip(lattice_kl.SIDES, sides, strict=True))
        given |= {
            "encoded_lengths": torch.full((4,), frames).cuda(),
            "target_lengths": torch.full((4,), tokens).cuda(),
        }
        additive_lattice_kl(**given).backward()  # allocates
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            additive_lattice_kl(**given).backward()
            torch.cuda.synchronize()
        counts.append(sum(event.count for event in profile.key_averages() if "Mem" not in event.key))
    assert counts[0] == counts[1] < 200, counts


# ---- TDT ------------------------------------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0])
@pytest.mark.parametrize("durations", [tdt.WITH_0, tdt.WITHOUT_0, tdt.UNSORTED])
@pytest.mark.parametrize("B, T, U, V", [(3, 7, 4, 5), (2, 1, 0, 4), (4, 60, 20, 600)])
def test_the_tdt_losses_are_those_of_the_recursion(B, T, U, V, durations, scale):
    batch = tdt.random_batch(B, T, U, V, durations, scale)
    options = {"upstream": 2.5, "reduction": "none", "sigma": 0.05}
    for loss_of, given in ((additive_tdt_loss, batch), (joint_tdt_loss, tdt.joint_batch(batch))):
        wide = {name: value.double() if name.endswith("logits") else value for name, value in given.items()}
        found = tdt.results(loss_of, to_cuda(given), **options)
        assert_exact(tuple(each.cpu() for each in found), tdt.results(loss_of, wide, **options))


@gpu
def test_more_states_than_a_block_has_threads_have_a_tdt_loss_too():
    batch = tdt.random_batch(1, 20, 600, 4)
    wide = {name: value.double() if name.endswith("logits") else value for name, value in batch.items()}
    found = tdt.results(additive_tdt_loss, to_cuda(batch), reduction="none")
    assert_exact(tuple(each.cpu() for each in found), tdt.results(additive_tdt_loss, wide, reduction="none"))


@gpu
@pytest.mark.nemo
def test_nemos_tdt_agrees():
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    given = to_cuda(tdt.joint_batch(tdt.random_batch()))
    kwargs = {"durations": tdt.WITH_0, "sigma": 0.05, "fastemit_lambda": 0.1}
    nemos = RNNTLoss(given["blank"], loss_name="tdt", loss_kwargs=kwargs, reduction=None)

    def nemos_losses(joint_logits: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
        lengths = {"input_lengths": rest["encoded_lengths"], "target_lengths": rest["target_lengths"]}
        return nemos(log_probs=joint_logits, targets=rest["targets"], **lengths)

    expected = tdt.results(nemos_losses, given)
    found = tdt.results(joint_tdt_loss, given, reduction="none", sigma=0.05, fastemit_lambda=0.1)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)  # NeMo's recursion is in float32
