"""Relative word error rate reduction of one system against another, with a bootstrap interval. numpy only.

F folds, S seeds of a fold, N recordings of its test set, R resamples. Both systems were trained with the same seeds
and transcribed the same recordings, so every resample draws the same seeds and recordings for both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
MINIMUM_WORDS = 100  # one word is then 1% of WER: fewer words allow no verdict
MINIMUM_RECORDINGS = 10  # a resample of fewer recordings often contains only one of them
BLOCK = 2_000_000  # counts held at a time, 16 MB
REMEMBERED = 4 * BLOCK  # counts kept for the next pair of systems on the same recordings


@dataclass(frozen=True)
class PairedErrors:
    """Word errors of two systems on one test set of one fold.

    Args:
        system, baseline: [S, N] int, one row per seed, the same seeds in the same order.
        words: [N] int, reference words.
        speakers: N names; all equal where they are unknown.

    Raises:
        ValueError: shapes that do not fit together, no seed, no recording, or negative counts.
    """

    system: np.ndarray
    baseline: np.ndarray
    words: np.ndarray
    speakers: Sequence[str]

    def __post_init__(self) -> None:
        shapes = np.shape(self.system), np.shape(self.baseline), np.shape(self.words), (len(self.speakers),)
        (s, n), *_ = shapes if len(shapes[0]) == 2 else [(0, 0)]
        if not s or not n or shapes[1] != (s, n) or shapes[2] != (n,) or shapes[3] != (n,):
            raise ValueError(
                "system and baseline need errors [seeds, recordings] of the same seeds and recordings, words and "
                f"speakers one value a recording; got {', '.join(map(str, shapes))}"
            )
        if min(np.min(self.system), np.min(self.baseline), np.min(self.words)) < 0:
            raise ValueError("numbers of errors and of words are never negative")


@dataclass(frozen=True)
class Reduction:
    """1 - errors of the system / errors of the baseline: `value` in [`low`, `high`], 0.1 meaning 10% fewer errors.

    Args:
        value, low, high: the reduction and its interval.
        words, recordings: summed over folds.
        seeds: number of seeds, the same in all folds; of trainings, where every fold has seeds of its own.
        speakers: number of distinct names.
    """

    value: float
    low: float
    high: float
    words: int
    recordings: int
    seeds: int
    speakers: int

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `no difference shown`; or without a verdict `too few words`, `too few recordings`."""
        if self.words < MINIMUM_WORDS:
            return "too few words"
        if self.recordings < MINIMUM_RECORDINGS:
            return "too few recordings"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference shown"


def power(found: Reduction, effect: float, trainings: int | None = None) -> float:
    """Compute the probability that a reduction of `effect` would be shown, from the interval of a similar comparison.

    The interval stands for normal errors of the same size around the effect, which shrink with the root of the number
    of trainings: planning beforehand, no more exact than that.

    Args:
        found: of a comparison of similar systems on the same test sets.
        effect: relative reduction to be shown, above 0.
        trainings: of the comparison that is planned; None for as many as `found` has.

    Returns:
        Probability, 0 to 1, that the interval of the planned comparison lies above zero.

    Raises:
        ValueError: an effect or a number of trainings out of range, or an interval without width.

    Example:
        >>> wide = Reduction(0.04, low=-0.03, high=0.11, words=8000, recordings=1700, seeds=5, speakers=220)
        >>> f"{power(wide, 0.1):.0%} {power(wide, 0.1, trainings=3):.0%}"
        '80% 58%'
    """
    trainings = found.seeds if trainings is None else trainings
    if effect <= 0 or trainings < 1:
        raise ValueError(f"effect is {effect}, wanted above 0; trainings {trainings}, wanted 1 or more")
    if not found.high > found.low:
        raise ValueError(f"the interval [{found.low}, {found.high}] has no width: nothing can be planned from it")
    normal, reach = NormalDist(), NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    deviation = (found.high - found.low) / (2 * reach) * (found.seeds / trainings) ** 0.5
    return normal.cdf(effect / deviation - reach)


def relative_reduction(
    folds: Sequence[PairedErrors],
    *,
    own_seeds: bool = False,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Reduction:
    """Compute the relative reduction over all folds together, with a percentile interval.

    Each resample draws, with replacement, seeds (once for all folds, whose models begin alike and err alike); speakers
    over all folds where there are several; and recordings within a fold and speaker. With one seed the interval
    covers the recordings alone, with one speaker that speaker alone. With `own_seeds` the trainings of all folds are
    drawn in the place of seeds, so that one seed in each of some folds is enough for the spread of trainings to count,
    and speakers within a fold.
    Drawing both seeds and recordings errs on the wide side (Owen 2007, "The pigeonhole bootstrap"), a handful of seeds
    or speakers on the narrow side, and so do folds that share recordings, which are drawn in each fold by itself.

    Args:
        folds: errors of both systems, by fold.
        own_seeds: whether no seed is that of two folds' trainings.
        resamples: R.
        confidence: share of the resamples inside the interval, above 0 and below 1.
        seed: of the random draws.

    Returns:
        The reduction with its interval.

    Raises:
        ValueError: no fold, folds with different numbers of seeds, or numbers out of range.

    Example:
        Two seeds and twenty recordings of ten words; the system has one error in each, the baseline two:

        >>> ones = np.ones((2, 20), dtype=int)
        >>> fold = PairedErrors(ones, 2 * ones, words=np.full(20, 10), speakers=["anne"] * 20)
        >>> reduction = relative_reduction([fold], resamples=100)
        >>> reduction.value, reduction.verdict
        (0.5, 'better')
    """
    if not folds:
        raise ValueError("there is no fold to compare on")
    if len({len(fold.system) for fold in folds}) > 1:
        raise ValueError("folds have different numbers of seeds: give the seeds that all of them have")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples is {resamples}, wanted 1 or more; confidence {confidence}, wanted 0 to 1")
    totals = _resampled_totals(folds, own_seeds, seed, resamples)
    low, high = _percentiles(_reductions(*totals.T), confidence)
    sums = np.array([[np.sum(fold.system), np.sum(fold.baseline)] for fold in folds], dtype=float).sum(axis=0)
    return Reduction(
        value=float(_reductions(*sums[:, None])[0]),
        low=low,
        high=high,
        words=int(sum(np.sum(fold.words) for fold in folds)),
        recordings=sum(len(fold.words) for fold in folds),
        seeds=len(folds[0].system) * (len(folds) if own_seeds else 1),
        speakers=len(_speakers([fold.speakers for fold in folds])),
    )


def error_rate_interval(
    errors: Sequence[int],
    words: Sequence[int],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute a percentile interval of one system's word error rate by drawing utterances with replacement.

    Args:
        errors, words: counts of each utterance, with at least one reference word in all.
        resamples, confidence, seed: see `relative_reduction`.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: shapes that do not fit together, or no reference word.

    Example:
        >>> error_rate_interval([1] * 20, [10] * 20)  # the same errors in every utterance
        (0.1, 0.1)
    """
    counts = np.stack([np.asarray(errors, dtype=float), np.asarray(words, dtype=float)], axis=1)  # [N, 2]
    if not counts[:, 1].sum():
        raise ValueError("there is no reference word, so no word error rate")
    generator, drawn = np.random.default_rng(seed), []
    for start in range(0, resamples, max(1, BLOCK // len(counts))):
        rows = min(resamples - start, max(1, BLOCK // len(counts)))
        drawn.append(_draw(generator, np.full(rows, len(counts)), len(counts)) @ counts)  # [rows, 2]
    totals = np.concatenate(drawn)
    totals = totals[totals[:, 1] > 0]  # a resample without a word has no rate
    return _percentiles(totals[:, 0] / totals[:, 1], confidence)


def _percentiles(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return lower and upper end of drawn values [R], without interpolation, which would spoil infinite values."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def _reductions(system: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Return the reductions [R] of errors [R], [R]; for a baseline without errors 0 (equal systems) or -inf."""
    ratios = np.full(len(baseline), np.inf)
    np.divide(system, baseline, out=ratios, where=baseline > 0)
    ratios[(baseline == 0) & (system == 0)] = 1.0
    return 1.0 - ratios


def _speakers(folds: Sequence[Sequence[str]]) -> list[str]:
    """Return all speakers of folds, each a list of its recordings' speakers."""
    return sorted({speaker for fold in folds for speaker in fold})


def _resampled_totals(folds: Sequence[PairedErrors], own_seeds: bool, seed: int, resamples: int) -> np.ndarray:
    """Return the summed errors of system and baseline in each resample, [R, 2]."""
    size = resamples * sum(len(fold.speakers) for fold in folds)
    drawn = _remembered_resamples if size <= REMEMBERED else _resamples
    totals = np.zeros((resamples, 2))
    speakers = tuple(tuple(fold.speakers) for fold in folds)
    for resample in drawn(speakers, len(folds[0].system), own_seeds, seed, resamples):
        fold = folds[resample.fold]
        pair = np.stack([fold.system, fold.baseline], axis=1)[:, :, resample.recordings].astype(float)  # [S, 2, n]
        errors = np.tensordot(resample.counts, pair, axes=(1, 2))  # [rows, S, 2]
        totals[resample.rows] += np.einsum("rs,rsk->rk", resample.seed_counts, errors)
    return totals


@dataclass(frozen=True)
class _Resample:
    """Counts of draws in some resamples (`rows`): a fold's seeds, [rows, S], and some of its recordings, [rows, n]."""

    fold: int
    recordings: np.ndarray  # [N] bool
    rows: slice
    seed_counts: np.ndarray
    counts: np.ndarray


def _resamples(
    folds: tuple[tuple[str, ...], ...], seeds: int, own_seeds: bool, generator_seed: int, resamples: int
) -> Iterator[_Resample]:
    """Return all resamples of `folds`, each a list of its recordings' speakers; `BLOCK` counts at a time."""
    generator = np.random.default_rng(generator_seed)

    def draw_speakers(speakers: list[str]) -> np.ndarray:
        """Return how often each speaker is drawn, [R, speakers]; the only one is in every resample."""
        count = len(speakers)
        return _draw(generator, np.full(resamples, count), count) if count > 1 else np.ones((resamples, 1), dtype=int)

    speakers = _speakers(folds)
    speaker_counts = draw_speakers(speakers)
    draws = seeds * (len(folds) if own_seeds else 1)
    seed_counts = _draw(generator, np.full(resamples, draws), draws).reshape(resamples, -1, seeds)  # [R, F or 1, S]
    for place, fold in enumerate(folds):
        if own_seeds:  # a fold is drawn or not: its speakers are then drawn among themselves
            speakers = _speakers([fold])
            speaker_counts = draw_speakers(speakers)
        for speaker, times in zip(speakers, speaker_counts.T, strict=True):
            own = np.array([name == speaker for name in fold])
            recordings = int(own.sum())
            step = max(1, BLOCK // max(1, recordings))
            for start in range(0, resamples if recordings else 0, step):
                rows = slice(start, start + step)
                counts = _draw(generator, recordings * times[rows], recordings).astype(float)
                yield _Resample(place, own, rows, seed_counts[rows, place if own_seeds else 0], counts)


@lru_cache(maxsize=1)  # a table compares many systems on the same recordings, and drawing is nearly all of the work
def _remembered_resamples(*arguments) -> list[_Resample]:
    return list(_resamples(*arguments))


def _draw(generator: np.random.Generator, draws: np.ndarray, units: int) -> np.ndarray:
    """Draw [R] numbers of times; return [R, units], the counts of each of the equally likely units."""
    return generator.multinomial(draws, np.full(units, 1 / units))
