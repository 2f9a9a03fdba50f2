"""Kaldi data folders through lhotse's import: NeMo manifests and a tokenizer.

lhotse is imported inside the functions. Audio files stay in place: the manifests hold absolute paths. Commands in
wav.scp (lines that end with `|`) are refused and never run.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_codert.data.corpora.joining import random_generator
from nemo_codert.data.corpora.shares import check_shares, write_shares
from nemo_codert.data.manifest import write_manifest
from nemo_codert.data.tokenizer import train_tokenizer

NEEDED = ("wav.scp", "text", "utt2spk")
OPTIONAL = ("segments", "reco2dur")
SAMPLE_RATE = 16_000  # an argument of lhotse without effect on durations in seconds


def make_kaldi_corpus(
    output_dir: str | Path,
    *,
    train_dir: str | Path,
    test_dir: str | Path,
    dev_dir: str | Path | None = None,
    dev_share: float = 0.1,
    wav_root: str | Path | None = None,
    labelled_share: float | None = None,
    by_speaker: bool = False,
    vocab_size: int = 256,
    num_jobs: int = 1,
    seed: int = 0,
) -> dict[str, Path]:
    """Write `train`, `dev` and `test` manifests and `tokenizer/` (BPE, of the training text); return them by set name.

    Transcripts are lower-cased. A line of `segments` is an utterance with an offset.

    Args:
        output_dir: folder of the corpus.
        train_dir, test_dir: Kaldi folders with wav.scp, text and utt2spk, perhaps segments and reco2dur.
        dev_dir: one more; None: dev has `dev_share` of the training speakers, with all their utterances.
        dev_share: above 0 and below 1.
        wav_root: folder that relative paths in wav.scp begin at; None: the folder that holds the Kaldi folder.
        labelled_share, by_speaker: see `make_word_corpus`.
        vocab_size: BPE pieces.
        num_jobs: processes that read audio headers.
        seed: of the choice of speakers.

    Raises:
        ValueError: a folder without a needed file, a command in wav.scp, audio that cannot be read, an utterance
            without a transcript or a speaker, speakers of train in another set, or a number out of range.
    """
    check_shares(labelled_share, by_speaker)
    if not 0.0 < dev_share < 1.0:
        raise ValueError(f"dev_share is {dev_share}: want a share between 0 and 1, as in 0.1.")
    folders = {"train": train_dir, "dev": dev_dir, "test": test_dir}
    sets = {
        name: read_kaldi_folder(Path(folder), None if wav_root is None else Path(wav_root), num_jobs)
        for name, folder in folders.items()
        if folder is not None
    }
    if dev_dir is None:
        sets["train"], sets["dev"] = _without_some_speakers(sets["train"], dev_share, seed)
    _check_speakers(sets, folders)
    # The tokenizer comes first: if its training fails, nothing has been written.
    train_tokenizer([entry["text"] for entry in sets["train"]], Path(output_dir) / "tokenizer", vocab_size)
    manifests = {name: write_manifest(Path(output_dir) / f"{name}.json", sets[name]) for name in folders}
    if labelled_share is not None:
        manifests.update(write_shares(manifests["train"], labelled_share, seed, by_speaker))
    return manifests


def read_kaldi_folder(folder: Path, wav_root: Path | None = None, num_jobs: int = 1) -> list[dict[str, Any]]:
    """Return the manifest entries of a Kaldi data folder in the order of utterance ids.

    Raises:
        ValueError: see `make_kaldi_corpus`.
    """
    from lhotse.audio import AudioLoadingError
    from lhotse.kaldi import load_kaldi_data_dir

    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise ValueError(f"{folder} has no {missing[0]}: give a Kaldi data folder ({', '.join(NEEDED)}).")
    _check_ids(folder)
    with tempfile.TemporaryDirectory(prefix="nemo_codert_kaldi_") as copy:
        # lhotse reads relative paths from the current folder.
        (Path(copy) / "wav.scp").write_text(_absolute_paths(folder / "wav.scp", wav_root or folder.parent))
        for name in (*NEEDED[1:], *OPTIONAL):
            if (folder / name).is_file():
                shutil.copy(folder / name, copy)
        try:
            recordings, segments, _ = load_kaldi_data_dir(copy, SAMPLE_RATE, num_jobs=num_jobs)
        except (AudioLoadingError, AssertionError, RuntimeError, ValueError, KeyError) as error:
            # lhotse raises AssertionError where wav.scp and utt2spk, or reco2dur, have other numbers of lines.
            raise ValueError(
                f"{folder} cannot be read ({type(error).__name__}: {error}). Every recording of wav.scp must be "
                "readable, and utt2spk must have its utterances."
            ) from error
    audio = {recording.id: recording for recording in recordings}
    entries = []
    for segment in sorted(segments, key=lambda segment: segment.id):
        entry = {
            "audio_filepath": audio[segment.recording_id].sources[0].source,
            "duration": round(segment.duration, 4),
            "text": segment.text.lower(),
            "speaker": segment.speaker,
            "utterance_id": segment.id,
        }
        entries.append({**entry, "offset": segment.start} if segment.start else entry)
    return entries


def _check_ids(folder: Path) -> None:
    """Raise ValueError for utterances without words, or not in all of `text`, `utt2spk` and `segments`."""
    for line in _lines(folder / "text"):
        if len(line.split()) < 2:
            raise ValueError(f"{folder}: utterance {line.strip()} has no words in text. Remove it from all files.")
    names = [name for name in ("utt2spk", "text", "segments") if (folder / name).is_file()]
    ids = {name: {line.split(maxsplit=1)[0] for line in _lines(folder / name)} for name in names}
    for name in names:
        if others := sorted(set().union(*ids.values()) - ids[name]):
            raise ValueError(f"{folder}: utterance {others[0]} is not in {name}. Add it, or remove it from all files.")


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _absolute_paths(wav_scp: Path, root: Path) -> str:
    """Return the lines of a wav.scp with absolute paths. Raises ValueError for a command and a missing file."""
    lines = []
    for number, line in enumerate(_lines(wav_scp), start=1):
        name, source = (line.split(maxsplit=1) + ["", ""])[:2]
        source = source.strip()
        if source.endswith("|"):
            raise ValueError(
                f"{wav_scp}, line {number}: {source!r} is a command, which is never run. Write its output to a file."
            )
        path = (root / source).resolve()
        if not path.is_file():
            raise ValueError(
                f"{wav_scp}, line {number}: there is no file {path}. Give the folder that paths begin at, wav_root."
            )
        lines.append(f"{name} {path}\n")
    return "".join(lines)


def _without_some_speakers(
    entries: list[dict[str, Any]], share: float, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the utterances of most speakers and of the others."""
    speakers = sorted({entry["speaker"] for entry in entries})
    count = round(share * len(speakers))
    if not 0 < count < len(speakers):
        raise ValueError(f"dev_share is {share} of {len(speakers)} speakers: want one or more on either side.")
    order = random_generator(seed, 0).permutation(len(speakers))
    chosen = {speakers[place] for place in order[:count]}
    kept, taken = ([entry for entry in entries if (entry["speaker"] in chosen) is is_dev] for is_dev in (False, True))
    return kept, taken


def _check_speakers(sets: Mapping[str, list[dict[str, Any]]], folders: Mapping[str, Any]) -> None:
    """Raise ValueError where a speaker of train is in another set."""
    training = {entry["speaker"] for entry in sets["train"]}
    for name in ("dev", "test"):
        if common := sorted({entry["speaker"] for entry in sets[name]} & training):
            raise ValueError(
                f"{folders[name]}: speaker {common[0]} is in {folders['train']} too. Take other speakers for {name}."
            )
