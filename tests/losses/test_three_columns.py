"""The recursion handed to a kernel for whole lattices, against the float64 recursion of the package."""

import warnings

import pytest
import torch

from nemo_codert.losses import additive_rnnt_loss, three_column_loss
from nemo_codert.losses.three_columns import three_columns
from tests.losses.test_additive_rnnt import LOGITS, random_batch

nemo_compat = pytest.importorskip("nemo_codert.nemo_compat", reason="NeMo's kernel is what is handed in")


def nemo_kernel(fastemit_lambda: float = 0.0):  # noqa: ANN201
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    loss = RNNTLoss(5, loss_name="warprnnt_numba", loss_kwargs={"fastemit_lambda": fastemit_lambda})
    return nemo_compat.numba_cuda_kernel(loss)


def loss_and_gradients(batch: dict, device: str = "cpu", **options: object) -> tuple[torch.Tensor, ...]:
    """Losses [B] and the gradients of 2.5 times their sum, on the CPU."""
    leaves = {name: batch[name].detach().clone().to(device).requires_grad_() for name in LOGITS}
    loss = additive_rnnt_loss(**(batch | leaves), reduction="none", **options)
    (2.5 * loss.sum()).backward()
    return tuple(tensor.cpu() for tensor in (loss.detach(), *(leaf.grad for leaf in leaves.values())))


def assert_equal_to_float32(results: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    """NeMo's recursion is float32: 1e-4 of the largest; 2e-5 seen on the CPU."""
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("fastemit_lambda", [0.0, 0.01])
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("B, T, U, V", [(3, 12, 5, 16), (2, 6, 0, 7), (2, 1, 3, 4)])
def test_nemos_kernel_gives_the_value_and_gradient_of_the_exact_recursion(B, T, U, V, scale, fastemit_lambda):
    batch = random_batch(B, T, U, V, scale)
    lattice_loss = three_column_loss(nemo_kernel(fastemit_lambda))
    results = loss_and_gradients(batch, lattice_loss=lattice_loss, fastemit_lambda=fastemit_lambda)
    assert_equal_to_float32(results, loss_and_gradients(batch, fastemit_lambda=fastemit_lambda))


def test_a_value_without_gradient_has_fastemits_factor_too():
    batch = random_batch()
    options = {"reduction": "none", "fastemit_lambda": 0.1}
    loss = additive_rnnt_loss(**batch, **options, lattice_loss=three_column_loss(nemo_kernel(0.1)))
    torch.testing.assert_close(loss, additive_rnnt_loss(**batch, **options), rtol=1e-5, atol=1e-5)


def test_the_three_columns_are_a_distribution_and_finite_beyond_the_lengths():
    # A label that is certain leaves nothing for the rest: without the shift its logarithm would be -inf.
    label, blank = torch.tensor([[[0.0, -0.7]]]).double(), torch.tensor([[[-50.0, -0.7, -1.0]]]).double()
    lattice = three_columns(label, blank, torch.tensor([[[True, True, False]]]))
    assert lattice.shape == (1, 1, 3, 3) and lattice.isfinite().all()
    torch.testing.assert_close(lattice.exp().sum(3), torch.ones(1, 1, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: NeMo's Numba-CUDA kernel cannot run")
@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0, 100.0])
@pytest.mark.parametrize("B, T, U, V", [(3, 12, 5, 16), (4, 60, 20, 600), (2, 1, 3, 4)])
def test_on_a_gpu_loss_and_gradients_are_those_of_the_cpu(B, T, U, V, scale):
    batch = random_batch(B, T, U, V, scale)
    results = loss_and_gradients(batch, device="cuda", lattice_loss=three_column_loss(nemo_kernel()))
    assert_equal_to_float32(results, loss_and_gradients(batch))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0, 100.0])
def test_on_a_gpu_the_float64_recursion_is_exact(scale):
    batch = random_batch(4, 60, 20, 600, scale)
    for result, wanted in zip(loss_and_gradients(batch, device="cuda"), loss_and_gradients(batch), strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: nothing to wait for")
def test_the_host_waits_no_more_often_than_in_nemos_own_loss():
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    batch = {name: value.cuda() if torch.is_tensor(value) else value for name, value in random_batch().items()}
    encoder_logits, prediction_logits = (batch[name].requires_grad_() for name in LOGITS)
    lengths = {"input_lengths": batch["encoded_lengths"], "target_lengths": batch["target_lengths"]}
    nemos, ours = RNNTLoss(batch["blank"], loss_name="warprnnt_numba"), three_column_loss(nemo_kernel())

    def nemos_loss() -> torch.Tensor:
        lattice = encoder_logits[:, :, None] + prediction_logits[:, None]
        return nemos(log_probs=lattice, targets=batch["targets"], **lengths)

    waits = []
    for loss in (nemos_loss, lambda: additive_rnnt_loss(**batch, lattice_loss=ours)):
        loss().sum().backward()  # compiled
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                loss().sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(len(caught))
    assert waits[1] <= waits[0], waits
