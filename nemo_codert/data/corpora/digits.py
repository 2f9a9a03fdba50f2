"""Connected digits from the Free Spoken Digit Dataset: real speech, small enough for a CPU.

Recordings `{digit}_{speaker}_{take}.wav` (8 kHz) of one speaker are joined, with pauses, into utterances of 3-7
digits at 16 kHz, to which pink noise may be added. Takes 0-4 are the dataset's official test set.
https://github.com/Jakobovski/free-spoken-digit-dataset
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from nemo_codert.data.corpora.corpus import Utterance, write_set
from nemo_codert.data.corpora.joining import (
    SHORTEST,
    Recording,
    groups_once,
    join_recordings,
    random_generator,
    transcript,
)
from nemo_codert.data.corpora.noise import noise_level, pink_noise
from nemo_codert.data.corpora.variety import varied as with_variety
from nemo_codert.data.tokenizer import train_tokenizer

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "nicolas", "theo", "yweweler")
UNSEEN_SPEAKER = "george"
TEST_TAKES, DEV_TAKES, TRAIN_TAKES = range(0, 5), range(5, 10), range(10, 1000)
ALL_TAKES = range(0, 1000)


def make_digit_corpus(
    fsdd_dir: str | Path,
    output_dir: str | Path,
    *,
    train_utterances: int = 3000,
    unseen_speaker: str = UNSEEN_SPEAKER,
    snr: tuple[float, float] | None = None,
    varied: bool = True,
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

    Train has long silent edges, noise, and other speeds and levels (`nemo_codert.data.corpora.variety`), unless
    `varied` is false; the other sets never do.

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
            joined = _joined(chosen, random_generator(seed, 100 + number))
            if snr is not None and every:
                joined = _with_noise(joined, every, snr, random_generator(seed, 200 + number))
            if varied and name == "train":
                joined = with_variety(joined, random_generator(seed, 300))
            manifests[set_name] = write_set(Path(output_dir), set_name, joined, total=len(chosen))
    return manifests


def choose_groups(
    recordings: list[Recording], train_utterances: int, seed: int, unseen_speaker: str = UNSEEN_SPEAKER
) -> dict[str, list[list[Recording]]]:
    """Choose the recordings of each utterance of each set. Raises ValueError for a missing or unknown speaker."""
    if unseen_speaker not in SPEAKERS:
        raise ValueError(f"unseen_speaker is {unseen_speaker!r}: want one of {', '.join(SPEAKERS)}.")
    seen = tuple(speaker for speaker in SPEAKERS if speaker != unseen_speaker)
    train = _endless(_select(recordings, seen, TRAIN_TAKES), random_generator(seed, 0))
    return {
        "train": list(islice(train, train_utterances)),
        "dev": list(groups_once(_select(recordings, seen, DEV_TAKES), random_generator(seed, 1))),
        "test_seen": list(groups_once(_select(recordings, seen, TEST_TAKES), random_generator(seed, 2))),
        "test_unseen": list(groups_once(_select(recordings, (unseen_speaker,), ALL_TAKES), random_generator(seed, 3))),
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
            found.append(Recording(path, DIGIT_WORDS[int(match[1])], match[2], int(match[3])))
    if not found:
        raise ValueError(
            f"{folder} holds no file named like 3_jackson_12.wav ({{digit}}_{{speaker}}_{{take}}.wav): "
            "give the root of a checkout of free-spoken-digit-dataset."
        )
    return found


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


def _endless(by_speaker: dict[str, list[Recording]], generator: np.random.Generator) -> Iterator[list[Recording]]:
    """Yield groups without end, one speaker after the other; every recording serves once before any serves again."""
    passes: dict[str, Iterator[list[Recording]]] = {name: iter(()) for name in by_speaker}
    while True:
        for name, recordings in by_speaker.items():
            group = next(passes[name], None)
            if group is None:
                passes[name] = groups_once({name: recordings}, generator)
                group = next(passes[name])
            yield group
