"""The additive loss by torch's functions, as it is computed on a GPU, here on the CPU."""

from contextlib import nullcontext

import pytest
import torch

from nemo_codert.losses import additive_rnnt_loss
from tests.losses.test_additive_rnnt import (
    LOGITS,
    SHAPES,
    assert_exact,
    by_torch,
    fill_padding,
    loss_and_gradients,
    one_hot_confident,
    random_batch,
    reference,
)

pytestmark = pytest.mark.unit


def torchs_loss_and_gradients(batch: dict, **options: float | str) -> tuple[torch.Tensor, ...]:
    """`loss_and_gradients` by torch's functions."""
    with by_torch():
        return loss_and_gradients(batch, **options)


@pytest.mark.parametrize("B, T, U, V", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_value_and_gradients_match_the_recursion_at_any_scale(B, T, U, V, scale):
    batch = random_batch(B, T, U, V, scale)
    results = torchs_loss_and_gradients(batch, upstream=2.5, reduction="none")
    assert_exact(results, reference(batch, upstream=2.5))


@pytest.mark.parametrize("disagreement", [8.0, 22.0, 200.0, 1000.0])
def test_maxima_that_disagree_do_not_underflow_unseen(disagreement):
    batch = random_batch(2, 12, 5, 16, disagreement=disagreement)
    results = torchs_loss_and_gradients(batch, reduction="none")
    assert_exact(results, reference(batch))


def test_lattices_that_are_nearly_certain_and_targets_that_repeat_are_exact_too():
    batch = random_batch(2, 24, 6, 16)
    batch["targets"] = torch.tensor([[1, 1, 1, 0, 2, 1]]).expand(2, -1)
    for made in (batch, one_hot_confident(batch, 20.0)):
        results = torchs_loss_and_gradients(made, reduction="none")
        assert_exact(results, reference(made))


@pytest.mark.parametrize("disagreement", [0.0, 200.0])
def test_garbage_in_the_padding_changes_nothing(disagreement):
    batch = random_batch(disagreement=disagreement)
    dirty = fill_padding(batch, float("nan"))
    for result, expected in zip(*(torchs_loss_and_gradients(x) for x in (dirty, batch)), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "mean_batch", "mean_volume"])
@pytest.mark.parametrize("fastemit_lambda", [0.0, 0.25])
def test_the_compiled_loss_gives_the_same(reduction, fastemit_lambda):
    batch = random_batch(4, 9, 5, 7)
    batch["encoder_logits"][3, ..., 0] += 200.0  # computed in float64 as a whole
    batch["prediction_logits"][3, ..., 1] += 200.0
    options = {"reduction": reduction, "fastemit_lambda": fastemit_lambda, "upstream": 2.5}
    expected = torchs_loss_and_gradients(batch, **options)
    for result, wanted in zip(loss_and_gradients(batch, **options), expected, strict=True):
        # The same float32 products; rounded elsewhere in float64
        torch.testing.assert_close(result, wanted, rtol=1e-6, atol=1e-7 * wanted.abs().max().item())


@pytest.mark.parametrize("wanted", LOGITS)
def test_one_side_alone_may_want_its_gradient(wanted):
    batch = random_batch(disagreement=200.0)
    both = dict(zip(LOGITS, loss_and_gradients(batch)[1:], strict=True))
    leaf = batch[wanted].requires_grad_()
    for implementation in (nullcontext, by_torch):
        with implementation():
            gradient = torch.autograd.grad(additive_rnnt_loss(**batch), leaf)[0]
        torch.testing.assert_close(gradient, both[wanted], rtol=1e-6, atol=1e-7)
