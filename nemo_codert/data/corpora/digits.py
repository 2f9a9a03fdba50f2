"""Connected digits from the Free Spoken Digit Dataset: real speech, small enough for a CPU.

Recordings `{digit}_{speaker}_{take}.wav` (8 kHz) of one speaker are joined, with pauses, into utterances of 3-7
digits at 16 kHz, to which pink noise may be added. Takes 0-4 are the dataset's official test set.
https://github.com/Jakobovski/free-spoken-digit-dataset
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile

from nemo_codert.data.corpora.corpus import SAMPLE_RATE, Utterance, resample, write_set
from nemo_codert.data.corpora.noise import noise_level, pink_noise
from nemo_codert.data.tokenizer import train_tokenizer

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "nicolas", "theo", "yweweler")
UNSEEN_SPEAKER = "george"
TEST_TAKES, DEV_TAKES, TRAIN_TAKES = range(0, 5), range(5, 10), range(10, 1000)
ALL_TAKES = range(0, 1000)
SHORTEST, LONGEST = 3, 7  # digits in an utterance
PAUSE_SECONDS = (0.05, 0.3)
PAUSE_NOISE = (1e-5, 1e-3)  # bounds of the RMS of pauses, full scale 1: quiet, but never digital silence


@dataclass(frozen=True)
class Recording:
    """One spoken digit of the dataset."""

    path: Path
    digit: int
    speaker: str
    take: int


def make_digit_corpus(
    fsdd_dir: str | Path,
    output_dir: str | Path,
    *,
    train_utterances: int = 3000,
    unseen_speaker: str = UNSEEN_SPEAKER,
    snr: tuple[float, float] | None = None,
    vocab_size: int = 40,
    seed: int = 0,
) -> dict[str, Path]:
    """Write `train`, `dev`, `test_seen` and `test_unseen` sets and `tokenizer/`; return the manifests by set name.

    train: the other speakers, takes from 10, recordings recombined until there are `train_utterances`. dev: takes 5-9
    and test_seen: takes 0-4 of the same speakers; test_unseen: all takes of `unseen_speaker`; in these three no
    recording is used twice. Equal arguments give equal files.

    With `snr`, lowest and highest ratio in dB of an utterance's mean power to the noise's, every second utterance of
    train and dev gets pink noise, and `test_seen_noisy` and `test_unseen_noisy` are the test sets with noise on every
    utterance. Utterances without noise are the same with and without `snr`.

    Raises:
        ValueError: a wrong folder, a missing or unknown speaker, or a number out of range.
    """
    if train_utterances < 1:
        raise ValueError(f"train_utterances is {train_utterances}: want 1 or more.")
    if snr is not None and not (len(snr) == 2 and -100.0 <= snr[0] <= snr[1] <= 100.0):
        raise ValueError(f"snr is {snr}: want the lowest and the highest in dB, between -100 and 100, as in 0 15.")
    groups = choose_groups(find_recordings(fsdd_dir), train_utterances, seed, unseen_speaker)
    texts = [transcript(group) for group in groups["train"]]
    # The tokenizer comes first: its training is quick and can fail.
    train_tokenizer(texts, Path(output_dir) / "tokenizer", vocab_size)
    manifests = {}
    for number, (name, chosen) in enumerate(groups.items()):
        for set_name, every in _versions(name, snr):
            joined = _joined(chosen, _generator(seed, 100 + number))
            if snr is not None and every:
                joined = _with_noise(joined, every, snr, _generator(seed, 200 + number))
            manifests[set_name] = write_set(Path(output_dir), set_name, joined, total=len(chosen))
    return manifests


def choose_groups(
    recordings: list[Recording], train_utterances: int, seed: int, unseen_speaker: str = UNSEEN_SPEAKER
) -> dict[str, list[list[Recording]]]:
    """Choose the recordings of each utterance of each set. Raises ValueError for a missing or unknown speaker."""
    if unseen_speaker not in SPEAKERS:
        raise ValueError(f"unseen_speaker is {unseen_speaker!r}: want one of {', '.join(SPEAKERS)}.")
    seen = tuple(speaker for speaker in SPEAKERS if speaker != unseen_speaker)
    train = _endless(_select(recordings, seen, TRAIN_TAKES), _generator(seed, 0))
    return {
        "train": list(islice(train, train_utterances)),
        "dev": list(_once(_select(recordings, seen, DEV_TAKES), _generator(seed, 1))),
        "test_seen": list(_once(_select(recordings, seen, TEST_TAKES), _generator(seed, 2))),
        "test_unseen": list(_once(_select(recordings, (unseen_speaker,), ALL_TAKES), _generator(seed, 3))),
    }


def _versions(name: str, snr: tuple[float, float] | None) -> list[tuple[str, int]]:
    """Return the sets written from one choice of recordings: (name, n), noise on every nth utterance, 0 for none."""
    if not name.startswith("test"):
        return [(name, 2)]
    return [(name, 0)] if snr is None else [(name, 0), (f"{name}_noisy", 1)]


def _joined(groups: list[list[Recording]], generator: np.random.Generator) -> Iterator[Utterance]:
    return (join_recordings(group, generator) for group in groups)


def _with_noise(
    utterances: Iterator[Utterance], every: int, snr: tuple[float, float], generator: np.random.Generator
) -> Iterator[Utterance]:
    for number, utterance in enumerate(utterances):
        samples = utterance.samples
        if number % every == every - 1:
            level = noise_level(samples, generator.uniform(*snr))
            samples = np.clip(samples + level * pink_noise(len(samples), generator), -1.0, 1.0)
        yield replace(utterance, samples=samples)


def transcript(recordings: list[Recording]) -> str:
    """Return the digits as words."""
    return " ".join(DIGIT_WORDS[recording.digit] for recording in recordings)


def find_recordings(fsdd_dir: str | Path) -> list[Recording]:
    """Find all recordings below `<fsdd_dir>/recordings` (or `fsdd_dir` itself), sorted. Raises ValueError for none."""
    folder = Path(fsdd_dir)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the root of a checkout of free-spoken-digit-dataset.")
    if (folder / "recordings").is_dir():
        folder = folder / "recordings"
    found = []
    for path in sorted(folder.glob("*.wav")):
        match = re.fullmatch(r"(\d)_([A-Za-z]+)_(\d+)", path.stem)
        if match:
            found.append(Recording(path, int(match[1]), match[2], int(match[3])))
    if not found:
        raise ValueError(
            f"{folder} holds no file named like 3_jackson_12.wav ({{digit}}_{{speaker}}_{{take}}.wav): "
            "give the root of a checkout of free-spoken-digit-dataset."
        )
    return found


def join_recordings(recordings: list[Recording], generator: np.random.Generator) -> Utterance:
    """Return one utterance: the recordings in order, at 16 kHz, with a pause before, between and after them."""
    digits = [_load(recording) for recording in recordings]
    noise = float(np.clip(min(_quietest(digit) for digit in digits), *PAUSE_NOISE))
    pieces = [_pause(noise, generator)]
    for digit in digits:
        pieces += [digit, _pause(noise, generator)]
    samples = np.clip(np.concatenate(pieces), -1.0, 1.0)
    return Utterance(samples=samples, text=transcript(recordings), speaker=recordings[0].speaker)


def _select(recordings: list[Recording], speakers: tuple[str, ...], takes: range) -> dict[str, list[Recording]]:
    chosen = {name: [r for r in recordings if r.speaker == name and r.take in takes] for name in speakers}
    for name, found in chosen.items():
        if len(found) < SHORTEST:
            known = ", ".join(sorted({r.speaker for r in recordings}))
            raise ValueError(
                f"{recordings[0].path.parent}: speaker {name} has {len(found)} recordings of takes {takes.start}-"
                f"{takes.stop - 1}, want {SHORTEST} or more (speakers found: {known}). Use the complete dataset."
            )
    return chosen


def _once(by_speaker: dict[str, list[Recording]], generator: np.random.Generator) -> Iterator[list[Recording]]:
    """Yield groups of 3-7 recordings of one speaker that use every recording exactly once."""
    for recordings in by_speaker.values():
        shuffled = [recordings[i] for i in generator.permutation(len(recordings))]
        while shuffled:
            size = _group_size(len(shuffled), generator)
            yield shuffled[:size]
            shuffled = shuffled[size:]


def _endless(by_speaker: dict[str, list[Recording]], generator: np.random.Generator) -> Iterator[list[Recording]]:
    """Yield groups without end, one speaker after the other; every recording serves once before any serves again."""
    passes: dict[str, Iterator[list[Recording]]] = {name: iter(()) for name in by_speaker}
    while True:
        for name, recordings in by_speaker.items():
            group = next(passes[name], None)
            if group is None:
                passes[name] = _once({name: recordings}, generator)
                group = next(passes[name])
            yield group


def _group_size(left: int, generator: np.random.Generator) -> int:
    """Draw the size of the next group out of `left` >= 3 recordings, such that the rest is 0 or a group or more."""
    fits = [size for size in range(SHORTEST, LONGEST + 1) if left - size == 0 or left - size >= SHORTEST]
    return int(generator.choice(fits))


def _load(recording: Recording) -> np.ndarray:
    """Load a recording as [S] float32 at SAMPLE_RATE."""
    try:
        samples, rate = soundfile.read(recording.path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"{recording.path} cannot be read ({error}). Fetch the dataset again.") from error
    if len(samples) == 0:
        raise ValueError(f"{recording.path} is empty. Fetch the dataset again.")
    return resample(samples[:, 0], rate)


def _quietest(samples: np.ndarray) -> float:
    """Return the RMS of the quietest 10 ms: the noise level of the recording room."""
    frame = SAMPLE_RATE // 100
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    return float(np.sqrt((frames**2).mean(axis=1)).min()) if len(frames) else 0.0


def _pause(noise: float, generator: np.random.Generator) -> np.ndarray:
    length = int(generator.uniform(*PAUSE_SECONDS) * SAMPLE_RATE)
    return (noise * generator.standard_normal(length)).astype(np.float32)


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream])
