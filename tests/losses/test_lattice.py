"""The RNN-T lattice: both implementations against enumerated paths, against each other, and their gradient."""

import itertools
import math

import pytest
import torch

from nemo_codert.losses.batch_checks import reduce_losses
from nemo_codert.losses.lattice import (
    _numba_occupancies,
    _torch_occupancies,
    lattice_occupancies,
    rnnt_lattice_loss,
)

pytestmark = pytest.mark.unit

RAGGED = torch.tensor([6, 1, 4, 5]), torch.tensor([3, 3, 0, 1])  # frames, tokens


def random_lattice(
    num_frames: int = 6, num_tokens: int = 3, batch: int = 4, scale: float = 1.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Label [B, T, U] and blank [B, T, U+1] log-probabilities, float64, not normalised against each other."""
    generator = torch.Generator().manual_seed(seed)
    shape = batch, num_frames, num_tokens
    label = -scale * torch.rand(shape, generator=generator, dtype=torch.float64)
    return label, -scale * torch.rand((*shape[:2], num_tokens + 1), generator=generator, dtype=torch.float64)


def enumerate_paths(label: torch.Tensor, blank: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Negative log-likelihood and occupancies of one utterance [T, U], [T, U+1] by walking every path."""
    T, U = label.shape
    likelihood, label_mass, blank_mass = 0.0, torch.zeros_like(label), torch.zeros_like(blank)
    for frames in itertools.combinations_with_replacement(range(T), U):  # the frame that emits each token
        labels = [(frame, u) for u, frame in enumerate(frames)]
        blanks = [(t, sum(frame <= t for frame in frames)) for t in range(T)]
        probability = math.exp(sum(label[step] for step in labels) + sum(blank[step] for step in blanks))
        likelihood += probability
        for mass, steps in [(label_mass, labels), (blank_mass, blanks)]:
            for step in steps:
                mass[step] += probability
    return -math.log(likelihood), label_mass / likelihood, blank_mass / likelihood


@pytest.mark.parametrize("compute", [_numba_occupancies, _torch_occupancies])
def test_every_path_is_counted_once(compute):
    label, blank = random_lattice(scale=4.0)
    losses, label_occupancy, blank_occupancy = compute(label, blank, *RAGGED)
    for b, (t, u) in enumerate(zip(*RAGGED, strict=True)):
        expected = enumerate_paths(label[b, :t, :u], blank[b, :t, : u + 1])
        # float64 sums over at most 56 paths; 4e-15 seen
        assert losses[b].item() == pytest.approx(expected[0], rel=1e-13)
        torch.testing.assert_close(label_occupancy[b, :t, :u], expected[1], rtol=0, atol=1e-13)
        torch.testing.assert_close(blank_occupancy[b, :t, : u + 1], expected[2], rtol=0, atol=1e-13)
        assert not label_occupancy[b, t:].any() and not label_occupancy[b, :, u:].any()
        assert not blank_occupancy[b, t:].any() and not blank_occupancy[b, :, u + 1 :].any()


@pytest.mark.parametrize("T, U, scale", [(6, 3, 1), (6, 3, 300), (1, 3, 5), (1, 1, 5), (6, 0, 5), (40, 30, 20)])
def test_the_torch_recursion_agrees_with_the_compiled_one(T, U, scale):
    lattice = random_lattice(T, U, batch=5, scale=scale)
    generator = torch.Generator().manual_seed(1)
    encoded_lengths = torch.randint(1, T + 1, (5,), generator=generator)
    target_lengths = torch.randint(0, U + 1, (5,), generator=generator)
    compiled = _numba_occupancies(*lattice, encoded_lengths, target_lengths)
    for ours, theirs in zip(_torch_occupancies(*lattice, encoded_lengths, target_lengths), compiled, strict=True):
        # float64 at log-likelihoods of up to 2000; 1e-13 seen
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("T, U", [(6, 3), (700, 120)])
def test_every_frame_ends_in_one_blank_and_every_token_is_emitted_once(T, U):
    lengths = torch.tensor([T, T // 2]), torch.tensor([U, U // 3])
    _, label_occupancy, blank_occupancy = lattice_occupancies(*random_lattice(T, U, batch=2, scale=30.0), *lengths)
    frames = torch.arange(T) < lengths[0][:, None]
    tokens = torch.arange(U) < lengths[1][:, None]
    # exponentials of float64 differences of up to 1e4; 9e-12 seen
    torch.testing.assert_close(blank_occupancy.sum(2), frames.double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(label_occupancy.sum(1), tokens.double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("compute", [_numba_occupancies, _torch_occupancies])
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_padding_is_never_read(compute, garbage):
    label, blank = random_lattice()
    expected = compute(label, blank, *RAGGED)
    for b, (t, u) in enumerate(zip(*RAGGED, strict=True)):
        label[b, t:], label[b, :, u:], blank[b, t:], blank[b, :, u + 1 :] = (garbage,) * 4
    for got, wanted in zip(compute(label, blank, *RAGGED), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("compute", [_numba_occupancies, _torch_occupancies])
def test_steps_of_probability_zero_are_left_out(compute):
    label, blank = random_lattice(3, 1, batch=1)
    label[0, :2] = -math.inf  # the token can only be emitted in the last frame
    losses, label_occupancy, blank_occupancy = compute(label, blank, torch.tensor([3]), torch.tensor([1]))
    expected = -(blank[0, 0, 0] + blank[0, 1, 0] + label[0, 2, 0] + blank[0, 2, 1])
    assert losses.item() == pytest.approx(expected.item(), rel=1e-14)
    assert label_occupancy[0, :, 0].tolist() == pytest.approx([0, 0, 1])
    assert blank_occupancy[0, 2].tolist() == pytest.approx([0, 1])


@pytest.mark.parametrize("compute", [_numba_occupancies, _torch_occupancies])
def test_a_nan_shows_in_the_loss_of_its_utterance_alone(compute):
    label, blank = random_lattice()
    blank[0, 2, 1] = math.nan
    losses = compute(label, blank, *RAGGED)[0]
    assert losses.isnan().tolist() == [True, False, False, False]


def test_the_gradient_is_the_derivative():
    label, blank = (x.requires_grad_() for x in random_lattice())
    assert torch.autograd.gradcheck(lambda x, y: rnnt_lattice_loss(x, y, *RAGGED, 0.0), (label, blank))


def test_fastemit_scales_the_value_and_the_label_gradient_but_not_the_blank_gradient():
    gradients, losses = [], []
    for fastemit_lambda in (0.0, 0.25):
        label, blank = (x.requires_grad_() for x in random_lattice())
        losses.append(rnnt_lattice_loss(label, blank, *RAGGED, fastemit_lambda))
        losses[-1].sum().backward()
        gradients.append((label.grad, blank.grad))
    torch.testing.assert_close(losses[1], 1.25 * losses[0])
    torch.testing.assert_close(gradients[1][0], 1.25 * gradients[0][0])
    torch.testing.assert_close(gradients[1][1], gradients[0][1], rtol=0, atol=0)


def test_float32_log_probabilities_give_float32_losses_and_gradients():
    label, blank = (x.float().requires_grad_() for x in random_lattice())
    losses = rnnt_lattice_loss(label, blank, *RAGGED, 0.0)
    losses.sum().backward()
    assert {losses.dtype, label.grad.dtype, blank.grad.dtype} == {torch.float32}


def test_a_negative_fastemit_lambda_is_refused():
    with pytest.raises(ValueError, match="got -0.1"):
        rnnt_lattice_loss(*random_lattice(), *RAGGED, -0.1)


@pytest.mark.parametrize("reduction, expected", [
    ("none", [6.0, 2.0, 4.0]), ("sum", 12.0), ("mean_batch", 4.0), ("mean", 8.0 / 3), ("mean_volume", 3.0),
])  # fmt: skip
def test_the_reductions_are_those_of_nemo_with_an_empty_target_counted_as_one_token(reduction, expected):
    reduced = reduce_losses(torch.tensor([6.0, 2.0, 4.0]), torch.tensor([3, 1, 0]), reduction)
    torch.testing.assert_close(reduced, torch.tensor(expected))


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="mean_volume, got 'average'"):
        reduce_losses(torch.zeros(1), torch.ones(1), "average")
