"""The TDT lattice: both implementations against enumerated paths and each other, and which utterances have a path."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_codert.losses import has_tdt_path, node_weights, tdt_node_occupancies
from nemo_codert.losses.lattice import lattice_occupancies
from nemo_codert.losses.tdt_lattice import _numba_occupancies, _torch_occupancies, tdt_lattice_loss
from tests.reference.tdt_recursion import enumerated, paths

pytestmark = pytest.mark.unit

RAGGED = torch.tensor([6, 1, 4, 5]), torch.tensor([3, 3, 0, 1])  # frames, tokens
DURATIONS = [(0, 1, 2), (0, 1, 2, 3, 4), (2, 0, 1), (0, 1)]


def random_lattice(
    T: int = 6, U: int = 3, durations: tuple[int, ...] = DURATIONS[0], batch: int = 4, scale: float = 1.0
) -> torch.Tensor:
    """[B, T, U+1, 2 + N] float64 log-probabilities of label, blank and durations."""
    generator = torch.Generator().manual_seed(0)
    shape = batch, T, U + 1
    of_tokens = -scale * torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    of_durations = scale * torch.randn(*shape, len(durations), generator=generator, dtype=torch.float64)
    return torch.cat((of_tokens, of_durations.log_softmax(-1)), -1)


def parts(lattice: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Label [B, T, U], blank [B, T, U+1] and durations [B, T, U+1, N] of a lattice."""
    return lattice[:, :, :-1, 0], lattice[..., 1], lattice[..., 2:]


@pytest.mark.parametrize("compute", [_numba_occupancies, _torch_occupancies])
@pytest.mark.parametrize("durations", DURATIONS)
def test_every_path_is_counted_once(compute, durations):
    lattice = random_lattice(durations=durations, scale=2.0)
    losses, occupancies = compute(lattice, *RAGGED, durations)
    for b, (t, u) in enumerate(zip(*RAGGED, strict=True)):
        own = lattice[b : b + 1, :t, : u + 1]
        loss, *expected = enumerated(*(each[0] for each in parts(own)), durations)
        # float64 sums over hundreds of paths
        assert losses[b].item() == pytest.approx(loss, rel=1e-12)
        for found, wanted in zip(parts(occupancies[b : b + 1, :t, : u + 1]), expected, strict=True):
            torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-12)
        assert not occupancies[b, t:].any() and not occupancies[b, :, u + 1 :].any()


@pytest.mark.parametrize("T, U, durations, scale", [
    (6, 3, (0, 1, 2), 300), (1, 3, (0, 1), 5), (6, 0, (2, 1), 5), (40, 30, (0, 1, 2, 3, 4), 20), (9, 4, (1, 5), 5),
    (3, 2, (0, 1, 8), 5), (60, 4, (0, 3, 1), 50),
])  # fmt: skip
def test_the_torch_recursion_agrees_with_the_compiled_one(T, U, durations, scale):
    lattice = random_lattice(T, U, durations, batch=3, scale=scale)
    lengths = torch.tensor([T, T, max(T - 1, 1)]), torch.tensor([U, U // 2, 0])
    compiled = _numba_occupancies(lattice, *lengths, durations)
    for ours, theirs in zip(_torch_occupancies(lattice, *lengths, durations), compiled, strict=True):
        # float64 at log-likelihoods of up to some thousands
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-11)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_an_utterance_has_a_path_where_one_can_be_walked(data):
    durations = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True).filter(any))
    frames, tokens = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 3))
    walked = next(paths(frames, tokens, durations), None) if frames else None
    assert has_tdt_path(frames, tokens, durations) == (walked is not None)
    if frames:
        lattice = random_lattice(frames, tokens, durations, batch=1)
        for compute in (_numba_occupancies, _torch_occupancies):
            loss = compute(lattice, torch.tensor([frames]), torch.tensor([tokens]), tuple(durations))[0]
            assert math.isfinite(loss.item()) == (walked is not None)


def test_long_utterances_are_judged_quickly():
    assert has_tdt_path(4000, 500, [3, 2, 7]) and not has_tdt_path(4001, 500, [2, 4, 8])
    assert has_tdt_path(501, 500, [1, 2]) and not has_tdt_path(500, 500, [1, 2])


@pytest.mark.parametrize("compute", [_numba_occupancies, _torch_occupancies])
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_padding_is_never_read(compute, garbage):
    lattice = random_lattice()
    expected = compute(lattice, *RAGGED, DURATIONS[0])
    for b, (t, u) in enumerate(zip(*RAGGED, strict=True)):
        lattice[b, t:], lattice[b, :, u + 1 :], lattice[b, :, u, 0] = garbage, garbage, garbage
    for got, wanted in zip(compute(lattice, *RAGGED, DURATIONS[0]), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("compute", [_numba_occupancies, _torch_occupancies])
def test_a_nan_shows_in_the_loss_of_its_utterance_alone(compute):
    lattice = random_lattice()
    lattice[0, 2, 1, 3] = math.nan
    losses = compute(lattice, *RAGGED, DURATIONS[0])[0]
    assert losses.isnan().tolist() == [True, False, False, False]


def test_arcs_of_probability_zero_are_left_out():
    lattice = random_lattice(3, 1, batch=1)
    lattice[0, :2, 0, 0] = -math.inf  # the token can only be emitted in the last frame
    lattice[0, :, :, 4] = -math.inf  # no arc has duration 2
    steps = lattice[0, 0, 0, [1, 3]], lattice[0, 1, 0, [1, 3]], lattice[0, 2, 0, [0, 2]], lattice[0, 2, 1, [1, 3]]
    for compute in (_numba_occupancies, _torch_occupancies):
        losses, occupancies = compute(lattice, torch.tensor([3]), torch.tensor([1]), DURATIONS[0])
        assert losses.item() == pytest.approx(-sum(step.sum().item() for step in steps), rel=1e-14)
        assert occupancies[0, 2, 0].tolist() == pytest.approx([1, 0, 1, 0, 0])


def test_tokens_that_last_no_frame_and_blanks_of_one_are_an_rnnt():
    """With duration 0 alone in even states and 1 alone in odd ones, state by state: a label, then only blanks."""
    T, durations = 5, (0, 1)
    lattice = random_lattice(T, 1, durations, batch=1)
    lattice[..., 0, 1] = -math.inf  # state 0 has no blank, so that its duration is the label's
    lattice[..., 0, 2:] = torch.tensor([0.0, -math.inf])
    lattice[..., 1, 2:] = torch.tensor([-math.inf, 0.0])
    lengths = torch.tensor([T]), torch.tensor([1])
    losses, occupancies = _numba_occupancies(lattice, *lengths, durations)
    expected = lattice_occupancies(*parts(lattice)[:2], *lengths)
    for found, wanted in zip((losses, *parts(occupancies)[:2]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_the_gradient_is_the_derivative():
    lattice = random_lattice()
    label, blank, lasting = (each.clone().requires_grad_() for each in parts(lattice))

    def losses(*leaves: torch.Tensor) -> torch.Tensor:
        return tdt_lattice_loss(*leaves, *RAGGED, durations=DURATIONS[0], sigma=0.1)

    assert torch.autograd.gradcheck(losses, (label, blank, lasting))


def test_fastemit_scales_the_value_and_the_labels_gradient_alone():
    gradients, losses = [], []
    for fastemit_lambda in (0.0, 0.25):
        leaves = [each.clone().requires_grad_() for each in parts(random_lattice())]
        options = {"durations": DURATIONS[0], "fastemit_lambda": fastemit_lambda}
        losses.append(tdt_lattice_loss(*leaves, *RAGGED, **options))
        losses[-1].sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(losses[1], 1.25 * losses[0])
    torch.testing.assert_close(gradients[1][0], 1.25 * gradients[0][0])
    torch.testing.assert_close(gradients[1][1:], gradients[0][1:], rtol=0, atol=0)


# ---- occupancies of a teacher's nodes -------------------------------------------------------------------------------


@pytest.mark.parametrize("durations", DURATIONS)
def test_a_node_is_as_probable_as_the_paths_through_it(durations):
    lattice = random_lattice(durations=durations, scale=2.0)
    nodes = tdt_node_occupancies(*parts(lattice), *RAGGED, durations)
    for b, (t, u) in enumerate(zip(*(each.tolist() for each in RAGGED), strict=True)):
        expected, total = torch.zeros(t, u + 1, dtype=torch.float64), 0.0
        for path in paths(t, u, durations):
            arcs = [lattice[b, i, j, 0 if label else 1] + lattice[b, i, j, 2 + n] for i, j, n, label in path]
            probability = math.exp(sum(arcs))
            total += probability
            for i, j in {(i, j) for i, j, *_ in path}:
                expected[i, j] += probability
        torch.testing.assert_close(nodes[b, :t, : u + 1], expected / total, rtol=0, atol=1e-12)
        assert not nodes[b, t:].any() and not nodes[b, :, u + 1 :].any()


def test_utterances_without_frames_or_without_a_path_occupy_nothing():
    lattice = random_lattice(durations=(1, 2))
    lengths = torch.tensor([6, 0, 3, 4]), torch.tensor([3, 1, 3, 0])
    nodes = tdt_node_occupancies(*parts(lattice), *lengths, (1, 2))
    assert nodes.flatten(1).any(1).tolist() == [True, False, False, True] and nodes.isfinite().all()


def test_occupancies_are_shaped_as_those_of_an_rnnt_teacher():
    label, blank, lasting = parts(random_lattice())
    assert tdt_node_occupancies(label, blank, lasting, *RAGGED, DURATIONS[0]).shape == node_weights(
        "occupied", label, blank, *RAGGED
    ).shape  # fmt: skip
    with pytest.raises(ValueError, match=r"\[B, T, U\+1, 2\] for durations \[0, 1\], got \(4, 6, 4, 3\)"):
        tdt_node_occupancies(label, blank, lasting, *RAGGED, [0, 1])
