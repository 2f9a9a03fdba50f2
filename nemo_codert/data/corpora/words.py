"""Connected words from isolated ones: real speech of many people, small enough for a CPU.

Recordings `WORD/SPEAKER_nohash_TAKE.wav` (or .ogg, .flac), the layout of the Speech Commands data set, are trimmed,
brought to one level and joined, with pauses, into utterances of 3-7 words of one speaker. No speaker is in two sets.
https://arxiv.org/abs/1804.03209
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from nemo_codert.data.corpora.corpus import Utterance, write_set
from nemo_codert.data.corpora.joining import (
    SHORTEST,
    Recording,
    groups_once,
    join_recordings,
    load_recording,
    random_generator,
    transcript,
)
from nemo_codert.data.corpora.shares import check_shares, write_shares
from nemo_codert.data.corpora.variety import varied as with_variety
from nemo_codert.data.tokenizer import train_tokenizer

SUFFIXES = (".wav", ".ogg", ".flac")
SHARES = ("train",) * 6 + ("dev",) + ("test",) * 3  # sets of ten speakers
FOLDS = 5  # each has another two of ten speakers in test, and the next two in dev
QUIET = 30.0  # dB below the loudest frame of a recording: taken for silence
FRAME = 160  # samples whose power is measured together: 10 ms
MARGIN = 800  # samples that stay before and after a word: 50 ms
LEVEL = 0.05  # RMS of a trimmed word, full scale 1
PEAK = 0.95  # highest absolute sample: a word that would pass it stays below LEVEL
WORDS_IN_MEMORY = 8192


def make_word_corpus(
    words_dir: str | Path,
    output_dir: str | Path,
    *,
    train_utterances: int = 6000,
    fold: int | None = None,
    labelled_share: float | None = None,
    by_speaker: bool = False,
    varied: bool = True,
    vocab_size: int = 64,
    seed: int = 0,
) -> dict[str, Path]:
    """Write `train`, `dev` and `test` sets and `tokenizer/`; return the manifests by set name.

    Six of ten speakers are in train, one in dev, three in test; with `fold`, 0 to 4, six, two and two, such that over
    the five folds of a seed every speaker is in test once and in dev once. train: recordings recombined until there
    are `train_utterances`, every recording once before any is used again; in dev and test no recording is used twice.
    A speaker of fewer than three recordings is left out. Equal arguments give equal files. Train has long
    silent edges, noise, and other speeds and levels (`nemo_codert.data.corpora.variety`), unless `varied` is false;
    dev and test never do.

    With `labelled_share`, `train_labelled` has that share of the training utterances, chosen at random, and
    `train_unlabelled` the others without their text; the audio files are those of train. A recording may be in
    utterances of both. With `by_speaker` it is that share of the speakers, few and many recordings alike, and none is.

    Raises:
        ValueError: a wrong folder, too few speakers, or a number out of range.
    """
    if train_utterances < 1:
        raise ValueError(f"train_utterances is {train_utterances}: want 1 or more.")
    check_shares(labelled_share, by_speaker)
    if fold is not None and fold not in range(FOLDS):
        raise ValueError(f"fold is {fold}: want 0 to {FOLDS - 1}.")
    groups = choose_groups(find_words(words_dir), train_utterances, seed, fold)
    texts = [transcript(group) for group in groups["train"]]
    # The tokenizer comes first: its training is quick and can fail.
    train_tokenizer(texts, Path(output_dir) / "tokenizer", vocab_size)
    load = lru_cache(WORDS_IN_MEMORY)(load_word)
    manifests = {}
    for number, (name, chosen) in enumerate(groups.items()):
        generator = random_generator(seed, 100 + number)
        joined: Iterator[Utterance] = (join_recordings(group, generator, load) for group in chosen)
        if varied and name == "train":
            joined = with_variety(joined, random_generator(seed, 200))
        manifests[name] = write_set(Path(output_dir), name, joined, total=len(chosen))
    if labelled_share is not None:
        manifests.update(write_shares(manifests["train"], labelled_share, seed, by_speaker))
    return manifests


def find_words(words_dir: str | Path) -> list[Recording]:
    """Find all recordings, sorted by word, speaker and take. Raises ValueError for none.

    Folders that begin with an underscore (`_background_noise_`) and files that are not recordings are passed over.
    """
    folder = Path(words_dir)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the folder that holds yes/0a2b400e_nohash_0.wav, ... .")
    found = []
    for path in folder.glob("[!_.]*/*"):
        match = re.fullmatch(r"([^_]+)_nohash_(\d+)", path.stem)
        if match and path.suffix.lower() in SUFFIXES:
            found.append(Recording(path, path.parent.name.lower(), match[1], int(match[2])))
    if not found:
        raise ValueError(
            f"{folder} holds no file named like yes/0a2b400e_nohash_0.wav (WORD/SPEAKER_nohash_TAKE, "
            f"{', '.join(SUFFIXES)}): give the folder of Speech Commands, or of recordings in its layout."
        )
    return sorted(found, key=lambda recording: (recording.word, recording.speaker, recording.take))


def choose_groups(
    recordings: list[Recording], train_utterances: int, seed: int, fold: int | None = None
) -> dict[str, list[list[Recording]]]:
    """Choose the recordings of each utterance of train, dev and test. Raises ValueError for too few speakers."""
    sets = split_speakers(recordings, seed, shares_of(fold))
    return {
        "train": list(islice(_endless(sets["train"], random_generator(seed, 1)), train_utterances)),
        "dev": list(groups_once(sets["dev"], random_generator(seed, 2))),
        "test": list(groups_once(sets["test"], random_generator(seed, 3))),
    }


def shares_of(fold: int | None) -> tuple[str, ...]:
    """Return the sets of ten speakers: `SHARES`, or those of a fold, in which others of the ten are in dev and test.

    Example:
        >>> shares_of(4)
        ('dev', 'dev', 'train', 'train', 'train', 'train', 'train', 'train', 'test', 'test')
    """
    if fold is None:
        return SHARES
    width = len(SHARES) // FOLDS
    sets = {fold: "test", (fold + 1) % FOLDS: "dev"}
    return tuple(sets.get(place // width, "train") for place in range(len(SHARES)))


def split_speakers(
    recordings: list[Recording], seed: int, shares: tuple[str, ...] = SHARES
) -> dict[str, dict[str, list[Recording]]]:
    """Return the recordings of train, dev and test by speaker; ten speakers of similar size are split at a time.

    Args:
        recordings: all of them. seed: of the order. shares: set of each of ten speakers.

    Raises:
        ValueError: fewer than ten speakers with three recordings or more.
    """
    by_speaker: dict[str, list[Recording]] = {}
    for recording in recordings:
        by_speaker.setdefault(recording.speaker, []).append(recording)
    speakers = sorted(name for name, found in by_speaker.items() if len(found) >= SHORTEST)
    if len(speakers) < len(SHARES):
        raise ValueError(
            f"{recordings[0].path.parent.parent}: {len(speakers)} speakers have {SHORTEST} recordings or more, want "
            f"{len(SHARES)} or more to tell training from test. Use the complete data set."
        )
    generator = random_generator(seed, 0)
    shuffled = [speakers[i] for i in generator.permutation(len(speakers))]
    by_size = sorted(shuffled, key=lambda name: -len(by_speaker[name]))  # stable: equal sizes stay shuffled
    sets: dict[str, dict[str, list[Recording]]] = {name: {} for name in dict.fromkeys(SHARES)}  # train first
    for first in range(0, len(by_size), len(SHARES)):
        order = generator.permutation(len(SHARES))
        for place, speaker in zip(order, by_size[first : first + len(SHARES)], strict=False):
            sets[shares[place]][speaker] = by_speaker[speaker]
    return {name: dict(sorted(chosen.items())) for name, chosen in sets.items()}


def load_word(recording: Recording) -> np.ndarray:
    """Return a recording [S] without the silence around the word, with an RMS of LEVEL where PEAK permits."""
    samples = load_recording(recording)
    frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    power = (frames**2).mean(axis=1)
    loud = np.flatnonzero(power >= power.max() * 10 ** (-QUIET / 10))
    word = samples[max(0, loud[0] * FRAME - MARGIN) : (loud[-1] + 1) * FRAME + MARGIN]
    rms, peak = np.sqrt(np.mean(word**2)), np.abs(word).max()
    return word * min(LEVEL / max(rms, 1e-6), PEAK / max(peak, 1e-6))


def _endless(by_speaker: dict[str, list[Recording]], generator: np.random.Generator) -> Iterator[list[Recording]]:
    """Yield groups without end, speakers mixed; every recording serves once before any serves again."""
    while True:
        groups = list(groups_once(by_speaker, generator))
        yield from (groups[i] for i in generator.permutation(len(groups)))
