"""Kaldi data folders: manifests of whole recordings and of segments, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_codert.data.corpora.kaldi import make_kaldi_corpus, read_kaldi_folder
from nemo_codert.data.manifest import manifest_lines, parse_manifest

TEXT = "THE QUICK FOX", "A LAZY DOG", "JUMPS OVER IT"
RATE = 16_000


def write_folder(root: Path, name: str, speakers: list[str], segments: bool = False) -> Path:
    """A Kaldi folder with three utterances of each speaker; paths are relative to `root`."""
    folder = root / name
    folder.mkdir(parents=True)
    lines: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": [], "segments": []}
    for speaker in speakers:
        for number, text in enumerate(TEXT):
            utterance = f"{speaker}-{number}"
            recording = f"{speaker}-all" if segments else utterance
            if not segments or number == 0:
                (root / "WAVE").mkdir(exist_ok=True)
                soundfile.write(root / "WAVE" / f"{recording}.flac", np.zeros(2 * RATE), RATE)
                lines["wav.scp"].append(f"{recording}\tWAVE/{recording}.flac")
            lines["text"].append(f"{utterance} {text}")
            lines["utt2spk"].append(f"{utterance} {speaker}")
            lines["segments"].append(f"{utterance} {recording} {0.5 * number} {0.5 * number + 0.4}")
    for file, content in lines.items():
        if content and (segments or file != "segments"):
            (folder / file).write_text("".join(f"{line}\n" for line in content))
    return folder


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    speakers = {"train": [f"a{number}" for number in range(10)], "test": ["b0", "b1"]}
    return {f"{name}_dir": write_folder(tmp_path / "corpus", name, own) for name, own in speakers.items()}


def test_sets_have_speakers_of_their_own_and_audio_stays_in_place(folders, tmp_path):
    made = make_kaldi_corpus(tmp_path / "out", **folders, vocab_size=32, labelled_share=0.2, by_speaker=True)
    entries = {name: manifest_lines(path) for name, path in made.items()}
    speakers = {name: {entry["speaker"] for entry in found} for name, found in entries.items()}
    assert {name: len(own) for name, own in speakers.items()} == {
        "train": 9,
        "dev": 1,
        "test": 2,
        "train_labelled": 2,
        "train_unlabelled": 7,
    }
    assert not speakers["train"] & speakers["dev"]
    first = entries["test"][0]
    assert first == {
        "audio_filepath": str((tmp_path / "corpus" / "WAVE" / "b0-0.flac").resolve()),
        "duration": 2.0,
        "text": "the quick fox",
        "speaker": "b0",
        "utterance_id": "b0-0",
    }
    assert parse_manifest(made["train"])[1] == []


def test_segments_are_utterances_with_an_offset(tmp_path):
    entries = read_kaldi_folder(write_folder(tmp_path, "data", ["a"], segments=True))
    assert [(entry["utterance_id"], entry.get("offset"), entry["duration"]) for entry in entries] == [
        ("a-0", None, 0.4),
        ("a-1", 0.5, 0.4),
        ("a-2", 1.0, 0.4),
    ]
    assert len({entry["audio_filepath"] for entry in entries}) == 1


def test_a_dev_folder_leaves_train_whole_and_equal_arguments_give_equal_files(folders, tmp_path):
    dev = write_folder(tmp_path / "corpus", "dev", ["c"])
    made = [make_kaldi_corpus(tmp_path / out, **folders, dev_dir=dev, vocab_size=32) for out in ("one", "two")]
    assert len(manifest_lines(made[0]["train"])) == 30 and len(manifest_lines(made[0]["dev"])) == 3
    for name, path in made[0].items():
        assert path.read_bytes() == made[1][name].read_bytes()


def spoil(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda train: (train / "text").unlink(), "has no text"),
        (lambda train: spoil(train / "wav.scp", "WAVE/a1-1.flac", "touch x |"), "is a command, which is never run"),
        (lambda train: spoil(train / "wav.scp", "a1-1.flac", "absent.flac"), r"there is no file .*absent\.flac"),
        (lambda train: spoil(train / "text", "a1-1 A LAZY DOG\n", ""), "utterance a1-1 is not in text"),
        (lambda train: spoil(train / "text", "a1-1 A LAZY DOG", "a1-1"), "utterance a1-1 has no words"),
        (lambda train: spoil(train / "utt2spk", "a1-1 a1\n", ""), "utterance a1-1 is not in utt2spk"),
        (lambda train: spoil(train / "utt2spk", " a1\n", " b1\n"), "speaker b1 is in"),
        (lambda train: (train.parent / "WAVE" / "a1-1.flac").write_bytes(b"no audio"), "cannot be read"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(change, message, folders, tmp_path):
    change(folders["train_dir"])
    with pytest.raises(ValueError, match=message):
        make_kaldi_corpus(tmp_path / "out", **folders, vocab_size=32)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dev_share": 1.5}, "dev_share is 1.5"),
        ({"dev_share": 0.01}, "0.01 of 10 speakers"),
        ({"labelled_share": 2.0}, "labelled_share is 2.0"),
        ({"wav_root": "/absent"}, "Give the folder that paths begin at"),
    ],
)
def test_numbers_and_roots_that_do_not_fit_are_refused(options, message, folders, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_kaldi_corpus(tmp_path / "out", **folders, **options)
