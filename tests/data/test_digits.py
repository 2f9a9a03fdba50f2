"""Connected digits, from a tree in FSDD's layout whose digits are tones: each recording has its own frequency."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_codert.data.corpora.corpus import SAMPLE_RATE
from nemo_codert.data.corpora.digits import (
    DIGIT_WORDS,
    SPEAKERS,
    UNSEEN_SPEAKER,
    choose_groups,
    find_recordings,
    join_recordings,
    make_digit_corpus,
)
from nemo_codert.data.manifest import read_manifest

pytestmark = pytest.mark.unit

SEEN_SPEAKERS = tuple(speaker for speaker in SPEAKERS if speaker != UNSEEN_SPEAKER)
TAKES = (0, 4, 5, 9, 10, 49)


@pytest.fixture(scope="module")
def fsdd(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fsdd") / "recordings"
    folder.mkdir()
    for digit in range(10):
        for speaker in SPEAKERS:
            for take in TAKES:
                tone = 0.3 * np.sin(2 * np.pi * (200 + 100 * digit + take) * np.arange(1600) / 8000)
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", tone, 8000)
    (folder / "readme.txt").write_text("not a recording")
    return folder.parent


@pytest.fixture(scope="module")
def corpus(fsdd, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    make_digit_corpus(fsdd, folder, train_utterances=50, varied=False)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def heard_digits(samples: np.ndarray) -> list[int]:
    """Digits in order, by the strongest frequency of every 10 ms that is not a pause."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    loud = np.sqrt((frames**2).mean(axis=1)) > 0.15
    runs = np.split(np.arange(len(frames)), np.flatnonzero(np.diff(loud)) + 1)
    tones = [frames[run].ravel() for run in runs if loud[run[0]]]
    peaks = [np.abs(np.fft.rfft(tone, SAMPLE_RATE)).argmax() for tone in tones]
    return [int(peak - 200 + 5) // 100 for peak in peaks]


def test_takes_and_speakers_of_the_sets_are_kept_apart(fsdd):
    groups = choose_groups(find_recordings(fsdd), 50, seed=0)
    takes = {name: {r.take for group in chosen for r in group} for name, chosen in groups.items()}
    assert takes == {"train": {10, 49}, "dev": {5, 9}, "test_seen": {0, 4}, "test_unseen": set(TAKES)}
    speakers = {name: {r.speaker for group in chosen for r in group} for name, chosen in groups.items()}
    assert speakers.pop("test_unseen") == {UNSEEN_SPEAKER}
    assert all(found == set(SEEN_SPEAKERS) for found in speakers.values())


@pytest.mark.parametrize("unseen", SPEAKERS)
def test_any_speaker_can_be_left_out_of_training(fsdd, unseen):
    groups = choose_groups(find_recordings(fsdd), 50, 0, unseen)
    speakers = {name: {r.speaker for group in chosen for r in group} for name, chosen in groups.items()}
    assert speakers.pop("test_unseen") == {unseen}
    assert all(found == set(SPEAKERS) - {unseen} for found in speakers.values())


def test_an_unknown_speaker_is_refused(fsdd):
    with pytest.raises(ValueError, match="unseen_speaker is 'nobody': want one of george"):
        choose_groups(find_recordings(fsdd), 50, 0, "nobody")


@pytest.fixture(scope="module")
def noisy_corpus(fsdd, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("noisy_digits")
    make_digit_corpus(fsdd, folder, train_utterances=50, snr=(5.0, 10.0), varied=False)
    return folder


def noises(clean: Path, noisy: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Clean samples and what was added to them, of every utterance of two manifests."""
    pairs = zip(read_manifest(clean), read_manifest(noisy), strict=True)
    samples = [[soundfile.read(entry["audio_filepath"])[0] for entry in pair] for pair in pairs]
    return [(before, after - before) for before, after in samples]


@pytest.mark.nemo
def test_noise_lies_within_the_given_ratios(corpus, noisy_corpus):
    for name in ("test_seen", "test_unseen"):
        for signal, noise in noises(corpus / f"{name}.json", noisy_corpus / f"{name}_noisy.json"):
            assert 4.9 <= 10 * np.log10((signal**2).mean() / (noise**2).mean()) <= 10.1


@pytest.mark.nemo
def test_every_second_utterance_of_train_and_dev_gets_noise_and_the_rest_stays_as_it_was(corpus, noisy_corpus):
    for name in ("train", "dev"):
        levels = [np.abs(noise).max() for _, noise in noises(corpus / f"{name}.json", noisy_corpus / f"{name}.json")]
        assert all(level == 0 for level in levels[::2]) and all(level > 0.01 for level in levels[1::2])
    before, after = files(corpus), files(noisy_corpus)
    assert all(after[name] == content for name, content in before.items() if "test" in name and "wav" in name)


@pytest.mark.parametrize("snr", [(10.0, 5.0), (float("nan"), 5.0), (0.0, 1e9)])
def test_a_range_of_noise_that_is_none_is_refused(fsdd, tmp_path, snr):
    with pytest.raises(ValueError, match="snr is .*want the lowest and the highest in dB"):
        make_digit_corpus(fsdd, tmp_path / "out", snr=snr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", range(5))
def test_no_recording_is_used_twice_outside_of_training_and_none_is_left_out(fsdd, seed):
    groups = choose_groups(find_recordings(fsdd), 10, seed)
    for name, expected in (("dev", 80), ("test_seen", 80), ("test_unseen", 60)):
        used = [recording.path for group in groups[name] for recording in group]
        assert len(used) == len(set(used)) == expected


def test_training_uses_its_recordings_evenly(fsdd):
    groups = choose_groups(find_recordings(fsdd), 200, seed=0)["train"]
    used = Counter(recording.path for group in groups for recording in group)
    assert len(groups) == 200 and len(used) == 80 and max(used.values()) - min(used.values()) <= 1 + 2


def test_every_utterance_is_three_to_seven_digits_of_one_speaker(fsdd):
    for groups in choose_groups(find_recordings(fsdd), 100, seed=0).values():
        assert {len(group) for group in groups} <= set(range(3, 8))
        assert all(len({recording.speaker for recording in group}) == 1 for group in groups)


@pytest.mark.nemo
def test_the_text_is_what_is_heard(corpus):
    for name in ("train", "test_unseen"):
        for entry in read_manifest(corpus / f"{name}.json")[:20]:
            samples, rate = soundfile.read(entry["audio_filepath"])
            assert rate == SAMPLE_RATE
            assert [DIGIT_WORDS[digit] for digit in heard_digits(samples)] == entry["text"].split()


def test_pauses_are_quiet_but_not_silent(fsdd):
    utterance = join_recordings(find_recordings(fsdd)[:3], np.random.default_rng(0))
    first_pause = utterance.samples[: SAMPLE_RATE // 25]
    assert 0 < np.abs(first_pause).max() < 0.01
    extra = len(utterance.samples) / SAMPLE_RATE - 3 * 0.2
    assert 4 * 0.05 <= extra <= 4 * 0.3


@pytest.mark.nemo
def test_equal_arguments_give_equal_files(fsdd, corpus, tmp_path):
    make_digit_corpus(fsdd, tmp_path, train_utterances=50, varied=False)
    assert files(tmp_path) == files(corpus)


@pytest.mark.nemo
def test_variety_is_of_the_training_set_alone(fsdd, corpus, tmp_path):
    make_digit_corpus(fsdd, tmp_path, train_utterances=50)
    made, plain = files(tmp_path), files(corpus)
    changed = {name for name in made if made[name] != plain[name]}
    assert made.keys() == plain.keys() and {Path(name).parts[0] for name in changed} == {"audio", "train.json"}
    assert all("train" in name for name in changed) and len(changed) > 40


def test_the_recordings_folder_itself_is_accepted(fsdd):
    assert len(find_recordings(fsdd / "recordings")) == len(find_recordings(fsdd)) == 300


@pytest.mark.nemo
def test_too_many_pieces_are_refused_before_any_audio_is_written(fsdd, tmp_path):
    with pytest.raises(ValueError, match="the largest these texts support is"):
        make_digit_corpus(fsdd, tmp_path, train_utterances=20, vocab_size=400)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        make_digit_corpus(tmp_path / "absent", tmp_path)
    (tmp_path / "jackson").mkdir()
    (tmp_path / "jackson" / "3_12.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"3_jackson_12\.wav"):
        make_digit_corpus(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_speaker_or_missing_takes_are_named(fsdd):
    recordings = find_recordings(fsdd)
    with pytest.raises(ValueError, match="speaker george has 0 recordings"):
        choose_groups([recording for recording in recordings if recording.speaker != "george"], 10, seed=0)
    with pytest.raises(ValueError, match="speaker jackson has 0 recordings of takes 5-9"):
        choose_groups([recording for recording in recordings if recording.take not in (5, 9)], 10, seed=0)


@pytest.mark.parametrize("content", [b"no audio", b""])
def test_a_broken_recording_is_named(tmp_path, content):
    (tmp_path / "3_theo_1.wav").write_bytes(content)
    with pytest.raises(ValueError, match="3_theo_1.wav cannot be read"):
        join_recordings(find_recordings(tmp_path), np.random.default_rng(0))


def test_a_corpus_without_training_utterances_is_refused(fsdd, tmp_path):
    with pytest.raises(ValueError, match="train_utterances is 0"):
        make_digit_corpus(fsdd, tmp_path, train_utterances=0)
