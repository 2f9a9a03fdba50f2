"""Target-speaker mixtures: an enrolment of one speaker, a beep, then that speaker and another one at once.

The signal itself names the speaker whose text is wanted, so that a stock model can learn the task. As in Moriya et
al., https://arxiv.org/abs/2305.15971, a teacher may be given clean speech: `clean.json` has the ids and lengths of
`mixed.json`.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from nemo_codert.data.corpora.corpus import SAMPLE_RATE, Utterance, resample, write_set
from nemo_codert.data.corpora.joining import random_generator
from nemo_codert.data.manifest import read_manifest

logger = logging.getLogger(__name__)
Entry = dict[str, Any]

BEEP_HERTZ, BEEP_SECONDS, BEEP_LEVEL = 1000.0, 0.2, 0.1  # level: amplitude, full scale 1
GAP_SECONDS = 0.1  # silence on either side of the beep
QUIET = 1e-4  # RMS where the target is silent: quiet, but never digital silence
PEAK = 0.95  # highest absolute sample of a mixture


@dataclass(frozen=True)
class Mixture:
    """Manifest entries of one mixture; an enrolment is made of other utterances of the same speaker, in order."""

    target: Entry
    other: Entry
    target_enrolment: list[Entry]
    other_enrolment: list[Entry]


@dataclass(frozen=True)
class Signals:
    """Pieces of one mixture, float at SAMPLE_RATE: prefixes [P] (enrolment and beep), and two signals [S] to add."""

    target_prefix: np.ndarray
    other_prefix: np.ndarray
    target: np.ndarray
    other: np.ndarray


def make_mixtures(
    manifest: str | Path,
    output_dir: str | Path,
    *,
    enrollment: float = 2.0,
    sir: tuple[float, float] = (-5.0, 5.0),
    seed: int = 0,
) -> dict[str, Path]:
    """Write `mixed`, `clean` and `counter`, one utterance each for every line of a manifest; return the manifests.

    mixed: enrolment of the speaker from other utterances, beep, the utterance together with one of another speaker.
    clean: the same without the other speaker, with equal `utterance_id` and length. counter: the mixtures again, after
    the enrolment of the other speaker and with the other one's text: the output of a model that follows the enrolment
    changes to that. A speaker of a single utterance is left out. Equal arguments give equal files.

    Args:
        manifest: lines with `speaker` and `text`.
        output_dir: folder of the manifests and of audio/.
        enrollment: seconds of enrolment; 0 for neither enrolment nor beep, and no counter.
        sir: lowest and highest ratio in dB of the target's mean power to the other's; inf inf for no other speaker.
        seed: of the choice of speakers, utterances and ratios.

    Raises:
        ValueError: a line without a speaker, fewer than two speakers, or a number out of range.
    """
    if not 0.0 <= enrollment <= 60.0:
        raise ValueError(f"enrollment is {enrollment}: want seconds from 0 to 60.")
    if not (len(sir) == 2 and sir[0] <= sir[1] and all(abs(ratio) <= 100.0 or ratio == math.inf for ratio in sir)):
        raise ValueError(f"sir is {sir}: want the lowest and the highest in dB, between -100 and 100, as in -5 5.")
    plan = plan_mixtures(manifest, enrollment, seed)
    names = ("mixed", "clean", "counter") if enrollment else ("mixed", "clean")
    sets = {name: _utterances(name, plan, Path(manifest).stem, enrollment, sir, seed) for name in names}
    return {name: write_set(Path(output_dir), name, made, total=len(plan)) for name, made in sets.items()}


def plan_mixtures(manifest: str | Path, enrollment: float, seed: int) -> list[Mixture]:
    """Choose the other utterance and both enrolments of every line. Raises ValueError for lack of speakers."""
    by_speaker: dict[str, list[Entry]] = {}
    entries = read_manifest(manifest)
    for number, entry in enumerate(entries, start=1):
        if not entry.get("speaker"):
            raise ValueError(f"{manifest}: utterance {number} has no speaker. Mixtures need speaker on every line.")
        by_speaker.setdefault(str(entry["speaker"]), []).append(entry)
    single = [name for name, found in by_speaker.items() if len(found) < 2]
    if single:
        logger.warning("%s: %d speakers of a single utterance are left out: no enrolment.", manifest, len(single))
    usable = {name: found for name, found in by_speaker.items() if name not in single}
    if len(usable) < 2:
        raise ValueError(f"{manifest}: {len(usable)} speakers have two utterances or more, want 2 or more speakers.")
    draw, plan = random_generator(seed, 0), []
    for target in (entry for entry in entries if str(entry["speaker"]) in usable):
        speakers = [name for name in usable if name != str(target["speaker"])]
        others = usable[speakers[draw.integers(len(speakers))]]
        other = others[draw.integers(len(others))]
        enrolments = (_enrolment(usable[str(e["speaker"])], e, enrollment, draw) for e in (target, other))
        plan.append(Mixture(target, other, *enrolments))
    return plan


def mixture_signals(
    mixture: Mixture, enrollment: float, sir: tuple[float, float], draw: np.random.Generator
) -> Signals:
    """Return the pieces of a mixture: both signals of one length, the shorter one at a random place in quiet noise."""
    target, other = _load(mixture.target), _load(mixture.other)
    ratio = draw.uniform(*sir) if sir[0] < sir[1] else sir[0]
    other = other * (_rms(target) / max(_rms(other), 1e-6) * 10 ** (-ratio / 20))
    length = max(len(target), len(other))
    target = _placed(target, length, draw) + QUIET * draw.standard_normal(length)
    other = _placed(other, length, draw)
    scale = min(1.0, PEAK / max(np.abs(target + other).max(), np.abs(target).max()))
    prefixes = (_prefix(found, enrollment) for found in (mixture.target_enrolment, mixture.other_enrolment))
    return Signals(*prefixes, target * scale, other * scale)


def _utterances(
    name: str, plan: list[Mixture], stem: str, enrollment: float, sir: tuple[float, float], seed: int
) -> Iterator[Utterance]:
    for number, mixture in enumerate(plan):
        signals = mixture_signals(mixture, enrollment, sir, random_generator(seed, 1000 + number))
        wanted = mixture.other if name == "counter" else mixture.target
        prefix = signals.other_prefix if name == "counter" else signals.target_prefix
        speech = signals.target if name == "clean" else signals.target + signals.other
        samples = np.concatenate([prefix, speech]).astype(np.float32)
        yield Utterance(samples, wanted["text"], str(wanted["speaker"]), f"{stem}_{number:06d}")


def _enrolment(utterances: list[Entry], used: Entry, seconds: float, draw: np.random.Generator) -> list[Entry]:
    """Return other utterances of the speaker, in random order, until they last `seconds`; all, if too short."""
    rest = [entry for entry in utterances if entry is not used]
    chosen: list[Entry] = []
    for place in draw.permutation(len(rest)):
        if sum(entry["duration"] for entry in chosen) >= seconds:
            break
        chosen.append(rest[place])
    return chosen


def _prefix(enrolment: list[Entry], seconds: float) -> np.ndarray:
    """Return [P] of `seconds` of enrolment, repeated if it is too short, and a beep between two gaps."""
    if not seconds:
        return np.zeros(0, np.float32)
    voice = np.resize(np.concatenate([_load(entry) for entry in enrolment]), round(seconds * SAMPLE_RATE))
    beep = BEEP_LEVEL * np.sin(2 * np.pi * BEEP_HERTZ * np.arange(round(BEEP_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE)
    gap = np.zeros(round(GAP_SECONDS * SAMPLE_RATE))
    return np.concatenate([voice, gap, beep, gap])


def _load(entry: Entry) -> np.ndarray:
    """Return the first channel of an utterance, [S] float32 at SAMPLE_RATE."""
    path = entry["audio_filepath"]
    try:
        rate = soundfile.info(path).samplerate
        start, frames = round((entry.get("offset") or 0.0) * rate), round(entry["duration"] * rate)
        samples, _ = soundfile.read(path, frames=frames, start=start, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path} cannot be read ({error}). Repair it or take it out of the manifest.") from error
    if len(samples) == 0:
        raise ValueError(f"{path} has no samples at its offset. Repair it or take it out of the manifest.")
    return resample(samples[:, 0], rate)


def _placed(samples: np.ndarray, length: int, draw: np.random.Generator) -> np.ndarray:
    start = int(draw.integers(length - len(samples) + 1))
    return np.pad(samples, (start, length - len(samples) - start))


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))
