"""Training utterances with long silent edges, background noise, and other speeds and levels.

Joined or synthesised utterances begin and end alike, and a model trained on them alone inserts words where the audio
of a device has a second of silence. Imports numpy and soxr only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from nemo_codert.data.corpora.corpus import SAMPLE_RATE, Utterance, resample
from nemo_codert.data.corpora.noise import noise_level, pink_noise

SHARE = 0.5  # probability of longer edges, of another speed, of another level: each is drawn alone
EDGES = ("zeros", "room", "noise")  # digital silence; weak white noise; pink noise, over the speech too
EDGE_SECONDS = (0.0, 1.5)  # each edge
ROOM = (1e-5, 3e-3)  # RMS of the white noise, full scale 1
SIGNAL_TO_NOISE = (5.0, 30.0)  # dB
SPEED = (0.9, 1.1)  # factor of speed and pitch
LEVEL = (-20.0, 6.0)  # dB added


def varied(
    utterances: Iterator[Utterance],
    generator: np.random.Generator,
    *,
    room: tuple[float, float] = ROOM,
    edged: float = SHARE,
    edges: Sequence[str] = EDGES,
    level: tuple[float, float] = LEVEL,
) -> Iterator[Utterance]:
    """Yield the utterances, about seven of eight of them changed; texts, speakers and ids stay.

    Args:
        utterances: of a training set.
        generator: of the draws; as many for every utterance, so that a change of one leaves the others alone.
        room: least and largest RMS of the noise of a room, full scale 1.
        edged: share of utterances with longer edges. edges: kinds of which one is drawn, of `EDGES`.
        level: least and largest change of the level, dB. Samples lifted beyond full scale are cut off.

    Example:
        >>> utterance = Utterance(np.full(16_000, 0.1, np.float32), "yes", "ann")
        >>> [len(made.samples) for made in varied(iter([utterance] * 4), np.random.default_rng(0))]
        [43333, 16000, 35888, 45142]
    """
    for utterance in utterances:
        faster, longer, louder = generator.random(3) < (SHARE, edged, SHARE)
        speed, decibels = generator.uniform(*SPEED), generator.uniform(*level)
        kind, seed = str(generator.choice(edges)), int(generator.integers(2**32))
        samples = resample(utterance.samples, round(SAMPLE_RATE * speed)) if faster else utterance.samples
        samples = _with_edges(samples, kind, room, np.random.default_rng(seed)) if longer else samples
        samples = samples * 10 ** (decibels / 20) if louder else samples
        yield replace(utterance, samples=np.clip(samples, -1.0, 1.0).astype(np.float32))


def _with_edges(
    speech: np.ndarray, kind: str, room: tuple[float, float], generator: np.random.Generator
) -> np.ndarray:
    before, after = (int(seconds * SAMPLE_RATE) for seconds in generator.uniform(*EDGE_SECONDS, size=2))
    samples = np.pad(speech, (before, after))
    if kind == "room":
        noise = np.exp(generator.uniform(*np.log(room))) * generator.standard_normal(len(samples))
        noise[before : before + len(speech)] = 0.0  # the speech has its own
        samples = samples + noise
    if kind == "noise":
        level = noise_level(speech, generator.uniform(*SIGNAL_TO_NOISE))
        samples = samples + level * pink_noise(len(samples), generator)
    return samples
