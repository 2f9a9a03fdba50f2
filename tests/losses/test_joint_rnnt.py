"""The RNN-T loss of materialised joint logits, against the plain recursion and the additive loss."""

import math

import pytest
import torch

from nemo_codert.losses import additive_rnnt_loss, chunked_joint_rnnt_loss, joint_rnnt, joint_rnnt_loss, valid_frames
from nemo_codert.losses.batch_checks import reduce_losses
from tests.reference.rnnt_recursion import joint_losses

pytestmark = pytest.mark.unit


def random_batch(B: int = 3, T: int = 7, U: int = 4, V: int = 5, scale: float = 1.0, blank: int | None = None) -> dict:
    """Arguments of `joint_rnnt_loss`: ragged, the longest utterance first."""
    generator = torch.Generator().manual_seed(0)
    blank = V if blank is None else blank
    targets = torch.randint(0, V, (B, U), generator=generator)
    return {
        "joint_logits": scale * torch.randn(B, T, U + 1, V + 1, generator=generator),
        "targets": targets + (targets >= blank).long(),
        "encoded_lengths": torch.randint(1, T + 1, (B,), generator=generator).index_fill_(0, torch.tensor([0]), T),
        "target_lengths": torch.randint(0, U + 1, (B,), generator=generator).index_fill_(0, torch.tensor([0]), U),
        "blank": blank,
    }


def gradient_of(batch: dict, upstream: float = 1.0, **options: float | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and the gradient of upstream times the loss with respect to the joint logits."""
    logits = batch["joint_logits"].detach().clone().requires_grad_()
    loss = joint_rnnt_loss(**(batch | {"joint_logits": logits}), **options)
    (upstream * loss.sum()).backward()
    return loss.detach(), logits.grad


def cells_beyond_the_lengths(batch: dict) -> torch.Tensor:
    """[B, T, U+1] bool."""
    _, T, M, _ = batch["joint_logits"].shape
    frames, states = valid_frames(batch["encoded_lengths"], T), valid_frames(batch["target_lengths"] + 1, M)
    return ~(frames[:, :, None] & states[:, None, :])


@pytest.mark.parametrize("B, T, U, V", [(2, 12, 5, 16), (3, 7, 4, 5), (2, 1, 3, 4), (2, 6, 0, 7), (3, 6, 4, 2)])
@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0, 100.0])
def test_value_and_gradient_match_the_recursion(B, T, U, V, scale):
    batch = random_batch(B, T, U, V, scale)
    losses, gradient = gradient_of(batch, upstream=2.5, reduction="none")
    logits = batch.pop("joint_logits").double().requires_grad_()
    expected = joint_losses(logits, **batch)
    (2.5 * expected.sum()).backward()
    # float32 sums over V+1 classes, the rest float64; 6e-8 (value) and 4e-7 (gradient) seen
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), logits.grad, rtol=0, atol=3e-6)


def test_it_is_the_derivative_in_float64():
    batch = random_batch()
    logits = batch.pop("joint_logits").double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: joint_rnnt_loss(x, **batch, reduction="none"), logits)


def test_the_blank_may_be_any_class():
    batch = random_batch(blank=2)
    losses, gradient = gradient_of(batch, reduction="none")
    moved = {**batch, "joint_logits": batch["joint_logits"][..., [0, 1, 3, 4, 5, 2]], "blank": 5}
    moved["targets"] = batch["targets"] - (batch["targets"] > 2).long()
    other_losses, other_gradient = gradient_of(moved, reduction="none")
    # another order of the same six float32 terms; 6e-8 seen
    torch.testing.assert_close(losses, other_losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient[..., [0, 1, 3, 4, 5, 2]], other_gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fastemit_lambda", [0.0, 0.01])
def test_it_is_the_additive_loss_where_the_joint_is_additive(fastemit_lambda):
    batch = random_batch()
    encoder_logits, prediction_logits = batch.pop("joint_logits")[:, :, 0].clone(), torch.randn(3, 5, 6)
    encoder_logits.requires_grad_()
    joint_logits = encoder_logits[:, :, None] + prediction_logits[:, None]
    gradients = []
    for loss in (
        joint_rnnt_loss(joint_logits, **batch, fastemit_lambda=fastemit_lambda),
        additive_rnnt_loss(encoder_logits, prediction_logits, **batch, fastemit_lambda=fastemit_lambda),
    ):
        gradients.append((loss.detach(), *torch.autograd.grad(loss, encoder_logits)))
    # float32 on both sides; 2e-7 seen
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_padding_is_never_read_and_gets_no_gradient(garbage):
    batch = random_batch()
    loss, gradient = gradient_of(batch)
    beyond = cells_beyond_the_lengths(batch)
    assert beyond.any()
    batch["joint_logits"].masked_fill_(beyond[..., None], garbage)
    batch["joint_logits"] = torch.nn.functional.pad(batch["joint_logits"], (0, 0, 0, 1, 0, 2), value=garbage)
    batch["targets"] = batch["targets"].masked_fill(~valid_frames(batch["target_lengths"], 4), -1)
    dirty_loss, dirty_gradient = gradient_of(batch)
    torch.testing.assert_close(dirty_loss, loss, rtol=0, atol=0)
    torch.testing.assert_close(dirty_gradient[:, :7, :5], gradient, rtol=0, atol=0)
    assert not dirty_gradient[cells_beyond_the_lengths(batch)].any()


def test_log_probabilities_may_stand_for_logits():
    batch = random_batch()
    loss, _ = gradient_of(batch)
    # normalised twice in float32; 0 seen
    torch.testing.assert_close(
        gradient_of(batch | {"joint_logits": batch["joint_logits"].log_softmax(-1)})[0], loss, rtol=1e-6, atol=0
    )


def test_a_class_masked_with_minus_infinity_has_no_part_in_it():
    batch = random_batch()
    loss, _ = gradient_of(batch)
    batch["joint_logits"] = torch.nn.functional.pad(batch["joint_logits"], (0, 1), value=-math.inf)
    masked_loss, gradient = gradient_of(batch)
    torch.testing.assert_close(masked_loss, loss, rtol=1e-6, atol=0)  # one more float32 summand of 0
    assert gradient.isfinite().all() and not gradient[..., -1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_with_a_gradient_in_its_own_type(dtype):
    batch = random_batch()
    half = batch | {"joint_logits": batch["joint_logits"].to(dtype)}
    single = batch | {"joint_logits": half["joint_logits"].float()}
    (loss, gradient), (single_loss, single_gradient) = gradient_of(half), gradient_of(single)
    torch.testing.assert_close(loss, single_loss, rtol=0, atol=0)
    torch.testing.assert_close(gradient, single_gradient.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("change, message", [
    ({"joint_logits": torch.zeros(3, 7, 6)}, r"\(3, 7, 6\)"),
    ({"targets": torch.zeros(2, 4).long()}, r"\[3, U\].*\(2, 4\)"),
    ({"encoded_lengths": torch.tensor([7, 8, 1])}, "encoded_lengths must lie between 1 and 7"),
    ({"encoded_lengths": torch.tensor([7, 0, 1])}, r"\[7, 0, 1\]"),
    ({"target_lengths": torch.tensor([5, 0, 1])}, "target_lengths must lie between 0 and 4"),
    ({"blank": 6}, "got 6"),
    ({"reduction": None}, "got None"),
])  # fmt: skip
def test_bad_arguments_are_refused_with_what_was_got(change, message):
    with pytest.raises(ValueError, match=message):
        joint_rnnt_loss(**(random_batch() | change))


def stock_joint(H: int = 6, V: int = 5, dropout: float = 0.0) -> torch.nn.Sequential:
    """What a stock RNN-T joint does to the sum of its projections."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout(dropout), torch.nn.Linear(H, V + 1))


def chunked_results(joint: torch.nn.Module, batch: dict, parts: tuple[torch.Tensor, ...], **options) -> list:  # noqa: ANN003
    """The chunked loss and its gradients with respect to both parts and the joint's parameters."""
    parts = [part.detach().clone().requires_grad_() for part in parts]
    joint.zero_grad()
    loss = chunked_joint_rnnt_loss(
        lambda encoder, prediction: joint(encoder + prediction), *parts, **batch, num_classes=6, **options
    )
    loss.sum().backward()
    return [loss.detach(), *(part.grad for part in parts), *(p.grad.clone() for p in joint.parameters())]


def random_parts(B: int = 3, T: int = 7, U: int = 4, H: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, T, H, generator=generator), torch.randn(B, U + 1, H, generator=generator)


@pytest.mark.parametrize("chunk, kept", [(2**22, 2**24), (2**22, 0), (60, 0), (1, 0), (60, 2**24)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "mean_batch", "mean_volume"])
def test_chunks_give_the_recursion_of_the_whole_lattice(monkeypatch, chunk, kept, reduction):
    monkeypatch.setattr(joint_rnnt, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(joint_rnnt, "KEPT_ELEMENTS", kept)
    batch, parts, joint = random_batch(), random_parts(), stock_joint()
    batch.pop("joint_logits")
    results = chunked_results(joint, batch, parts, reduction=reduction)
    double = joint.double()
    double.zero_grad()
    leaves = [part.double().requires_grad_() for part in parts]
    losses = joint_losses(double(leaves[0][:, :, None] + leaves[1][:, None]), **batch)
    expected = reduce_losses(losses, batch["target_lengths"], reduction)
    expected.sum().backward()
    wanted = [expected.detach(), *(leaf.grad for leaf in leaves), *(p.grad for p in double.parameters())]
    for result, want in zip(results, wanted, strict=True):
        # float32 logits; 3e-7 of the largest seen
        torch.testing.assert_close(result.double(), want, rtol=0, atol=1e-5 * want.abs().max().item())


def test_recomputed_chunks_draw_the_same_dropout(monkeypatch):
    batch, parts, joint = random_batch(), random_parts(), stock_joint(dropout=0.5)
    batch.pop("joint_logits")
    monkeypatch.setattr(joint_rnnt, "CHUNK_ELEMENTS", 60)
    results = []
    for kept in (2**24, 0):
        monkeypatch.setattr(joint_rnnt, "KEPT_ELEMENTS", kept)
        torch.manual_seed(3)
        results.append(chunked_results(joint, batch, parts))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_chunks_keep_nothing_of_the_size_of_the_lattice(monkeypatch):
    monkeypatch.setattr(joint_rnnt, "CHUNK_ELEMENTS", 600)
    monkeypatch.setattr(joint_rnnt, "KEPT_ELEMENTS", 0)
    batch = random_batch(B=2, T=40, U=9)
    batch.pop("joint_logits")
    sizes, joint = [], stock_joint()

    def spy(encoder: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        logits = joint(encoder + prediction)
        sizes.append(logits.numel())
        return logits

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.untyped_storage().nbytes()) or x, lambda x: x
    ):
        parts = [part.requires_grad_() for part in random_parts(2, 40, 9)]
        loss = chunked_joint_rnnt_loss(spy, *parts, **batch, num_classes=6)
    assert max(kept) < 4 * 2 * 40 * 10 * 6
    forward = len(sizes)
    loss.backward()
    assert max(sizes) <= 600 and len(sizes) == 2 * forward


@pytest.mark.parametrize("change, message", [
    ({"encoder_part": torch.zeros(3, 7)}, r"encoder_part must be \[B, T, H\].*\(3, 7\)"),
    ({"prediction_part": torch.zeros(2, 5, 6)}, r"\(2, 5, 6\)"),
    ({"blank": 6}, "blank must lie between 0 and V = 5"),
    ({"reduction": "average"}, "got 'average'"),
])  # fmt: skip
def test_chunks_of_bad_arguments_are_refused(change, message):
    batch = random_batch()
    batch.pop("joint_logits")
    parts = dict(zip(("encoder_part", "prediction_part"), random_parts(), strict=True))
    with pytest.raises(ValueError, match=message):
        chunked_joint_rnnt_loss(torch.add, **(batch | parts | {"num_classes": 6} | change))


@pytest.mark.parametrize("V, margin", [(5, 12.0), (50, 18.0), (400, 25.0)])
def test_a_nearly_certain_lattice_keeps_its_digits(V, margin):
    batch = random_batch(B=1, T=6, U=3, V=V)
    batch["joint_logits"] *= 0.3
    batch["joint_logits"][..., V] += margin
    for u in range(3):
        batch["joint_logits"][0, u + 1, u, batch["targets"][0, u]] += 2 * margin
    losses, gradient = gradient_of(batch, reduction="none")
    logits = batch.pop("joint_logits").double().requires_grad_()
    expected = joint_losses(logits, **batch)
    expected.sum().backward()
    # What is left of sums near 1: 2e-7 seen
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), logits.grad, rtol=0, atol=1e-5 * logits.grad.abs().max().item())


def test_wide_joints_are_cut_by_their_hidden_layer(monkeypatch):
    monkeypatch.setattr(joint_rnnt, "CHUNK_ELEMENTS", 5 * 64)  # one frame of five states
    monkeypatch.setattr(joint_rnnt, "KEPT_ELEMENTS", 0)
    batch, parts, joint = random_batch(B=1), random_parts(B=1, H=64), stock_joint(H=64)
    batch.pop("joint_logits")
    frames = []

    def spy(encoder: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        frames.append(len(encoder))
        return joint(encoder + prediction)

    chunked_joint_rnnt_loss(spy, *(part.requires_grad_() for part in parts), **batch, num_classes=6)
    assert frames == [1] * 7


def test_a_joint_with_another_number_of_classes_is_refused():
    batch, parts, joint = random_batch(V=5), random_parts(), stock_joint(V=8)
    batch.pop("joint_logits")
    with pytest.raises(ValueError, match="num_classes is 6, but the joint gives 9"):
        chunked_joint_rnnt_loss(lambda e, p: joint(e + p), *parts, **batch, num_classes=6)
