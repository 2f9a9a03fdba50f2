"""The additive RNN-T loss against the plain float64 recursion, NeMo's loss, and what must not change it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_codert.losses import additive_float64, additive_rnnt_loss, valid_frames
from nemo_codert.losses.cpu import additive as cpu_additive
from nemo_codert.losses.float32_products import full_precision
from tests.reference.rnnt_recursion import additive_losses

pytestmark = pytest.mark.unit

SHAPES = [(2, 12, 5, 16), (3, 7, 4, 5), (2, 1, 3, 4), (2, 6, 0, 7), (1, 1, 0, 2), (3, 6, 4, 2), (2, 9, 3, 600)]
LOGITS = ("encoder_logits", "prediction_logits")


def random_batch(
    B: int = 3, T: int = 7, U: int = 4, V: int = 5, scale: float = 1.0, disagreement: float = 0.0, seed: int = 0
) -> dict:
    """Arguments of `additive_rnnt_loss`, ragged, the first utterance the longest.

    disagreement raises one class of the encoder logits and another of the prediction logits, so that the product of
    exponentials shifted by their maxima is near exp(-disagreement).
    """
    generator = torch.Generator().manual_seed(seed)
    encoder_logits = scale * torch.randn(B, T, V + 1, generator=generator)
    prediction_logits = scale * torch.randn(B, U + 1, V + 1, generator=generator)
    encoder_logits[..., 0] += disagreement
    prediction_logits[..., 1] += disagreement
    return {
        "encoder_logits": encoder_logits,
        "prediction_logits": prediction_logits,
        "targets": torch.randint(0, V, (B, U), generator=generator),
        "encoded_lengths": torch.randint(1, T + 1, (B,), generator=generator).index_fill_(0, torch.tensor([0]), T),
        "target_lengths": torch.randint(0, U + 1, (B,), generator=generator).index_fill_(0, torch.tensor([0]), U),
        "blank": V,
    }


def loss_and_gradients(batch: dict, upstream: float = 1.0, **options: float | str) -> tuple[torch.Tensor, ...]:
    """The loss, and the gradients of upstream times its sum with respect to both logits."""
    leaves = {name: batch[name].detach().clone().requires_grad_() for name in LOGITS}
    loss = additive_rnnt_loss(**(batch | leaves), **options)
    (upstream * loss.sum()).backward()
    return loss.detach(), *(leaf.grad for leaf in leaves.values())


@contextmanager
def by_torch() -> Iterator[None]:
    """In this block additive losses on the CPU are computed by torch's functions, as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nemo_codert.losses.additive_rnnt.additive_loss", lambda dtype: None)
        yield


def in_float64(batch: dict) -> tuple[torch.Tensor, ...]:
    """The same in float64, which agrees with the recursion to 1e-11 and is thousands of times quicker."""
    return loss_and_gradients(batch | {name: batch[name].double() for name in LOGITS}, reduction="none")


def reference(batch: dict, upstream: float = 1.0) -> tuple[torch.Tensor, ...]:
    """The same for per-utterance losses by the recursion, float64."""
    leaves = {name: batch[name].detach().double().requires_grad_() for name in LOGITS}
    losses = additive_losses(**(batch | leaves))
    (upstream * losses.sum()).backward()
    return losses.detach(), *(leaf.grad for leaf in leaves.values())


def fill_padding(batch: dict, garbage: float) -> dict:
    """The batch with everything beyond the lengths overwritten, targets with -100."""
    lengths = dict(zip(LOGITS, (batch["encoded_lengths"], batch["target_lengths"] + 1), strict=True))
    filled = {name: batch[name].clone() for name in LOGITS}
    for name, logits in filled.items():
        logits[~valid_frames(lengths[name], logits.shape[1])] = garbage
    beyond = ~valid_frames(batch["target_lengths"], batch["targets"].shape[1])
    return batch | filled | {"targets": batch["targets"].masked_fill(beyond, -100)}


def assert_exact(
    results: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], tolerance: float = 1e-6
) -> None:
    """Within the tolerance: of each loss, and of the largest entry of each gradient.

    Of a millionth at most 5e-7 was seen, mostly 5e-8.
    """
    loss, *gradients = results
    torch.testing.assert_close(loss.double(), expected[0], rtol=tolerance, atol=0)
    for gradient, wanted in zip(gradients, expected[1:], strict=True):
        atol = tolerance * wanted.abs().max().item()
        torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("B, T, U, V", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0, 100.0])
def test_value_and_gradients_match_the_recursion_at_any_scale(B, T, U, V, scale):
    batch = random_batch(B, T, U, V, scale)
    losses, *gradients = loss_and_gradients(batch, upstream=2.5, reduction="none")
    expected_losses, *expected = reference(batch, upstream=2.5)
    assert_exact((losses, *gradients), (expected_losses, *expected))


@pytest.mark.parametrize("B, T, U, V", [shape for shape in SHAPES if shape[3] > 2])
@pytest.mark.parametrize("disagreement", [8.0, 14.0, 18.0, 22.0, 50.0, 200.0, 1000.0])
def test_maxima_that_disagree_do_not_underflow_unseen(B, T, U, V, disagreement):
    batch = random_batch(B, T, U, V, disagreement=disagreement)
    losses, *gradients = loss_and_gradients(batch, upstream=2.5, reduction="none")
    expected_losses, *expected = reference(batch, upstream=2.5)
    assert_exact((losses, *gradients), (expected_losses, *expected))


@pytest.mark.parametrize("disagreement, margin", [
    (12.0, 10.0), (14.0, 0.0), (16.0, 10.0), (17.0, 0.0), (17.0, 10.0), (18.0, 0.0), (19.0, 10.0)
])  # fmt: skip
def test_many_small_terms_are_not_lost_beside_two_large_ones(disagreement, margin):
    """Float32 sums of 1024 terms drop those that are below the last bit of e^17; every frame then errs alike."""
    batch = random_batch(2, 20, 5, 1024, scale=0.3, disagreement=disagreement)
    batch = dominated_by_blank(batch, margin)
    assert_exact(loss_and_gradients(batch, reduction="none"), reference(batch))


@pytest.mark.parametrize("raised", ["in every frame", "in every state", "in both", "another one in every state"])
@pytest.mark.parametrize("V", [600, 4096])
@pytest.mark.parametrize("excess", [16.0, 17.5])
def test_many_small_terms_are_not_lost_beside_a_class_that_is_no_token(excess, V, raised):
    """The same where no float64 column holds the large term: the row and column sums of Z tell."""
    batch = random_batch(2, 40, 10, V, scale=0.05)
    encoder_logits, prediction_logits = (batch[name] for name in LOGITS)
    batch["targets"] = batch["targets"].clamp(min=20)
    if raised == "in every frame":
        encoder_logits[..., 3] += excess
    elif raised == "in every state":
        prediction_logits[..., 3] += excess
    elif raised == "in both":
        encoder_logits[..., 3] += excess / 2
        prediction_logits[..., 3] += excess / 2
    else:
        states = torch.arange(11)
        prediction_logits[:, states, 3 + states] += excess
    assert_exact(loss_and_gradients(batch, reduction="none"), in_float64(batch))


def one_frame_sure_of_no_token(T: int, U: int, margin: float, frame: int) -> dict:
    """A batch dominated by blank, but in one frame by a class that is no token."""
    batch = dominated_by_blank(random_batch(2, T, U, 600, scale=0.05, seed=1), margin)
    batch["encoder_logits"][:, frame, 3] += margin + 4.0
    return batch | {"targets": batch["targets"].clamp(min=5)}


@pytest.mark.parametrize("T, frame", [(400, 0), (400, 200), (1000, 0)])
@pytest.mark.parametrize("margin", [16.0, 16.5, 17.5])
def test_many_frames_are_not_lost_beside_one(margin, T, frame):
    """In the gradient of the prediction's logits, a float32 sum over frames, 32 at a time."""
    batch = one_frame_sure_of_no_token(T, 3, margin, frame)
    assert_exact(loss_and_gradients(batch, reduction="none"), in_float64(batch))


@pytest.mark.parametrize("wanted", LOGITS)
def test_one_gradient_alone_is_the_same(wanted):
    batch = random_batch()
    gradients = dict(zip(LOGITS, loss_and_gradients(batch)[1:], strict=True))
    logits = {name: batch[name].clone().requires_grad_(name == wanted) for name in LOGITS}
    additive_rnnt_loss(**batch | logits).backward()
    torch.testing.assert_close(logits[wanted].grad, gradients[wanted], rtol=0, atol=0)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_a_row_that_is_shifted_beside_one_that_is_not_is_exact_too(seed, swapped):
    """All of Z is then terms that the shifted row rounds: 36 below its maximum, while the other row reaches +20."""
    batch = random_batch(B=2, T=3, U=2, V=6, seed=seed)
    shifted, other = (0.3 * batch[name] for name in (reversed(LOGITS) if swapped else LOGITS))
    shifted += torch.tensor([21.0 + 2 * seed, *[21.0 + 2 * seed - 35.9] * 6])
    other = other.clamp(-1, 0) + torch.tensor([-60.0, *[20.0] * 6])
    names = reversed(LOGITS) if swapped else LOGITS
    batch |= dict(zip(names, (shifted, other), strict=True)) | {"targets": batch["targets"] % 5 + 1}
    losses, *gradients = loss_and_gradients(batch, upstream=2.5, reduction="none")
    expected_losses, *expected = reference(batch, upstream=2.5)
    assert_exact((losses, *gradients), (expected_losses, *expected))


def dominated_by_blank(batch: dict, margin: float) -> dict:
    """The batch with the blank's encoder logits raised by margin."""
    encoder_logits = batch["encoder_logits"].clone()
    encoder_logits[..., batch["blank"]] += margin
    return batch | {"encoder_logits": encoder_logits}


def one_hot_confident(batch: dict, margin: float) -> dict:
    """The batch with one path through the lattice nearly certain: its loss is of the size of exp(-margin / 2)."""
    encoder_logits, prediction_logits = (0.3 * batch[name] for name in LOGITS)
    encoder_logits[..., batch["blank"]] += margin / 2
    for b, (frames, tokens) in enumerate(zip(batch["encoded_lengths"], batch["target_lengths"], strict=True)):
        prediction_logits[b, tokens, batch["blank"]] += margin
        for u in range(int(tokens)):
            prediction_logits[b, u, batch["targets"][b, u]] += margin
            encoder_logits[b, (u + 1) * int(frames) // (int(tokens) + 2), batch["targets"][b, u]] += margin
    return batch | dict(zip(LOGITS, (encoder_logits, prediction_logits), strict=True))


CERTAIN = [(dominated_by_blank, 10.0), (dominated_by_blank, 30.0), (dominated_by_blank, 100.0)]
CERTAIN += [(one_hot_confident, 10.0), (one_hot_confident, 20.0), (one_hot_confident, 30.0)]


@pytest.mark.parametrize("make, margin, V", [
    *((*how, V) for how in CERTAIN for V in (2, 16)), *((*how, 1024) for how in CERTAIN[::2]),
    (dominated_by_blank, 100.0, 4096), (one_hot_confident, 30.0, 4096),
])  # fmt: skip
def test_lattices_that_are_nearly_certain_are_exact_too(V, make, margin):
    # A loss of 1e-6 is what is left of sums near 1: float32 sums, or float64 ones of rounded terms, would lose it.
    batch = make(random_batch(2, 24, 6, V), margin)
    assert_exact(loss_and_gradients(batch, reduction="none"), reference(batch))


@pytest.mark.parametrize("B, T, U, V", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_match_the_recursion_of_the_same_numbers(B, T, U, V, scale, dtype):
    batch = random_batch(B, T, U, V, scale)
    batch |= {name: batch[name].to(dtype) for name in LOGITS}
    loss, *gradients = loss_and_gradients(batch, reduction="none")
    expected_loss, *expected = reference(batch)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=0)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert gradient.dtype == dtype  # the last rounding is to that type
        tolerance = max(1e-6, torch.finfo(dtype).eps) * wanted.abs().max().item()
        torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("offset", [-300.0, 19.0, 21.0, 300.0])
def test_logits_far_from_zero_are_exact_too(offset):
    batch = random_batch(V=600)
    batch["encoder_logits"] += offset
    assert_exact(loss_and_gradients(batch, reduction="none"), reference(batch))


def test_targets_that_repeat_share_one_column():
    batch = random_batch(V=5, U=8)
    batch["targets"] = torch.tensor([[1, 1, 1, 0, 0, 1, 2, 1]]).expand(3, -1)
    assert_exact(loss_and_gradients(batch, reduction="none"), reference(batch))


@pytest.mark.parametrize("disagreement", [0.0, 200.0, 1000.0])
def test_float64_logits_are_computed_in_float64(disagreement):
    batch = random_batch(disagreement=disagreement)
    batch |= {name: batch[name].double() for name in LOGITS}
    results = loss_and_gradients(batch, reduction="none")
    # float64 sums of 6 terms at logits of up to 1000, whose ulp is 1e-13; 1.3e-12 relative seen
    for result, wanted in zip(results, reference(batch), strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-11, atol=1e-11)


@pytest.fixture
def redone(monkeypatch) -> list[int]:
    """Of each utterance that is computed again in float64: the cells where even that underflows."""
    cells = []
    log_z = additive_float64.Utterance.log_z

    def spy(utterance: additive_float64.Utterance) -> torch.Tensor:
        cells.append(sum(len(t) for t, _ in utterance.cells))
        return log_z(utterance)

    monkeypatch.setattr(additive_float64.Utterance, "log_z", spy)
    return cells


@pytest.mark.parametrize("disagreement, cells", [(10.0, []), (200.0, [0]), (1000.0, [7 * 5])])
def test_only_what_float32_would_get_wrong_is_redone(redone, disagreement, cells):
    # Without this the tests above could pass by redoing everything, or by never reaching the redone cells.
    batch, apart = random_batch(), random_batch(disagreement=disagreement)
    batch |= {name: torch.cat([apart[name][:1], batch[name][1:]]) for name in LOGITS}
    losses, *gradients = loss_and_gradients(batch, reduction="none")
    assert redone == cells
    assert_exact((losses, *gradients), reference(batch))


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_an_utterance_is_redone_where_a_sum_lost_terms_and_there_alone(redone, scale):
    batch = random_batch(3, 40, 10, 1024, scale)
    loss_and_gradients(batch)
    assert not redone
    batch["encoder_logits"][1, ..., 3] += 17.5
    batch["targets"] = batch["targets"].clamp(min=4)
    loss_and_gradients(batch)
    assert len(redone) == 1


def test_cells_summed_one_chunk_at_a_time_give_the_same(monkeypatch):
    batch = random_batch(disagreement=1000.0)
    expected = loss_and_gradients(batch)
    monkeypatch.setattr(additive_float64, "CELL_CHUNK_ELEMENTS", 17)  # two cells of six classes
    # Same float64 additions in the same order, then rounded to float32
    torch.testing.assert_close(loss_and_gradients(batch), expected, rtol=0, atol=0)


@pytest.mark.parametrize("disagreement", [0.0, 200.0, 1000.0])
def test_the_gradient_is_the_derivative_in_float64(disagreement):
    batch = random_batch(B=2, T=4, U=2, V=3, disagreement=disagreement)
    leaves = [batch.pop(name).double().requires_grad_() for name in LOGITS]
    weights = torch.tensor([2.5, -0.5], dtype=torch.float64)
    # At logits of 1000 a central difference of 1e-6 resolves 1e-7.
    assert torch.autograd.gradcheck(lambda e, g: weights @ additive_rnnt_loss(e, g, **batch, reduction="none"), leaves,
                                    atol=1e-5 if disagreement < 500 else 1e-4)  # fmt: skip


def test_a_second_backward_pass_gives_the_same_gradient():
    batch = random_batch(disagreement=200.0)
    leaf = batch["encoder_logits"].requires_grad_()
    loss = additive_rnnt_loss(**batch)
    first = torch.autograd.grad(loss, leaf, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf), first, rtol=0, atol=0)


@pytest.mark.parametrize("blank", [0, 2, 5])
def test_the_blank_may_be_any_class(blank):
    batch = random_batch(scale=3.0)
    order = [*range(blank), 5, *range(blank, 5)]  # class 5, the blank, is moved to index `blank`
    moved = {name: batch[name][..., order] for name in LOGITS}
    moved |= {"targets": batch["targets"] + (batch["targets"] >= blank).long(), "blank": blank}
    losses, *gradients = loss_and_gradients(batch | moved)
    expected_losses, *expected = loss_and_gradients(batch)
    # Another order of six float32 terms; 1e-7 seen
    torch.testing.assert_close(losses, expected_losses, rtol=1e-6, atol=0)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted[..., order], rtol=0, atol=2e-6)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("disagreement", [0.0, 200.0, 1000.0])
def test_garbage_in_the_padding_changes_nothing_and_gets_no_gradient(garbage, disagreement):
    batch = random_batch(disagreement=disagreement)
    expected_loss, *expected = loss_and_gradients(batch)
    dirty = fill_padding(batch, garbage)
    for name, extra in zip(LOGITS, (3, 2), strict=True):  # beyond the longest utterance too
        dirty[name] = torch.nn.functional.pad(dirty[name], (0, 0, 0, extra), value=garbage)
    dirty["targets"] = torch.nn.functional.pad(dirty["targets"], (0, 2), value=-100)
    loss, *gradients = loss_and_gradients(dirty)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=0)
    lengths = batch["encoded_lengths"], batch["target_lengths"] + 1
    for gradient, wanted, length in zip(gradients, expected, lengths, strict=True):
        torch.testing.assert_close(gradient[:, : wanted.shape[1]], wanted, rtol=0, atol=0)
        assert not gradient[~valid_frames(length, gradient.shape[1])].any()


def test_nothing_is_compiled_again_for_other_shapes_layouts_or_types_of_numbers():
    loss_and_gradients(random_batch())
    kernels = cpu_additive.additive_kernel, cpu_additive.gradient_kernel
    compiled = [len(kernel.signatures) for kernel in kernels]
    for B, T, U, V in ((1, 1, 0, 2), (1, 7, 3, 5), (2, 3, 0, 9), (3, 40, 12, 1400)):
        batch = random_batch(B, T, U, V)
        loss_and_gradients(batch, reduction="sum", fastemit_lambda=0)
        loss_and_gradients(batch | {"blank": np.int32(V)}, fastemit_lambda=np.float32(0.5))
        loss_and_gradients(batch | {"encoder_logits": batch["encoder_logits"][:1].expand(B, -1, -1)})
        loss_and_gradients(batch | {"encoder_logits": batch["encoder_logits"].mT.contiguous().mT})
        loss_and_gradients(batch | {name: batch[name].int() for name in ("targets", "encoded_lengths")})
        loss_and_gradients(batch | {name: batch[name].bfloat16() for name in LOGITS})
    assert [len(kernel.signatures) for kernel in kernels] == compiled


def test_gradients_of_some_rows_at_a_time_and_sums_of_many_terms_are_exact_too():
    batch = random_batch(2, 70, 40, 5000)  # three times 32 rows, of three times 32 terms; twenty products for Z
    with by_torch():
        expected = in_float64(batch)
    assert_exact(loss_and_gradients(batch, reduction="none"), expected)


@pytest.mark.parametrize("name", LOGITS)
def test_a_class_that_cannot_be_is_left_out(name):
    batch = random_batch(V=9)
    batch["targets"] = batch["targets"] % 4 + 5
    batch[name][:, :, 2] = -math.inf
    smaller = batch | {side: batch[side][:, :, [*range(2), *range(3, 10)]] for side in LOGITS}
    smaller |= {"targets": batch["targets"] - 1, "blank": batch["blank"] - 1}
    loss, *gradients = loss_and_gradients(batch)
    expected, *others = loss_and_gradients(smaller)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for gradient, wanted in zip(gradients, others, strict=True):
        assert not gradient[:, :, 2].any()
        torch.testing.assert_close(gradient[:, :, [*range(2), *range(3, 10)]], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("T, U, V", [(33, 4, 384), (65, 33, 7)])
def test_remainders_of_one_are_exact_too(T, U, V):
    batch = random_batch(2, T, U, V)  # of sums over classes, frames and states
    assert_exact(loss_and_gradients(batch, reduction="none"), reference(batch))


@pytest.mark.parametrize("threads", [1, 2])
def test_one_utterance_alone_is_exact_too(threads):
    batch, before = random_batch(1, 40, 9, 3000), torch.get_num_threads()
    torch.set_num_threads(threads)  # the products' own, where there is one utterance
    try:
        assert_exact(loss_and_gradients(batch, reduction="none"), in_float64(batch))
    finally:
        torch.set_num_threads(before)


def test_a_target_that_cannot_be_has_an_infinite_loss():
    batch = random_batch()
    batch["encoder_logits"][0, :, batch["targets"][0, 0]] = -math.inf
    losses = additive_rnnt_loss(**batch, reduction="none")
    assert losses[0] == math.inf and losses[1:].isfinite().all()


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("place", [0, 3, 5, 36])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_nan_shows_in_its_own_utterance_alone(name, place, number):
    batch = random_batch(V=36)
    batch[name][0, 2, place] = number
    losses, *gradients = loss_and_gradients(batch, reduction="none")
    assert losses.isnan().tolist() == [True, False, False]
    assert all(gradient[0].isnan().any() and gradient[1:].isfinite().all() for gradient in gradients)


def test_the_order_of_the_utterances_does_not_matter():
    batch = random_batch(B=4, disagreement=30.0)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {name: value[order] if torch.is_tensor(value) else value for name, value in batch.items()}
    expected = loss_and_gradients(batch, reduction="none")
    for result, wanted in zip(loss_and_gradients(shuffled, reduction="none"), expected, strict=True):
        # Each utterance has its own product; nothing but its place in the batch moves. 0 seen
        torch.testing.assert_close(result, wanted[order], rtol=1e-6, atol=1e-6)


def test_a_constant_added_to_a_frame_or_a_state_changes_nothing():
    batch = random_batch()
    moved = {name: batch[name] + 8 * torch.randn(*batch[name].shape[:2], 1) for name in LOGITS}
    for result, wanted in zip(loss_and_gradients(batch | moved), loss_and_gradients(batch), strict=True):
        # Adding up to 25 rounds the float32 logits by 1e-6 each; 1e-6 seen
        torch.testing.assert_close(result, wanted, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_with_gradients_in_its_own_type(dtype):
    half = random_batch()
    half |= {name: half[name].to(dtype) for name in LOGITS}
    loss, *gradients = loss_and_gradients(half)
    single_loss, *single = loss_and_gradients(half | {name: half[name].float() for name in LOGITS})
    torch.testing.assert_close(loss, single_loss, rtol=0, atol=0)
    for gradient, wanted in zip(gradients, single, strict=True):
        torch.testing.assert_close(gradient, wanted.to(dtype), rtol=0, atol=0)


def test_views_of_other_layouts_are_taken():
    batch = random_batch()
    turned = {name: batch[name].transpose(1, 2).contiguous().transpose(1, 2) for name in LOGITS}
    assert not turned["encoder_logits"].is_contiguous()
    for result, wanted in zip(loss_and_gradients(batch | turned), loss_and_gradients(batch), strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=0)


def test_integer_types_of_targets_and_lengths_do_not_matter():
    batch = random_batch()
    narrow = {name: batch[name].int() for name in ("targets", "encoded_lengths", "target_lengths")}
    torch.testing.assert_close(loss_and_gradients(batch | narrow), loss_and_gradients(batch), rtol=0, atol=0)


@pytest.fixture
def reduced_precision_products() -> Iterator[None]:
    """TF32 and bfloat16 products allowed, as many training scripts do."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def test_no_setting_reduces_the_precision(reduced_precision_products):
    batch = random_batch(T=40, U=20, V=300)
    expected = loss_and_gradients(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = loss_and_gradients(batch)
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    assert_exact(loss_and_gradients(batch, reduction="none"), reference(batch))


def test_torchs_products_stay_float32_under_autocast_and_reduced_precision(monkeypatch, reduced_precision_products):
    batch = random_batch(T=40, U=20, V=300)
    with by_torch():
        expected = loss_and_gradients(batch)
    seen, bmm = [], torch.bmm

    def spy(*factors: torch.Tensor) -> torch.Tensor:
        product = bmm(*factors)
        precisions = (torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)
        seen.append((*precisions, product.dtype))
        return product

    monkeypatch.setattr(torch, "bmm", spy)
    with by_torch(), torch.autocast("cpu", dtype=torch.bfloat16):
        results = loss_and_gradients(batch)
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    products = [precisions for *precisions, dtype in seen if dtype == torch.float32]
    assert products == [["ieee", "ieee"]] * 3  # the normaliser's and one for each gradient
    assert {dtype for *_, dtype in seen} == {torch.float32, torch.float64}
    assert torch.get_float32_matmul_precision() == "medium"


def test_precisions_are_set_back_by_the_last_thread_that_leaves(reduced_precision_products):
    first, second = full_precision("cpu"), full_precision("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    second.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("wide", LOGITS)
def test_one_side_in_float64_makes_it_a_float64_loss(wide):
    batch = random_batch()
    batch[wide] = batch[wide].double()
    loss, *gradients = loss_and_gradients(batch)
    assert loss.dtype == torch.float64
    assert [gradient.dtype for gradient in gradients] == [batch[name].dtype for name in LOGITS]
    losses, *expected = reference(batch, 1 / 3)
    assert_exact((loss, *gradients), (losses.mean(), *expected))


def test_no_tensor_grows_with_the_vocabulary_times_the_lattice():
    class LargestTensor(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            result = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if torch.is_tensor(tensor):
                    self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
            return result

    with LargestTensor() as largest:
        loss_and_gradients(random_batch(B=2, T=50, U=30, V=400))
    assert largest.elements == 2 * 50 * 401


@pytest.mark.parametrize("change, message", [
    ({"encoder_logits": torch.zeros(3, 7, 9)}, r"\(3, 7, 9\), \(3, 5, 6\)"),
    ({"prediction_logits": torch.zeros(2, 5, 6)}, r"\(3, 7, 6\), \(2, 5, 6\)"),
    ({"prediction_logits": torch.zeros(3, 6)}, r"\(3, 6\)"),
    ({"targets": torch.zeros(3).long()}, r"\[3, U\].*\(3,\)"),
    ({"encoded_lengths": torch.tensor([7, 3])}, r"encoded_lengths must have shape \(3,\).*\(2,\)"),
    ({"encoded_lengths": torch.tensor([7, 3, 0])}, r"between 1 and 7, got \[7, 3, 0\]"),
    ({"encoded_lengths": torch.tensor([8, 3, 1])}, "between 1 and 7"),
    ({"target_lengths": torch.tensor([4, 5, 0])}, "target_lengths must lie between 0 and 4"),
    ({"target_lengths": torch.tensor([4, -1, 0])}, "target_lengths must lie between 0 and 4"),
    ({"blank": 6}, "blank must lie between 0 and V = 5, got 6"),
    ({"targets": torch.full((3, 4), 5)}, r"differ from blank = 5, got \[5\]"),
    ({"targets": torch.full((3, 4), 6)}, r"got \[6\]"),
    ({"targets": torch.full((3, 4), -1)}, r"got \[-1\]"),
    ({"reduction": "average"}, "got 'average'"),
    ({"fastemit_lambda": -1.0}, "got -1.0"),
])  # fmt: skip
def test_bad_arguments_are_refused_with_what_was_got(change, message):
    with pytest.raises(ValueError, match=message):
        additive_rnnt_loss(**(random_batch() | change))


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one utterance"):
        additive_rnnt_loss(**random_batch(B=1) | {
            "encoder_logits": torch.zeros(0, 7, 6), "prediction_logits": torch.zeros(0, 5, 6),
            "targets": torch.zeros(0, 4).long(), "encoded_lengths": torch.zeros(0).long(),
            "target_lengths": torch.zeros(0).long(),
        })  # fmt: skip


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "mean_batch", "mean_volume"])
@pytest.mark.parametrize("fastemit_lambda", [0.0, 0.01])
def test_nemo_gives_the_same_value_and_gradients(reduction, fastemit_lambda):
    rnnt = pytest.importorskip("nemo.collections.asr.losses.rnnt", reason="NeMo is the second witness")
    batch = random_batch(B=3, T=8, U=4, V=6)
    batch["target_lengths"] = torch.tensor([4, 2, 1])  # NeMo divides by the target length
    results = loss_and_gradients(batch, upstream=2.5, reduction=reduction, fastemit_lambda=fastemit_lambda)
    leaves = {name: batch[name].clone().requires_grad_() for name in LOGITS}
    loss = rnnt.RNNTLoss(
        num_classes=6,
        reduction=None if reduction == "none" else reduction,
        loss_name="warprnnt_numba",
        loss_kwargs={"fastemit_lambda": fastemit_lambda},
    )(
        log_probs=leaves["encoder_logits"][:, :, None] + leaves["prediction_logits"][:, None],
        targets=batch["targets"],
        input_lengths=batch["encoded_lengths"],
        target_lengths=batch["target_lengths"],
    )
    (2.5 * loss.sum()).backward()
    wanted = loss.detach(), *(leaf.grad for leaf in leaves.values())
    # NeMo's recursion is float32; 7e-7 of the largest, 4e-6 absolute seen
    for result, expected in zip(results, wanted, strict=True):
        torch.testing.assert_close(result, expected, rtol=3e-6, atol=1e-5)
