"""Training utterances with silent edges, noise, other speeds and levels (nemo_codert.data.corpora.variety)."""

import numpy as np
import pytest

from nemo_codert.data.corpora.corpus import SAMPLE_RATE, Utterance
from nemo_codert.data.corpora.variety import EDGE_SECONDS, SPEED, varied

SECONDS = 2


@pytest.fixture(scope="module")
def made() -> list[Utterance]:
    tone = (0.1 * np.sin(2 * np.pi * 440 * np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32)
    same = (Utterance(tone, "yes no", "ann", f"u{number}") for number in range(300))
    return list(varied(same, np.random.default_rng(0)))


def edges(samples: np.ndarray) -> tuple[int, int]:
    """Return the samples before and after the tone."""
    loud = np.flatnonzero(np.abs(samples) > 0.5 * np.abs(samples).max())
    return int(loud[0]), len(samples) - 1 - int(loud[-1])


def test_texts_speakers_and_ids_stay(made):
    assert {(utterance.text, utterance.speaker) for utterance in made} == {("yes no", "ann")}
    assert [utterance.utterance_id for utterance in made] == [f"u{number}" for number in range(300)]
    assert all(utterance.samples.dtype == np.float32 and np.abs(utterance.samples).max() <= 1 for utterance in made)


def test_lengths_are_those_of_speeds_and_edges(made):
    seconds = np.array([len(utterance.samples) / SAMPLE_RATE for utterance in made])
    assert seconds.min() >= SECONDS / SPEED[1] - 0.01
    assert seconds.max() <= SECONDS / SPEED[0] + 2 * EDGE_SECONDS[1] + 0.01
    assert np.mean(seconds == SECONDS) == pytest.approx(0.25, abs=0.08)  # neither edges nor another speed
    assert np.mean(seconds > SECONDS / SPEED[0]) == pytest.approx(0.5, abs=0.1)


def test_edges_are_zeros_or_noise(made):
    kinds = {"zeros": 0, "noise": 0}
    for samples in (utterance.samples for utterance in made):
        before, after = edges(samples)
        if before + after > SAMPLE_RATE:
            silence = np.concatenate([samples[: before - 400], samples[len(samples) - after + 400 :]])
            kinds["noise" if silence.any() else "zeros"] += 1
    assert kinds["zeros"] > 20 and kinds["noise"] > 50


def test_levels_lie_within_their_bounds(made):
    loud = np.array([np.percentile(np.abs(utterance.samples), 99.9) for utterance in made])
    assert loud.min() >= 0.1 * 10 ** (-20 / 20) * 0.9 and loud.max() <= 0.1 * 10 ** (6 / 20) * 2.5
    assert np.mean(loud < 0.09) > 0.25


def test_levels_that_leave_the_peak_below_full_scale_cut_nothing_off():
    loud = np.full(SAMPLE_RATE, 0.8, np.float32)
    utterances = (Utterance(loud, "yes", "ann") for _ in range(100))
    made = [*varied(utterances, np.random.default_rng(0), edged=0.0, level=(-3.0, 1.5))]
    peaks = np.array([np.percentile(np.abs(utterance.samples), 50) for utterance in made])
    assert peaks.min() < 0.65 and 0.9 < peaks.max() < 0.8 * 10 ** (1.5 / 20) + 1e-3


def test_equal_generators_give_equal_utterances_and_the_next_do_not_depend_on_the_length():
    short, long = (np.full(length, 0.1, np.float32) for length in (8_000, 16_000))
    first, second = (
        [*varied(iter([Utterance(start, "a", "b"), Utterance(long, "a", "b")]), np.random.default_rng(5))]
        for start in (short, long)
    )
    assert np.array_equal(first[1].samples, second[1].samples)
