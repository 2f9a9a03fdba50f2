"""The TDT losses against the plain float64 recursion, NeMo's `tdt_pytorch`, and what must not change them."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_codert.losses import (
    additive_rnnt_loss,
    additive_tdt_loss,
    chunked_joint_rnnt_loss,
    chunked_joint_tdt_loss,
    joint_rnnt,
    joint_rnnt_loss,
    joint_tdt_loss,
    valid_frames,
)
from nemo_codert.losses.batch_checks import reduce_losses
from tests.conftest import REPOSITORY
from tests.losses.test_additive_rnnt import LOGITS, assert_exact, fill_padding
from tests.reference import tdt_recursion

pytestmark = pytest.mark.unit

SHAPES = [(2, 12, 5, 16), (3, 7, 4, 5), (2, 1, 3, 4), (2, 6, 0, 7), (1, 1, 0, 2), (3, 6, 4, 2), (2, 9, 3, 600)]
WITH_0, WITHOUT_0, UNSORTED = (0, 1, 2, 3, 4), (1, 2, 4), (2, 0, 1)


def random_batch(
    B: int = 3, T: int = 7, U: int = 4, V: int = 5, durations: tuple[int, ...] = WITH_0, scale: float = 1.0,
    seed: int = 0,
) -> dict:  # fmt: skip
    """Arguments of `additive_tdt_loss`, ragged, the first utterance the longest; all have a path for duration 1."""
    generator = torch.Generator().manual_seed(seed)
    outputs = V + 1 + len(durations)
    least = 1 if 0 in durations else U + 1
    return {
        "encoder_logits": scale * torch.randn(B, T, outputs, generator=generator),
        "prediction_logits": scale * torch.randn(B, U + 1, outputs, generator=generator),
        "targets": torch.randint(0, V, (B, U), generator=generator),
        "encoded_lengths": torch.randint(least, T + 1, (B,), generator=generator).index_fill_(0, torch.tensor(0), T),
        "target_lengths": torch.randint(0, U + 1, (B,), generator=generator).index_fill_(0, torch.tensor(0), U),
        "blank": V,
        "durations": durations,
    }


def joint_batch(batch: dict) -> dict:
    """Arguments of `joint_tdt_loss` for the same lattice and more: no sum of two sides."""
    encoder, prediction = (batch[name] for name in LOGITS)
    noise = torch.randn(*encoder.shape[:2], *prediction.shape[1:], generator=torch.Generator().manual_seed(1))
    rest = {name: value for name, value in batch.items() if name not in LOGITS}
    return {"joint_logits": encoder[:, :, None] + prediction[:, None] + noise.to(encoder.dtype), **rest}


def results(loss_of, batch: dict, upstream: float = 1.0, **options: object) -> tuple[torch.Tensor, ...]:
    """The loss and the gradients of upstream times its sum with respect to the logits."""
    names = [name for name in batch if name.endswith("logits")]
    leaves = {name: batch[name].detach().clone().requires_grad_() for name in names}
    loss = loss_of(**(batch | leaves), **options)
    (upstream * loss.sum()).backward()
    return loss.detach(), *(leaf.grad for leaf in leaves.values())


def reference(batch: dict, upstream: float = 1.0, **options: object) -> tuple[torch.Tensor, ...]:
    """The same by the plain recursion, float64."""
    loss_of = tdt_recursion.joint_losses if "joint_logits" in batch else tdt_recursion.additive_losses
    wide = {name: value.double() if name.endswith("logits") else value for name, value in batch.items()}
    return results(loss_of, wide, upstream, **options)


@pytest.mark.parametrize("B, T, U, V", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0])
def test_value_and_gradients_match_the_recursion_at_any_scale(B, T, U, V, scale):
    batch = random_batch(B, T, U, V, scale=scale)
    found = results(additive_tdt_loss, batch, upstream=2.5, reduction="none")
    assert_exact(found, reference(batch, upstream=2.5))
    batch = joint_batch(batch)
    found = results(joint_tdt_loss, batch, upstream=2.5, reduction="none")
    assert_exact(found, reference(batch, upstream=2.5))


@pytest.mark.parametrize("durations", [WITHOUT_0, UNSORTED, (1,), (0, 1), (1, 3, 0, 9)])
@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_all_kinds_of_durations_and_sigma_match_it_too(durations, sigma):
    batch = random_batch(durations=durations, scale=3.0)
    found = results(additive_tdt_loss, batch, upstream=2.5, reduction="none", sigma=sigma)
    assert_exact(found, reference(batch, upstream=2.5, sigma=sigma))
    batch = joint_batch(batch)
    found = results(joint_tdt_loss, batch, upstream=2.5, reduction="none", sigma=sigma)
    assert_exact(found, reference(batch, upstream=2.5, sigma=sigma))


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 4), st.integers(1, 6), st.sampled_from([WITH_0, UNSORTED]))
@settings(max_examples=25, deadline=None)
def test_any_shape_matches_it(B, T, U, V, durations):
    batch = random_batch(B, T, U, V, durations, scale=2.0)
    assert_exact(results(additive_tdt_loss, batch, reduction="none"), reference(batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_other_types_match_the_recursion_of_the_same_numbers(dtype, scale):
    batch = random_batch(scale=scale)
    batch |= {name: batch[name].to(dtype) for name in LOGITS}
    for loss_of, given_batch in ((additive_tdt_loss, batch), (joint_tdt_loss, joint_batch(batch))):
        loss, *gradients = results(loss_of, given_batch, reduction="none")
        expected_loss, *expected = reference(given_batch)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=0)
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert gradient.dtype == dtype  # the last rounding is to that type
            tolerance = max(1e-6, torch.finfo(dtype).eps) * wanted.abs().max().item()
            torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=tolerance)


def test_float64_gradients_are_the_derivatives():
    batch = random_batch(B=2, T=5, U=2, V=3)
    leaves = [batch.pop(name).double().requires_grad_() for name in LOGITS]
    assert torch.autograd.gradcheck(lambda *x: additive_tdt_loss(*x, **batch, sigma=0.1, reduction="none"), leaves)


@pytest.mark.parametrize("margin", [10.0, 20.0])
def test_lattices_that_are_nearly_certain_are_exact_too(margin):
    batch = random_batch(2, 24, 6, 1024)
    batch["encoder_logits"][..., batch["blank"]] += margin
    batch["encoder_logits"][..., -2] += margin
    assert_exact(results(additive_tdt_loss, batch, reduction="none"), reference(batch))


@pytest.mark.parametrize("disagreement", [18.0, 200.0, 1000.0])
def test_utterances_that_need_float64_are_exact_too(disagreement):
    batch = random_batch(B=2, T=9, U=3, V=12)
    batch["encoder_logits"][1, ..., 0] += disagreement
    batch["prediction_logits"][1, ..., 1] += disagreement
    found = results(additive_tdt_loss, batch, upstream=2.5, reduction="none")
    assert_exact(found, reference(batch, upstream=2.5))


@pytest.mark.parametrize("V", [600, 4096])
def test_many_small_terms_are_not_lost_beside_a_class_that_is_no_token(V):
    """Float32 products lose them (6e-6 of the gradients without the compiled kernels' check of sums)."""
    batch = random_batch(2, 40, 10, V, scale=0.05)
    batch["encoder_logits"][..., 3] += 17.5
    batch["targets"] = batch["targets"].clamp(min=20)
    wide = batch | {name: batch[name].double() for name in LOGITS}
    expected = results(additive_tdt_loss, wide, reduction="none")
    assert_exact(results(additive_tdt_loss, batch, reduction="none"), expected)


@pytest.mark.parametrize("disagreement", [0.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_functions_give_what_the_compiled_kernels_give(monkeypatch, disagreement, dtype):
    batch = random_batch(4, 9, 5, 7)
    batch["encoder_logits"][3, ..., 0] += disagreement
    batch["prediction_logits"][3, ..., 1] += disagreement
    batch |= {name: batch[name].to(dtype) for name in LOGITS}
    compiled = results(additive_tdt_loss, batch, upstream=2.5, sigma=0.05)
    monkeypatch.setattr("nemo_codert.losses.tdt.additive_log_probs", lambda dtype: None)
    for ours, wanted in zip(results(additive_tdt_loss, batch, upstream=2.5, sigma=0.05), compiled, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6 * wanted.abs().max().item())


def test_a_graph_that_is_kept_gives_the_same_gradients_again():
    batch = random_batch()
    leaves = {name: batch[name].clone().requires_grad_() for name in LOGITS}
    loss = additive_tdt_loss(**batch | leaves)
    first, again = (torch.autograd.grad(loss, list(leaves.values()), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_garbage_in_the_padding_changes_nothing(garbage):
    batch = random_batch()
    for result, expected in zip(
        results(additive_tdt_loss, fill_padding(batch, garbage)), results(additive_tdt_loss, batch), strict=True
    ):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
    batch = joint_batch(batch)
    expected = results(joint_tdt_loss, batch)
    for b, (t, u) in enumerate(zip(batch["encoded_lengths"], batch["target_lengths"], strict=True)):
        batch["joint_logits"][b, t:], batch["joint_logits"][b, :, u + 1 :] = garbage, garbage
    batch["targets"] = batch["targets"].masked_fill(~valid_frames(batch["target_lengths"], 4), -100)
    for result, wanted in zip(results(joint_tdt_loss, batch), expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_batch", "mean_volume"])
def test_reductions_are_those_of_the_rnnt_losses(reduction):
    batch = random_batch()
    losses = additive_tdt_loss(**batch, reduction="none")
    expected = reduce_losses(losses, batch["target_lengths"], reduction)
    torch.testing.assert_close(additive_tdt_loss(**batch, reduction=reduction), expected)
    torch.testing.assert_close(joint_tdt_loss(**joint_batch(batch), reduction=reduction).shape, expected.shape)


@pytest.mark.parametrize("sides", [(0,), (1,)])
def test_one_side_alone_may_want_its_gradient(sides):
    batch = random_batch()
    both = results(additive_tdt_loss, batch)[1:]
    leaves = [batch[name].clone().requires_grad_(side in sides) for side, name in enumerate(LOGITS)]
    additive_tdt_loss(**batch | dict(zip(LOGITS, leaves, strict=True))).backward()
    for side, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (side in sides)
        if side in sides:
            torch.testing.assert_close(leaf.grad, both[side], rtol=0, atol=0)


def test_fastemit_is_that_of_nemos_tdt():
    """Value and gradient of the labels' log-probabilities times 1 + lambda; blanks and durations as without."""
    batch, (B, T, M) = joint_batch(random_batch()), (3, 7, 5)
    plain, scaled = (
        results(joint_tdt_loss, batch, reduction="none", fastemit_lambda=each, sigma=0.05) for each in (0.0, 0.25)
    )
    torch.testing.assert_close(scaled[0], 1.25 * plain[0])
    N, blank = len(WITH_0), batch["blank"]
    torch.testing.assert_close(scaled[1][..., -N:], plain[1][..., -N:], rtol=0, atol=0)
    # A label's occupancy a and a node's n give its logit n p - a. FastEmit adds lambda a (p - 1) to the label, and
    # lambda a p to all others.
    probabilities = batch["joint_logits"][..., :-N].double().softmax(-1)
    added = (scaled[1] - plain[1])[..., :-N].double()
    of_label = added[..., blank] / (0.25 * probabilities[..., blank])  # a, from what is added to the blank
    one_hot = torch.zeros_like(probabilities)
    for b in range(B):
        for u in range(int(batch["target_lengths"][b])):
            one_hot[b, :, u, batch["targets"][b, u]] = 1.0
    assert of_label.shape == (B, T, M) and of_label.sum() > 1
    torch.testing.assert_close(added, 0.25 * of_label[..., None] * (probabilities - one_hot), rtol=0, atol=1e-5)


# ---- the RNN-T loss of some batches ---------------------------------------------------------------------------------


def test_omega_1_is_the_rnnt_loss_of_the_tokens_alone():
    batch = random_batch()
    N = len(WITH_0)
    found = results(additive_tdt_loss, batch, omega=1.0, sigma=0.5, reduction="none", fastemit_lambda=0.1)
    tokens = {name: value[..., :-N] if name in LOGITS else value for name, value in batch.items()}
    del tokens["durations"]
    expected = results(additive_rnnt_loss, tokens, reduction="none", fastemit_lambda=0.1)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(gradient[..., :-N], wanted, rtol=0, atol=0)
        assert not gradient[..., -N:].any()
    whole = joint_batch(batch)
    found = results(joint_tdt_loss, whole, omega=1.0, sigma=0.5)
    tokens = {name: value[..., :-N] if name == "joint_logits" else value for name, value in whole.items()}
    del tokens["durations"]
    torch.testing.assert_close(found[0], joint_rnnt_loss(**tokens), rtol=0, atol=0)


def test_the_same_draw_takes_the_same_loss():
    batch = random_batch()
    tdt, rnnt = (additive_tdt_loss(**batch, omega=omega) for omega in (0.0, 1.0))
    generator = torch.Generator().manual_seed(3)
    drawn = [additive_tdt_loss(**batch, omega=0.4, generator=generator) for _ in range(20)]
    expected = torch.rand(20, generator=torch.Generator().manual_seed(3)) < 0.4
    assert expected.any() and not expected.all()
    for loss, takes_rnnt in zip(drawn, expected, strict=True):
        torch.testing.assert_close(loss, rnnt if takes_rnnt else tdt, rtol=0, atol=0)


def test_torchs_own_generator_draws_where_none_is_given_and_only_where_omega_needs_it():
    batch = random_batch()
    torch.manual_seed(5)
    first = [float(additive_tdt_loss(**batch, omega=0.5)) for _ in range(8)]
    torch.manual_seed(5)
    assert [float(joint_free) for joint_free in (additive_tdt_loss(**batch, omega=0.5) for _ in range(8))] == first
    assert len(set(first)) == 2
    before = torch.random.get_rng_state()
    additive_tdt_loss(**batch)
    torch.testing.assert_close(torch.random.get_rng_state(), before)


# ---- chunks ---------------------------------------------------------------------------------------------------------


class Joint(torch.nn.Module):
    """A stock joint: a hidden layer, and outputs for tokens, blank and durations."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.weight = torch.nn.Parameter(torch.randn(outputs, hidden, generator=generator, dtype=torch.float64))

    def forward(self, encoder: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        return torch.relu(encoder + prediction) @ self.weight.T


@pytest.mark.parametrize("kept", [0, 10**9])
@pytest.mark.parametrize("omega", [0.0, 1.0])
def test_chunks_give_the_loss_of_the_whole_lattice(monkeypatch, kept, omega):
    monkeypatch.setattr(joint_rnnt, "KEPT_ELEMENTS", kept)
    monkeypatch.setattr(joint_rnnt, "CHUNK_ELEMENTS", 2 * 5 * 11)  # two frames of the longest utterance
    batch, hidden, outputs = random_batch(), 8, 5 + 1 + len(WITH_0)
    generator = torch.Generator().manual_seed(4)
    values = [torch.randn(3, length, hidden, generator=generator, dtype=torch.float64) for length in (7, 5)]
    rest = {name: value for name, value in batch.items() if name not in LOGITS}
    options = {"reduction": "none", "sigma": 0.05, "omega": omega}
    found = []
    for chunked in (True, False):
        joint, parts = Joint(hidden, outputs), [each.clone().requires_grad_() for each in values]
        if chunked:
            losses = chunked_joint_tdt_loss(joint, *parts, **rest, num_classes=outputs, **options)
        else:
            losses = joint_tdt_loss(joint(parts[0][:, :, None], parts[1][:, None]), **rest, **options)
        losses.sum().backward()
        found.append([losses.detach(), joint.weight.grad, *(part.grad for part in parts)])
    for ours, whole in zip(*found, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-10)


def test_a_joint_of_other_outputs_is_refused():
    batch = random_batch()
    rest = {name: value for name, value in batch.items() if name not in LOGITS}
    parts = torch.randn(3, 7, 8, dtype=torch.float64), torch.randn(3, 5, 8, dtype=torch.float64)
    for omega in (0.0, 1.0):
        with pytest.raises(ValueError, match="num_classes is 11, but the joint gives 9 classes"):
            chunked_joint_tdt_loss(Joint(8, 9), *parts, **rest, num_classes=11, omega=omega)


def test_the_chunked_losses_of_rnnt_and_tdt_share_their_chunks():
    """The RNN-T loss by chunks is what it was: `test_joint_rnnt` has its numbers; here its values beside omega = 1."""
    batch, joint = random_batch(), Joint(8, 11)
    parts = torch.randn(3, 7, 8, dtype=torch.float64), torch.randn(3, 5, 8, dtype=torch.float64)
    rest = {name: value for name, value in batch.items() if name not in LOGITS}
    found = chunked_joint_tdt_loss(joint, *parts, **rest, num_classes=11, omega=1.0)
    del rest["durations"]
    expected = chunked_joint_rnnt_loss(lambda *x: joint(*x)[..., :6], *parts, **rest, num_classes=6)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_no_tensor_grows_with_the_vocabulary_times_the_lattice():
    from nemo_codert.benchmark.measure import peak_memory

    batch = random_batch(2, 60, 30, 2000)
    lattice_bytes = 4 * 2 * 60 * 31 * 2001
    peak = peak_memory(lambda: results(additive_tdt_loss, batch)).peak
    assert peak < lattice_bytes / 3, (peak, lattice_bytes)


def test_nothing_is_compiled_again_for_other_shapes_layouts_or_types_of_numbers():
    from nemo_codert.losses.cpu import log_prob_kernels, tdt_kernels

    results(additive_tdt_loss, random_batch())
    kernels = log_prob_kernels.log_prob_kernel, log_prob_kernels.factor_kernel, tdt_kernels.tdt_kernel
    compiled = [len(kernel.signatures) for kernel in kernels]
    for B, T, U, V in ((1, 1, 0, 2), (1, 7, 3, 5), (2, 3, 0, 9), (3, 40, 12, 1400)):
        batch = random_batch(B, T, U, V)
        results(additive_tdt_loss, batch, reduction="sum", fastemit_lambda=0, sigma=0)
        results(additive_tdt_loss, batch | {"encoder_logits": batch["encoder_logits"].mT.contiguous().mT})
        results(additive_tdt_loss, batch | {"durations": (0, 1, 2), "blank": V + 1, "targets": batch["targets"]})
        results(joint_tdt_loss, joint_batch(batch))
    assert [len(kernel.signatures) for kernel in kernels] == compiled


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, message", [
    ({"durations": []}, r"durations must be different whole numbers of frames.*got \[\]"),
    ({"durations": [0]}, r"at least one above 0, got \[0\]"),
    ({"durations": [0, 1, 1]}, r"got \[0, 1, 1\]"),
    ({"durations": [0, 1, -2]}, r"got \[0, 1, -2\]"),
    ({"durations": [0, 1.5]}, r"got \[0, 1.5\]"),
    ({"durations": list(range(11))}, "11 classes are too few: 11 are for the durations"),
    ({"sigma": -0.1}, "sigma must be 0 or more and finite, got -0.1"),
    ({"sigma": math.nan}, "got nan"),
    ({"omega": 1.1}, "omega must lie between 0 and 1, .* got 1.1"),
    ({"fastemit_lambda": -1.0}, "fastemit_lambda must be 0 or more, got -1.0"),
    ({"reduction": "average"}, "mean_volume, got 'average'"),
    ({"blank": 6}, "blank must lie between 0 and V = 5, got 6"),
    ({"targets": torch.full((3, 4), 6)}, r"differ from blank = 5, got \[6\]"),
    ({"encoded_lengths": torch.tensor([8, 1, 1])}, "encoded_lengths must lie between 1 and 7"),
    ({"encoder_logits": torch.zeros(3, 7, 12)}, r"must be \[B, T, V\+1\+N\] and prediction_logits"),
])  # fmt: skip
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        additive_tdt_loss(**(random_batch() | change))


@pytest.mark.parametrize("omega", [0.0, 1.0])
def test_utterances_without_a_path_are_named(omega):
    batch = random_batch(durations=(2, 4, 3))
    batch |= {"encoded_lengths": torch.tensor([7, 5, 7]), "target_lengths": torch.tensor([2, 2, 4])}
    wanted = (
        r"no sum of durations \[2, 4, 3\] fits .* 1 \(5 frames, 2 tokens\), 2 \(7 frames, 4 tokens\): .*Leave such"
    )
    rest = {name: value for name, value in batch.items() if name not in LOGITS}
    with pytest.raises(ValueError, match=wanted):
        additive_tdt_loss(**batch, omega=omega)
    with pytest.raises(ValueError, match=wanted):
        joint_tdt_loss(**joint_batch(batch), omega=omega)
    with pytest.raises(ValueError, match=wanted):
        chunked_joint_tdt_loss(Joint(8, 9), *(batch[name] for name in LOGITS), **rest, num_classes=9, omega=omega)


# ---- NeMo -----------------------------------------------------------------------------------------------------------


@pytest.mark.nemo
@pytest.mark.parametrize("durations", [WITH_0, WITHOUT_0])
def test_nemos_tdt_pytorch_agrees(monkeypatch, durations):
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # it moves its variables to a GPU, wherever it runs
    batch = random_batch(B=2, T=6, U=3, V=4, durations=durations)
    whole = batch["encoder_logits"][:, :, None] + batch["prediction_logits"][:, None]
    nemos = RNNTLoss(4, loss_name="tdt_pytorch", loss_kwargs={"durations": durations, "sigma": 0.05}, reduction=None)

    def nemos_losses(joint_logits: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
        lengths = {"input_lengths": rest["encoded_lengths"], "target_lengths": rest["target_lengths"]}
        return nemos(log_probs=joint_logits, targets=rest["targets"], **lengths)

    given_batch = {"joint_logits": whole, **{name: value for name, value in batch.items() if name not in LOGITS}}
    expected = results(nemos_losses, given_batch)
    found = results(joint_tdt_loss, given_batch, sigma=0.05, reduction="none")
    additive = additive_tdt_loss(**batch, sigma=0.05, reduction="none")
    for ours, wanted in zip((*found, additive), (*expected, expected[0]), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)  # NeMo's recursion is in float32


@pytest.mark.nemo
@pytest.mark.slow
def test_nemos_tdt_agrees_in_the_simulator():
    """Values and gradients with sigma and FastEmit; `test_on_cuda` compares them on a GPU."""
    command = [sys.executable, "-m", "tests.losses.simulated_nemo_tdt"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert run.stdout.endswith("as NeMo's"), run.stderr
