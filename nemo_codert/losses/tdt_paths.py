"""Durations of a TDT model, and which utterances they fit (Xu et al., arXiv:2304.06795). Imports no other module."""

from collections.abc import Sequence
from numbers import Integral


def check_durations(durations: Sequence[int]) -> tuple[int, ...]:
    """Return the durations as a tuple.

    Raises:
        ValueError: durations that are not different whole numbers, 0 or more, one of them above 0.
    """
    given = tuple(durations)
    whole = all(isinstance(each, Integral) and each >= 0 for each in given)
    if not whole or len(set(given)) < len(given) or not any(given):
        raise ValueError(
            "durations must be different whole numbers of frames, 0 or more, and at least one above 0, "
            f"got {list(given)}"
        )
    return tuple(int(each) for each in given)


def _moved(sums: int, durations: Sequence[int]) -> int:
    """Return the sums (bit n is set for the number n) that are one duration larger."""
    moved = 0
    for duration in durations:
        moved |= sums << duration
    return moved


def has_tdt_path(frames: int, tokens: int, durations: Sequence[int]) -> bool:
    """Return whether a TDT lattice has any path: whether the durations of some alignment sum to the frames.

    Each token takes one of the durations, and one blank or more, the last of them at the end, take one above 0 each.

    Args:
        frames: of the encoder, 0 or more.
        tokens: of the transcript, 0 or more.
        durations: of the model, in frames.

    Returns:
        True if the utterance can have a loss; the TDT losses refuse those without a path.

    Raises:
        ValueError: durations that no model has.

    Example:
        >>> from nemo_codert.losses import has_tdt_path
        >>> [has_tdt_path(frames, 2, [0, 1, 2]) for frames in (0, 1)]
        [False, True]
        >>> [has_tdt_path(frames, 2, [2, 4]) for frames in (5, 6, 7, 8)]  # two tokens and a blank take 6 or more
        [False, True, False, True]
    """
    durations = check_durations(durations)
    if 1 in durations:  # blanks of one frame fill what is left
        return frames > tokens * min(durations)
    within, sums = (1 << frames + 1) - 1, 1
    for _ in range(tokens):
        sums = _moved(sums, durations) & within
    of_blank = [each for each in durations if each > 0]
    ends = new = _moved(sums, of_blank) & within
    while new := _moved(new, of_blank) & within & ~ends:
        ends |= new
    return bool(ends >> frames & 1)


def check_paths(sizes: Sequence[tuple[int, int]], durations: Sequence[int]) -> None:
    """Check that every utterance has a path.

    Args:
        sizes: encoded and target length of every utterance.
        durations: of the model, in frames.

    Raises:
        ValueError: utterances without a path; the message has their indices and lengths.
    """
    without = [(b, *size) for b, size in enumerate(sizes) if not has_tdt_path(*size, durations)]
    if without:
        named = ", ".join(f"{b} ({t} frames, {u} tokens)" for b, t, u in without)
        raise ValueError(
            f"no sum of durations {list(durations)} fits the utterances with the indices {named}: a token takes one "
            "duration, and a blank above 0 frames ends the utterance. Leave such utterances out"
        )
