"""Word errors of one model on the same speech, recorded otherwise: silent edges, other levels, as a stream.

S samples.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nemo.collections.asr.models import EncDecRNNTBPEModel

from nemo_codert.data.manifest import write_manifest
from nemo_codert.evaluation.streamed_files import StreamSettings, transcribe_streaming
from nemo_codert.evaluation.streaming import UNNORMALISED
from nemo_codert.evaluation.transcribe import nemo_texts, read_signal, references_for
from nemo_codert.evaluation.word_errors import WordErrors, metric_of, total_word_errors

TOLERANCE = 3.0  # points of WER
EDGE_SECONDS = 1.0
ROOM = 1e-3  # RMS of white noise, full scale 1


@dataclass(frozen=True)
class Recording:
    """Result in one way of recording: its name, word errors, and what is to be known of it.

    Without `errors` it was not run, and `note` has the reason.
    """

    name: str
    errors: WordErrors | None
    note: str = ""


def with_silence(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return [S'] with a second of zeros before and after.

    Example:
        >>> len(with_silence(np.ones(100, np.float32), 16_000))
        32100
    """
    return np.pad(signal, int(EDGE_SECONDS * sample_rate))


def with_room(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return [S'] with a second of weak white noise before and after."""
    longer = with_silence(signal, sample_rate)
    noise = ROOM * np.random.default_rng(len(longer)).standard_normal(len(longer))
    noise[int(EDGE_SECONDS * sample_rate) : len(longer) - int(EDGE_SECONDS * sample_rate)] = 0.0
    return (longer + noise).astype(np.float32)


def quieter(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return [S] at -20 dB."""
    return signal * np.float32(0.1)


def louder(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return [S] at +6 dB, cut off at full scale as a file of 16 bit would be."""
    return np.clip(signal * np.float32(10 ** (6 / 20)), -1.0, 1.0)


CHANGES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "as it is": lambda signal, sample_rate: signal,
    "1 s of digital silence before and after": with_silence,
    "1 s of room noise before and after": with_room,
    "20 dB quieter": quieter,
    "6 dB louder": louder,
}


def check_recordings(model: EncDecRNNTBPEModel, file: Path, entries: Sequence[dict[str, Any]]) -> list[Recording]:
    """Transcribe utterances as they are, with silent edges, at other levels, and as a stream.

    Args:
        model: a stock model, with the decoding to check.
        file: its `.nemo` file, for NeMo's streaming pipeline: `cache_aware` where the features are not normalised,
            else `buffered`.
        entries: usable entries of a manifest, with transcripts.

    Returns:
        The result in each way of recording, the plain one first.
    """
    sample_rate, metric = model.cfg.preprocessor.sample_rate, metric_of(model.cfg)
    references = references_for(model, [entry["text"] for entry in entries])
    signals = [read_signal(entry, sample_rate) for entry in entries]
    found = []
    for name, change in CHANGES.items():
        texts = nemo_texts(model, [change(signal, sample_rate) for signal in signals])
        found.append(Recording(name, total_word_errors(references, texts, metric)))
    return [*found, _streamed(model, file, entries)]


def _streamed(model: EncDecRNNTBPEModel, file: Path, entries: Sequence[dict[str, Any]]) -> Recording:
    unnormalised = model.cfg.preprocessor.get("normalize", "per_feature") in UNNORMALISED
    pipeline = "cache_aware" if unnormalised else "buffered"
    name = f"in NeMo's {pipeline} pipeline"
    with tempfile.TemporaryDirectory(prefix="nemo_codert_streamed_") as folder:
        manifest = write_manifest(Path(folder) / "manifest.json", list(entries))
        try:
            streamed = transcribe_streaming(StreamSettings(file, manifest, pipeline=pipeline))
        except ValueError as error:  # a model that the pipeline cannot run
            return Recording(name, None, " ".join(str(error).split()))
    note = "" if unnormalised else "it normalises each buffer by itself, training normalised whole utterances"
    return Recording(name, streamed.evaluation.errors, note)


def moved(recordings: Sequence[Recording]) -> list[Recording]:
    """Return those whose word error rate is more than TOLERANCE points above that of the first."""
    first = recordings[0].errors.wer
    return [
        recording
        for recording in recordings[1:]
        if recording.errors is not None and 100 * (recording.errors.wer - first) > TOLERANCE
    ]


def recordings_report(recordings: Sequence[Recording], metric: str) -> str:
    """Return Markdown: a table of the ways of recording, then a warning for each that moves the rate.

    Example:
        >>> clean, silent = WordErrors(words=100, insertions=10), WordErrors(words=100, insertions=20)
        >>> print(recordings_report([Recording("as it is", clean), Recording("silence", silent)], "WER"))
        | recorded | WER | change (points) |
        |---|---:|---:|
        | as it is | 10.00% |  |
        | silence | 20.00% | +10.00 |
        <BLANKLINE>
        **Warning**: silence: WER moves by +10.0 points. Train with such audio (codert prepare varies it).
        <BLANKLINE>
    """
    first = recordings[0].errors.wer
    lines = [f"| recorded | {metric} | change (points) |", "|---|---:|---:|"]
    for i, recording in enumerate(recordings):
        if recording.errors is None:
            lines.append(f"| {recording.name} | not run | |")
            continue
        change = f"{100 * (recording.errors.wer - first):+.2f}" if i else ""
        lines.append(f"| {recording.name} | {recording.errors.wer:.2%} | {change} |")
    lines.append("")
    for recording in moved(recordings):
        points = 100 * (recording.errors.wer - first)
        reason = f" because {recording.note}" if recording.note else ""
        lines.append(
            f"**Warning**: {recording.name}: {metric} moves by {points:+.1f} points{reason}. "
            "Train with such audio (codert prepare varies it)."
        )
    lines += [f"{recording.name}: not run. {recording.note}" for recording in recordings if recording.errors is None]
    return "\n".join(lines) + "\n"
