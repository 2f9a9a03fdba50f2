"""Connected words, from a tree in Speech Commands' layout whose words are tones of their own frequency."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_codert.data.corpora.corpus import SAMPLE_RATE
from nemo_codert.data.corpora.joining import Recording
from nemo_codert.data.corpora.words import (
    FOLDS,
    LEVEL,
    choose_groups,
    find_words,
    load_word,
    make_word_corpus,
    shares_of,
    split_speakers,
)
from nemo_codert.data.manifest import manifest_lines, parse_manifest

pytestmark = pytest.mark.unit

WORDS = ("yes", "no", "up", "down")
SPEAKERS = [f"{number:08x}" for number in range(20)]
SILENCE = 0.25  # seconds before and after each tone


@pytest.fixture(scope="module")
def words_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    silence = np.zeros(int(SILENCE * SAMPLE_RATE))
    for number, word in enumerate(WORDS):
        (folder / word).mkdir()
        for volume, speaker in enumerate(SPEAKERS, start=1):
            tone = 0.02 * volume * np.sin(2 * np.pi * (300 + 200 * number) * np.arange(3200) / SAMPLE_RATE)
            samples = np.concatenate([silence, tone, silence])
            soundfile.write(folder / word / f"{speaker}_nohash_0.wav", samples, SAMPLE_RATE)
    soundfile.write(folder / "no" / f"{SPEAKERS[0]}_nohash_1.ogg", samples, SAMPLE_RATE)
    (folder / "_background_noise_").mkdir()
    soundfile.write(folder / "_background_noise_" / "pink_nohash_0.wav", samples, SAMPLE_RATE)
    (folder / "validation_list.txt").write_text("yes/00000000_nohash_0.wav\n")
    return folder


@pytest.fixture(scope="module")
def corpus(words_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("connected")
    make_word_corpus(words_dir, folder, train_utterances=60, labelled_share=0.1, varied=False, vocab_size=16)
    return folder


def test_the_published_folder_is_read_without_its_noise_and_lists(words_dir):
    found = find_words(words_dir)
    assert len(found) == len(WORDS) * len(SPEAKERS) + 1
    assert {recording.word for recording in found} == set(WORDS)
    assert {recording.speaker for recording in found} == set(SPEAKERS)


@pytest.mark.parametrize("seed", range(3))
def test_speakers_are_kept_apart_and_tests_use_a_recording_once(words_dir, seed):
    groups = choose_groups(find_words(words_dir), 40, seed)
    speakers = {name: {r.speaker for group in chosen for r in group} for name, chosen in groups.items()}
    assert {name: len(found) for name, found in speakers.items()} == {"train": 12, "dev": 2, "test": 6}
    assert set.union(*speakers.values()) == set(SPEAKERS)
    for name in ("dev", "test"):
        used = [recording.path for group in groups[name] for recording in group]
        assert len(used) == len(set(used)) == sum(r.speaker in speakers[name] for r in find_words(words_dir))
    used = Counter(recording.path for group in groups["train"] for recording in group)
    assert max(used.values()) - min(used.values()) <= 1
    assert all(len({r.speaker for r in group}) == 1 and 3 <= len(group) <= 7 for group in groups["train"])


def test_words_are_trimmed_and_of_one_level(words_dir):
    for recording in find_words(words_dir)[:: len(SPEAKERS) // 2]:
        word = load_word(recording)
        assert 0.2 + 0.1 - 0.02 <= len(word) / SAMPLE_RATE <= 0.2 + 0.1 + 0.02  # the tone and 50 ms on either side
        assert np.sqrt(np.mean(word**2)) == pytest.approx(LEVEL, rel=1e-3)


def test_no_word_is_amplified_into_clipping(tmp_path):
    click = np.zeros(SAMPLE_RATE)
    click[8000] = 0.5
    soundfile.write(tmp_path / "click.wav", click, SAMPLE_RATE)
    assert np.abs(load_word(Recording(tmp_path / "click.wav", "click", "a", 0))).max() <= 0.96


@pytest.mark.nemo
def test_a_share_keeps_its_text_and_the_rest_loses_it(corpus):
    train = {entry["utterance_id"]: entry for entry in manifest_lines(corpus / "train.json")}
    labelled = manifest_lines(corpus / "train_labelled.json")
    unlabelled = manifest_lines(corpus / "train_unlabelled.json")
    assert (len(train), len(labelled), len(unlabelled)) == (60, 6, 54)
    assert all(train.pop(entry["utterance_id"]) == entry for entry in labelled)
    assert all(
        {**entry, "text": train[entry["utterance_id"]]["text"]} == train[entry["utterance_id"]] for entry in unlabelled
    )
    assert not any("text" in entry for entry in unlabelled) and len(train) == len(unlabelled)
    assert parse_manifest(corpus / "train_labelled.json")[1] == []


def test_over_the_folds_every_speaker_is_tested_once_and_in_dev_once(words_dir):
    recordings = find_words(words_dir)
    folds = [split_speakers(recordings, 0, shares_of(fold)) for fold in range(FOLDS)]
    for name in ("dev", "test"):
        assert sorted(speaker for sets in folds for speaker in sets[name]) == SPEAKERS
    for sets in folds:
        assert {name: len(found) for name, found in sets.items()} == {"train": 12, "dev": 4, "test": 4}
        assert len(set.union(*map(set, sets.values()))) == len(SPEAKERS)
    assert len(choose_groups(recordings, 40, 0, fold=1)["train"]) == 40


@pytest.mark.nemo
def test_a_share_of_the_speakers_shares_no_recording_with_the_rest(words_dir, tmp_path):
    options = {"train_utterances": 60, "labelled_share": 0.25, "by_speaker": True, "vocab_size": 16}
    made = make_word_corpus(words_dir, tmp_path, fold=0, **options)
    labelled, unlabelled = (manifest_lines(made[name]) for name in ("train_labelled", "train_unlabelled"))
    speakers = [{entry["speaker"] for entry in entries} for entries in (labelled, unlabelled)]
    assert [len(found) for found in speakers] == [3, 9] and not speakers[0] & speakers[1]
    assert len(labelled) + len(unlabelled) == 60 and all("text" in entry for entry in labelled)
    assert not any("text" in entry for entry in unlabelled)


@pytest.mark.nemo
def test_variety_is_of_the_training_set_alone(words_dir, corpus, tmp_path):
    options = {"train_utterances": 60, "labelled_share": 0.1, "vocab_size": 16}
    made = make_word_corpus(words_dir, tmp_path, **options)
    for name in ("dev", "test"):
        assert made[name].read_bytes() == (corpus / f"{name}.json").read_bytes()
    plain, varied = (manifest_lines(folder / "train.json") for folder in (corpus, tmp_path))
    assert [entry["text"] for entry in plain] == [entry["text"] for entry in varied]
    longer = [after["duration"] - before["duration"] for before, after in zip(plain, varied, strict=True)]
    assert 0.3 < np.mean([extra > 0.3 for extra in longer]) < 0.7 and max(longer) < 3.5


@pytest.mark.nemo
def test_equal_arguments_give_equal_files(words_dir, corpus, tmp_path):
    make_word_corpus(words_dir, tmp_path, train_utterances=60, labelled_share=0.1, varied=False, vocab_size=16)
    for path in corpus.rglob("*.*"):
        assert (tmp_path / path.relative_to(corpus)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train_utterances": 0}, "train_utterances is 0"),
        ({"labelled_share": 1.5}, "labelled_share is 1.5: want a share between 0 and 1"),
        ({"fold": 5}, "fold is 5: want 0 to 4"),
        ({"by_speaker": True}, "by_speaker is for labelled_share, which is not given"),
    ],
)
def test_numbers_out_of_range_are_refused(words_dir, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_word_corpus(words_dir, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_wrong_folders_and_too_few_speakers_are_refused(words_dir, tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        find_words(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no file named like yes/0a2b400e_nohash_0\.wav"):
        find_words(tmp_path)
    few = [recording for recording in find_words(words_dir) if recording.speaker in SPEAKERS[:9]]
    with pytest.raises(ValueError, match="9 speakers have 3 recordings or more, want 10"):
        choose_groups(few, 10, seed=0)
