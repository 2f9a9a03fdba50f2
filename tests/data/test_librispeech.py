"""LibriSpeech's layout, in a small tree of synthetic speech."""

import logging
import random
from pathlib import Path

import pytest
import soundfile

from nemo_codert.data import read_manifest, screen_manifest
from nemo_codert.data.corpora.corpus import SAMPLE_RATE, resample
from nemo_codert.data.corpora.espeak import Espeak
from nemo_codert.data.corpora.librispeech import make_librispeech_corpus, set_name
from nemo_codert.data.corpora.sentences import random_sentence

pytestmark = pytest.mark.unit

PARTS = {"train-clean-100": 6, "train-tiny": 4, "dev-clean": 2, "dev-other": 2, "test-clean": 3, "test-other": 2}


def write_part(folder: Path, count: int, speaker: int, synthesiser: Espeak) -> None:
    generator = random.Random(speaker)
    chapter = folder / str(speaker) / "77"
    chapter.mkdir(parents=True)
    lines = []
    for number in range(count):
        name, text = f"{speaker}-77-{number:04d}", random_sentence(generator)
        samples = synthesiser.say(text, voice="en-US+f1", words_per_minute=170, pitch=50)
        soundfile.write(chapter / f"{name}.flac", resample(samples, synthesiser.sample_rate), SAMPLE_RATE)
        lines.append(f"{name} {text.upper()}\n")
    (chapter / f"{speaker}-77.trans.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("download") / "LibriSpeech"
    synthesiser = Espeak()
    for speaker, (part, count) in enumerate(PARTS.items(), start=100):
        write_part(folder / part, count, speaker, synthesiser)
    synthesiser.close()
    (folder / "README.TXT").write_text("as in the original")
    return folder


@pytest.mark.nemo
def test_all_parts_become_four_sets_in_lower_case(librispeech, tmp_path):
    manifests = make_librispeech_corpus(tmp_path, corpus_dir=librispeech, vocab_size=40)
    assert {name: len(read_manifest(path)) for name, path in manifests.items()} == {
        "train": 10,
        "dev": 4,
        "test_clean": 3,
        "test_other": 2,
    }
    for path in manifests.values():
        screening = screen_manifest(path, sample_rate=SAMPLE_RATE, progress=False)
        assert not screening.dropped
        assert all(entry["text"] == entry["text"].lower() for entry in screening.usable)
        assert all(Path(entry["audio_filepath"]).stem.startswith(entry["speaker"]) for entry in screening.usable)
    assert (tmp_path / "tokenizer" / "tokenizer.model").is_file() and (tmp_path / "tokenizer" / "vocab.txt").is_file()


def test_transcripts_stay_with_their_audio_and_in_order(librispeech, tmp_path):
    manifest = make_librispeech_corpus(tmp_path, corpus_dir=librispeech, parts=["test-clean"])["test_clean"]
    lines = (librispeech / "test-clean" / "104" / "77" / "104-77.trans.txt").read_text().lower().splitlines()
    found = [f"{Path(entry['audio_filepath']).stem} {entry['text']}" for entry in read_manifest(manifest)]
    assert found == lines


@pytest.mark.nemo
def test_two_runs_give_the_same_files(librispeech, tmp_path):
    for name in ("first", "second"):
        make_librispeech_corpus(tmp_path / name, corpus_dir=librispeech, vocab_size=40)
    for path in (tmp_path / "first").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()


@pytest.mark.nemo
def test_the_folder_above_is_accepted_and_absent_parts_are_skipped_with_a_message(librispeech, tmp_path, caplog):
    parts = ["train-tiny", "train-other-500"]
    with caplog.at_level(logging.WARNING):
        manifests = make_librispeech_corpus(tmp_path, corpus_dir=librispeech.parent, parts=parts, vocab_size=40)
    assert list(manifests) == ["train"] and len(read_manifest(manifests["train"])) == 4
    assert "part train-other-500, skipped" in caplog.text


def test_without_training_parts_there_is_no_tokenizer(librispeech, tmp_path, caplog):
    assert list(make_librispeech_corpus(tmp_path, corpus_dir=librispeech, parts=["dev-other"])) == ["dev"]
    assert not (tmp_path / "tokenizer").exists() and "neither train.json nor a tokenizer" in caplog.text


def test_no_part_at_all_is_an_error(librispeech, tmp_path):
    with pytest.raises(ValueError, match="none of the parts train-clean-360"):
        make_librispeech_corpus(tmp_path / "out", corpus_dir=librispeech, parts=["train-clean-360"])
    with pytest.raises(ValueError, match="none of the parts train-clean-100"):
        make_librispeech_corpus(tmp_path / "out", corpus_dir=tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        make_librispeech_corpus(tmp_path / "out", corpus_dir=tmp_path / "absent")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "transcript, audio", [("1-2-0000 ONE TWO\n", None), ("1-2-0000 ONE TWO\n", b"no audio"), ("1-2-0000\n", None)]
)
def test_a_part_with_broken_transcripts_or_audio_is_named(tmp_path, transcript, audio):
    chapter = tmp_path / "dev-clean" / "1" / "2"
    chapter.mkdir(parents=True)
    (chapter / "1-2.trans.txt").write_text(transcript)
    if audio:
        (chapter / "1-2-0000.flac").write_bytes(audio)
    with pytest.raises(ValueError, match="dev-clean cannot be prepared"):
        make_librispeech_corpus(tmp_path / "out", corpus_dir=tmp_path)


@pytest.mark.parametrize("part", ["clean", "../train-clean-5", "music-1"])
def test_a_part_with_an_unknown_name_is_refused(librispeech, tmp_path, part):
    with pytest.raises(ValueError, match="begins with train-, dev- or test-"):
        make_librispeech_corpus(tmp_path, corpus_dir=librispeech, parts=[part])


def test_a_part_openslr_does_not_have_is_refused_before_the_download(tmp_path):
    with pytest.raises(ValueError, match="cannot download train-tiny"):
        make_librispeech_corpus(tmp_path, corpus_dir=tmp_path, parts=["train-tiny"], download=True)


def test_the_download_goes_through_lhotse(librispeech, tmp_path, monkeypatch):
    import lhotse.recipes.librispeech as recipe

    asked = {}

    def pretend(target_dir: Path, dataset_parts: list[str]) -> Path:
        asked.update(target_dir=target_dir, parts=dataset_parts)
        return librispeech

    monkeypatch.setattr(recipe, "download_librispeech", pretend)
    make_librispeech_corpus(tmp_path, corpus_dir=tmp_path / "d", parts=["dev-clean"], download=True)
    assert asked == {"target_dir": tmp_path / "d", "parts": ["dev-clean"]}


def test_parts_go_to_their_sets():
    names = {part: set_name(part) for part in ("train-clean-5", "dev-clean-2", "test-clean", "test-other")}
    assert list(names.values()) == ["train", "dev", "test_clean", "test_other"]
