"""The synthetic corpus: its sentences, its voices, its files."""

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_codert.data import read_manifest, screen_manifest
from nemo_codert.data.corpora import espeak, synthetic
from nemo_codert.data.corpora.corpus import SAMPLE_RATE
from nemo_codert.data.corpora.espeak import Espeak
from nemo_codert.data.corpora.sentences import all_words, random_sentence, training_sentences, unseen_sentences
from nemo_codert.data.corpora.synthetic import VOICES, make_synthetic_corpus

pytestmark = pytest.mark.unit

COUNTS = {"train_utterances": 60, "dev_utterances": 8, "test_utterances": 12}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    make_synthetic_corpus(folder, **COUNTS, vocab_size=96)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_sentences_have_three_to_seven_words_and_confusable_pairs():
    generator = random.Random(0)
    lengths = {len(random_sentence(generator).split()) for _ in range(2000)}
    assert min(lengths) >= 3 and max(lengths) == 7
    assert 60 <= len(all_words()) <= 90
    for confusable in ("thirteen thirty", "light right night", "bed red shed", "hall tall ball wall", "lock clock"):
        assert set(confusable.split()) <= all_words()


def test_training_sentences_hold_every_word():
    words = {word for sentence in training_sentences(60, random.Random(0)) for word in sentence.split()}
    assert words == all_words()


@pytest.mark.parametrize("train", [3, 60, 600])
def test_unseen_sentences_are_new_but_have_known_words_only(train):
    training = training_sentences(train, random.Random(1))
    unseen = unseen_sentences(100, training, random.Random(2))
    known = {word for sentence in training for word in sentence.split()}
    assert len(unseen) == 100 and known.issuperset(word for sentence in unseen for word in sentence.split())
    if train >= 60:
        assert len(set(unseen)) == 100 and not set(unseen) & set(training)


def test_no_variant_of_espeak_speaks_in_two_sets():
    variants = [voice.partition("+")[2] for voices in VOICES.values() for voice in voices]
    assert len(variants) == len(set(variants)) == 30


def test_every_voice_is_installed_and_no_two_sound_the_same():
    synthesiser = Espeak()
    spectra = []
    for voice in (voice for voices in VOICES.values() for voice in voices):
        synthesiser.check_voice(voice)
        samples = synthesiser.say("set the bedroom heater to thirty", voice=voice, words_per_minute=150, pitch=50)
        assert 1.0 < len(samples) / synthesiser.sample_rate < 4.0
        assert 0.01 < np.sqrt(np.mean(samples**2)) and np.abs(samples).max() < 1.0  # audible, and not clipped
        power = np.abs(np.fft.rfft(samples, 1 << 17)) ** 2
        spectra.append(np.log(power[:32768].reshape(64, -1).mean(axis=1)))
    synthesiser.close()
    difference = np.abs(np.array(spectra)[:, None] - np.array(spectra)[None]).mean(axis=2)
    assert difference[~np.eye(len(spectra), dtype=bool)].min() > 0.05  # nepers a band; a fallback voice would give 0


def test_an_unknown_voice_is_refused_and_not_replaced():
    synthesiser = Espeak()
    for voice in ("en-US+nobody", "en-XX+f1"):
        with pytest.raises(ValueError, match="nobody|en-XX"):
            synthesiser.check_voice(voice)
    with pytest.raises(ValueError, match="no voice en-XX"):
        synthesiser.say("hello", voice="en-XX+f1", words_per_minute=150, pitch=50)
    synthesiser.close()


def test_two_synthesisers_say_the_same_whatever_was_said_before():
    def say(synthesiser: Espeak) -> np.ndarray:
        return synthesiser.say("turn on the light", voice="en-GB-scotland+f5", words_per_minute=150, pitch=50)

    first = Espeak(3)
    expected = say(first)
    say(first)
    np.testing.assert_array_equal(say(Espeak(3)), expected)


def test_a_long_path_to_the_data_of_espeak_is_shortened(monkeypatch):
    monkeypatch.setattr(espeak, "LONGEST_DATA_PATH", 0)
    synthesiser = Espeak()
    assert len(synthesiser.say("hello", voice="en-US+f1", words_per_minute=150, pitch=50)) > 0
    synthesiser.close()


@pytest.mark.nemo
def test_the_audio_is_what_the_manifests_say(corpus):
    for name, count in (("train", 60), ("dev", 8), ("test", 12)):
        entries = read_manifest(corpus / f"{name}.json")
        assert len(entries) == count
        for entry in entries:
            samples, rate = soundfile.read(entry["audio_filepath"])
            assert rate == SAMPLE_RATE and samples.ndim == 1
            assert soundfile.info(entry["audio_filepath"]).subtype == "PCM_16"
            assert abs(len(samples) / rate - entry["duration"]) < 1e-3
            # Training utterances have longer edges and other speeds and levels.
            assert 1.05 < entry["duration"] < (7.2 if name == "train" else 3.5)
            assert (0.015 if name == "train" else 0.15) < np.abs(samples).max() <= (1.0 if name == "train" else 0.85)
            assert entry["speaker"] in VOICES[name]
        assert '"audio_filepath": "audio/' in (corpus / f"{name}.json").read_text()


@pytest.mark.nemo
def test_variety_is_of_the_training_set_alone(corpus, tmp_path):
    make_synthetic_corpus(tmp_path, **COUNTS, vocab_size=96, varied=False)
    plain, varied = (read_manifest(folder / "train.json") for folder in (tmp_path, corpus))
    assert [entry["text"] for entry in plain] == [entry["text"] for entry in varied]
    longer = [after["duration"] - before["duration"] for before, after in zip(plain, varied, strict=True)]
    assert 0.3 < np.mean([extra > 0.3 for extra in longer]) < 0.7
    assert (tmp_path / "test.json").read_bytes() == (corpus / "test.json").read_bytes()


@pytest.mark.nemo
def test_all_of_it_can_be_trained_on_at_eight_fold_subsampling(corpus):
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(corpus / "tokenizer" / "tokenizer.model"))
    screening = screen_manifest(corpus / "train.json", tokenize=pieces.encode, seconds_per_frame=0.08, progress=False)
    assert screening.dropped == []  # with 64 pieces 2 of 600 utterances are too quick


@pytest.mark.nemo
def test_the_same_seed_gives_the_same_files_and_another_seed_others(corpus, tmp_path):
    make_synthetic_corpus(tmp_path / "same", **COUNTS, vocab_size=96)
    assert files(tmp_path / "same") == files(corpus)
    few = {"train_utterances": 20, "dev_utterances": 4, "test_utterances": 4}
    make_synthetic_corpus(tmp_path / "other", **few, vocab_size=64, seed=1)
    same, other = files(tmp_path / "same"), files(tmp_path / "other")
    names = [name for name in other if name.endswith(".wav")]
    assert len(names) == 28 and not [name for name in names if same[name] == other[name]]


@pytest.mark.nemo
def test_a_smaller_corpus_in_the_same_folder_leaves_no_old_audio(tmp_path):
    make_synthetic_corpus(tmp_path, train_utterances=12, dev_utterances=4, test_utterances=2, vocab_size=48)
    make_synthetic_corpus(tmp_path, train_utterances=12, dev_utterances=2, test_utterances=2, vocab_size=48)
    assert len(list((tmp_path / "audio" / "dev").iterdir())) == 2


def test_an_empty_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dev_utterances is 0"):
        make_synthetic_corpus(tmp_path, dev_utterances=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("level", [15.0, 35.0])
def test_noise_has_the_ratio_asked_for(monkeypatch, level):
    def record() -> np.ndarray:
        generator = np.random.default_rng(5)
        return synthetic._record(Espeak(5), "put the red ball by the shed", "en+m3", generator)

    monkeypatch.setattr(synthetic, "EDGE_SECONDS", (0.25, 0.25))
    monkeypatch.setattr(synthetic, "SIGNAL_TO_NOISE", (level, level))
    samples = record()
    noise, speech = samples[: SAMPLE_RATE // 4], samples[SAMPLE_RATE // 4 : -SAMPLE_RATE // 4]
    noise_power = np.mean(noise**2)
    measured = 10 * np.log10((np.mean(speech**2) - noise_power) / noise_power)
    assert abs(measured - level) < 1.5  # judged by a quarter of a second of noise: 0.9 dB off at most over 100 seeds
