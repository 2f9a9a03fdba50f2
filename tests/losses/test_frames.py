"""Valid frames and the grouping of a faster teacher's frames."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_codert.losses import group_frames, valid_frames


def test_valid_frames_are_those_before_the_length():
    valid = valid_frames(torch.tensor([0, 2, 3]), 3)
    assert valid.tolist() == [[False] * 3, [True, True, False], [True] * 3]


def test_factor_one_returns_the_very_arguments():
    logits, lengths = torch.randn(2, 3, 4, dtype=torch.float16), torch.tensor([3, 1])
    grouped, grouped_lengths = group_frames(logits, lengths, 1)
    assert grouped is logits and grouped_lengths is lengths


def test_a_group_is_the_mean_of_its_frames_distributions():
    first, second, third = [0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]
    logits = torch.tensor([[first, second, third]]).log() + torch.tensor([[[3.0], [-1.0], [0.5]]])  # any constants
    grouped, lengths = group_frames(logits, torch.tensor([3]), 2)
    expected = torch.tensor([[[0.3, 0.175, 0.525], third]])
    # float32 logarithms and sums of 3 terms; 6e-8 seen
    torch.testing.assert_close(grouped.exp(), expected, rtol=0, atol=1e-6)
    assert lengths.tolist() == [2]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 11), st.integers(2, 4), st.integers(0, 10_000))
def test_grouping_matches_averaging_utterance_by_utterance(num_frames, factor, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(3, num_frames, 6, generator=generator)
    lengths = torch.randint(0, num_frames + 1, (3,), generator=generator)
    grouped, grouped_lengths = group_frames(logits, lengths, factor)
    assert grouped.shape == (3, math.ceil(num_frames / factor), 6)
    for b, length in enumerate(lengths.tolist()):
        assert grouped_lengths[b] == math.ceil(length / factor)
        for group, frames in enumerate(logits[b, :length].double().softmax(-1).split(factor) if length else ()):
            # float32 log-softmax of logits up to 20; 2e-6 seen
            torch.testing.assert_close(grouped[b, group].double(), frames.mean(0).log(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_garbage_reaches_neither_values_nor_gradients(garbage):
    lengths = torch.tensor([5, 2, 0])
    clean = torch.randn(3, 7, 4)
    dirty = clean.masked_fill(~valid_frames(lengths, 7)[:, :, None], garbage).requires_grad_()
    clean = clean.masked_fill(~valid_frames(lengths, 7)[:, :, None], 0.0).requires_grad_()
    for logits in (clean, dirty):
        group_frames(logits, lengths, 3)[0].square().sum().backward()
    torch.testing.assert_close(group_frames(dirty, lengths, 3)[0], group_frames(clean, lengths, 3)[0], rtol=0, atol=0)
    torch.testing.assert_close(dirty.grad, clean.grad, rtol=0, atol=0)
    assert not dirty.grad[~valid_frames(lengths, 7)].any()


def test_groups_of_nothing_but_padding_are_zeros():
    grouped, lengths = group_frames(torch.full((2, 4, 3), math.nan), torch.tensor([0, 0]), 2)
    assert lengths.tolist() == [0, 0] and not grouped.any()


def test_the_gradient_is_that_of_the_formula():
    logits = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: group_frames(x, torch.tensor([5, 3]), 2)[0], logits)


def test_half_precision_is_grouped_in_float32():
    logits = torch.randn(1, 4, 3).half()
    grouped, _ = group_frames(logits, torch.tensor([4]), 2)
    torch.testing.assert_close(grouped, group_frames(logits.float(), torch.tensor([4]), 2)[0], rtol=0, atol=0)


def test_a_factor_below_one_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        group_frames(torch.zeros(1, 2, 3), torch.tensor([2]), 0)
