"""Target-speaker mixtures of speakers that are tones: which one is present is read off the spectrum."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_codert.data.corpora.corpus import SAMPLE_RATE
from nemo_codert.data.corpora.mixtures import BEEP_HERTZ, make_mixtures
from nemo_codert.data.manifest import read_manifest, write_manifest

pytestmark = pytest.mark.unit

TONES = {"ann": 400.0, "bob": 2000.0, "eve": 3000.0}  # Hz of each speaker
ENROLMENT, BEEP = 0.5, 0.4  # seconds; the beep with its gaps


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speakers")
    entries = []
    for speaker, hertz in TONES.items():
        for number in range(3):
            seconds = 0.3 + 0.1 * number
            time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
            path = folder / f"{speaker}_{number}.wav"
            soundfile.write(path, 0.05 * np.sin(2 * np.pi * hertz * time), SAMPLE_RATE)
            entries.append({"audio_filepath": str(path), "duration": seconds, "text": f"{speaker} {number}"})
            entries[-1]["speaker"] = speaker
    entries.append({**entries[0], "speaker": "once"})  # no other utterance to enrol with: left out
    return write_manifest(folder / "train.json", entries)


@pytest.fixture(scope="module")
def sets(manifest, tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("mixtures")
    made = make_mixtures(manifest, folder, enrollment=ENROLMENT, sir=(-3.0, 3.0))
    return {name: read_manifest(path) for name, path in made.items()}


def samples_of(entry: dict) -> np.ndarray:
    samples, rate = soundfile.read(entry["audio_filepath"])
    assert rate == SAMPLE_RATE
    return samples


def power(samples: np.ndarray, hertz: float) -> float:
    """Mean power of a tone within samples [S]."""
    wave = np.exp(-2j * np.pi * hertz * np.arange(len(samples)) / SAMPLE_RATE)
    return 2 * abs(np.mean(samples * wave)) ** 2


def speakers_in(samples: np.ndarray) -> set[str]:
    return {name for name, hertz in TONES.items() if power(samples, hertz) > 1e-5}


def test_ids_and_lengths_of_the_three_sets_are_equal(sets):
    assert set(sets) == {"mixed", "clean", "counter"} and len(sets["mixed"]) == 9
    for mixed, clean, counter in zip(*sets.values(), strict=True):
        assert mixed["utterance_id"] == clean["utterance_id"] == counter["utterance_id"]
        assert len(samples_of(mixed)) == len(samples_of(clean)) == len(samples_of(counter))
        assert mixed["text"] == clean["text"] != counter["text"]
        assert mixed["speaker"] == clean["speaker"] != counter["speaker"]


def test_enrolment_and_beep_come_first_and_name_the_speaker(sets):
    start, end = round(ENROLMENT * SAMPLE_RATE), round((ENROLMENT + BEEP) * SAMPLE_RATE)
    for mixed, clean, counter in zip(*sets.values(), strict=True):
        for entry in (mixed, clean, counter):
            samples = samples_of(entry)
            assert speakers_in(samples[:start]) == {entry["speaker"]} == {entry["text"].split()[0]}
            assert power(samples[start:end], BEEP_HERTZ) > 1e-4
        assert speakers_in(samples_of(clean)[end:]) == {clean["speaker"]}
        assert speakers_in(samples_of(mixed)[end:]) == {mixed["speaker"], counter["speaker"]}
        assert np.array_equal(samples_of(mixed)[end:], samples_of(counter)[end:])  # the enrolment alone differs


def test_the_ratio_of_the_speakers_lies_within_the_given_range(manifest, sets):
    durations = {entry["text"]: entry["duration"] for entry in read_manifest(manifest)}
    ratios = []
    for mixed, clean, counter in zip(*sets.values(), strict=True):
        added = samples_of(mixed) - samples_of(clean)
        energies = {"target": np.sum(samples_of(clean)[round(0.9 * SAMPLE_RATE) :] ** 2), "other": np.sum(added**2)}
        target, other = (energies[k] / durations[e["text"]] for k, e in (("target", mixed), ("other", counter)))
        ratios.append(10 * np.log10(target / other))
    assert all(-3.1 <= ratio <= 3.1 for ratio in ratios) and max(ratios) - min(ratios) > 1.0


def test_without_enrolment_and_other_speaker_the_utterances_come_back(manifest, tmp_path):
    made = make_mixtures(manifest, tmp_path, enrollment=0.0, sir=(float("inf"), float("inf")))
    assert set(made) == {"mixed", "clean"}
    for mixed, clean in zip(*map(read_manifest, made.values()), strict=True):
        assert np.array_equal(samples_of(mixed), samples_of(clean))


def test_equal_arguments_give_equal_files_and_another_seed_others(manifest, sets, tmp_path):
    again = make_mixtures(manifest, tmp_path / "a", enrollment=ENROLMENT, sir=(-3.0, 3.0))
    other = make_mixtures(manifest, tmp_path / "b", enrollment=ENROLMENT, sir=(-3.0, 3.0), seed=1)
    first, same, changed = (
        [Path(e["audio_filepath"]).read_bytes() for e in found]
        for found in (sets["mixed"], read_manifest(again["mixed"]), read_manifest(other["mixed"]))
    )
    assert first == same != changed


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({}, {"enrollment": -1.0}, "enrollment is -1.0"),
        ({}, {"sir": (5.0, -5.0)}, r"sir is \(5.0, -5.0\)"),
        ({"speaker": ""}, {}, "utterance 1 has no speaker"),
        ({"speaker": "ann"}, {}, "1 speakers have two utterances or more"),
    ],
)
def test_what_cannot_be_mixed_is_refused(manifest, tmp_path, change, options, message):
    changed = write_manifest(tmp_path / "a.json", [{**entry, **change} for entry in read_manifest(manifest)])
    with pytest.raises(ValueError, match=message):
        make_mixtures(changed, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
