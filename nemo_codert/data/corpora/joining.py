"""Recordings of single words by one speaker joined to utterances of 3-7 words, with quiet pauses.

Imports numpy and soundfile only, neither torch nor NeMo.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from nemo_codert.data.corpora.corpus import SAMPLE_RATE, Utterance, resample

SHORTEST, LONGEST = 3, 7  # words in an utterance
PAUSE_SECONDS = (0.05, 0.3)
PAUSE_NOISE = (1e-5, 1e-3)  # bounds of the RMS of pauses, full scale 1: quiet, but never digital silence


@dataclass(frozen=True)
class Recording:
    """One spoken word. take: number of the recording among those of one speaker and one word."""

    path: Path
    word: str
    speaker: str
    take: int


def transcript(recordings: Sequence[Recording]) -> str:
    """Return the words in order."""
    return " ".join(recording.word for recording in recordings)


def load_recording(recording: Recording) -> np.ndarray:
    """Return the first channel of a recording, [S] float32 at SAMPLE_RATE. Raises ValueError for broken files."""
    try:
        samples, rate = soundfile.read(recording.path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"{recording.path} cannot be read ({error}). Fetch the dataset again.") from error
    if len(samples) == 0:
        raise ValueError(f"{recording.path} is empty. Fetch the dataset again.")
    return resample(samples[:, 0], rate)


def join_recordings(
    recordings: Sequence[Recording],
    generator: np.random.Generator,
    load: Callable[[Recording], np.ndarray] = load_recording,
) -> Utterance:
    """Return one utterance: the recordings in order, at 16 kHz, with a pause before, between and after them."""
    words = [load(recording) for recording in recordings]
    noise = float(np.clip(min(_quietest(word) for word in words), *PAUSE_NOISE))
    pieces = [_pause(noise, generator)]
    for word in words:
        pieces += [word, _pause(noise, generator)]
    samples = np.clip(np.concatenate(pieces), -1.0, 1.0)
    return Utterance(samples=samples, text=transcript(recordings), speaker=recordings[0].speaker)


def groups_once(by_speaker: dict[str, list[Recording]], generator: np.random.Generator) -> Iterator[list[Recording]]:
    """Yield groups of 3-7 recordings of one speaker that use every recording exactly once."""
    for recordings in by_speaker.values():
        shuffled = [recordings[i] for i in generator.permutation(len(recordings))]
        while shuffled:
            size = _group_size(len(shuffled), generator)
            yield shuffled[:size]
            shuffled = shuffled[size:]


def random_generator(seed: int, stream: int) -> np.random.Generator:
    """Return the generator of one purpose (`stream`) of a corpus."""
    return np.random.default_rng([seed, stream])


def _group_size(left: int, generator: np.random.Generator) -> int:
    """Draw the size of the next group out of `left` >= 3 recordings, such that the rest is 0 or a group or more."""
    fits = [size for size in range(SHORTEST, LONGEST + 1) if left - size == 0 or left - size >= SHORTEST]
    return int(generator.choice(fits))


def _quietest(samples: np.ndarray) -> float:
    """Return the RMS of the quietest 10 ms: the noise level of the recording room."""
    frame = SAMPLE_RATE // 100
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    return float(np.sqrt((frames**2).mean(axis=1)).min()) if len(frames) else 0.0


def _pause(noise: float, generator: np.random.Generator) -> np.ndarray:
    length = int(generator.uniform(*PAUSE_SECONDS) * SAMPLE_RATE)
    return (noise * generator.standard_normal(length)).astype(np.float32)
