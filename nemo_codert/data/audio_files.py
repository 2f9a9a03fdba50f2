"""Checks of audio files: the header, the end and, on request, all samples; and reading of one channel or all, mixed.

Imports numpy and soundfile only, neither torch nor NeMo. libsndfile runs without the interpreter's lock, so that
threads help where storage is slow.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

TAIL = 400  # samples at the end of a file that are decoded
BLOCK = 1 << 18  # samples that are decoded at a time
FULL_SCALE = 0.999  # full scale is 1; 16-bit audio clips at 0.99997
FLOATING = ("FLOAT", "DOUBLE")  # subtypes that can hold NaN and infinity
DECODING_ERRORS = (soundfile.SoundFileError, OSError, TypeError)  # TypeError: a raw file, which has no header


class AudioFault:
    """Reasons for which an audio file cannot be used."""

    MISSING = "audio file missing"
    UNREADABLE = "audio unreadable"
    EMPTY_AUDIO = "empty audio"
    BREAKS_OFF = "audio breaks off"
    DAMAGED = "audio damaged inside"
    NOT_FINITE = "samples that are not finite"
    SILENT = "digital silence"


@dataclass(frozen=True)
class AudioHeader:
    """Header of a file, or the `fault` for which the file cannot be used. frames: samples of one channel."""

    sample_rate: int = 0  # Hz
    frames: int = 0
    channels: int = 0
    fault: str | None = None
    floating: bool = False  # samples are floating-point numbers

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return self.frames / self.sample_rate


@dataclass(frozen=True)
class Samples:
    """Result of decoding a stretch of audio: a `fault`, or the share of the samples that are at full scale."""

    fault: str | None = None
    full_scale: float = 0.0


def inspect(path: str) -> AudioHeader:
    """Return the header of a file whose last samples can be decoded, or a fault.

    A broken download or copy lacks the end, which the header of a FLAC or MP3 file still counts. Damage further inside
    is found by `listen` only.
    """
    if not os.path.isfile(path):
        return AudioHeader(fault=AudioFault.MISSING)
    try:
        file = soundfile.SoundFile(path)
    except DECODING_ERRORS:
        return AudioHeader(fault=AudioFault.EMPTY_AUDIO if _size(path) == 0 else AudioFault.UNREADABLE)
    with file:
        if file.frames == 0:
            return AudioHeader(fault=AudioFault.EMPTY_AUDIO)
        if not _end_decodes(file):
            return AudioHeader(fault=AudioFault.BREAKS_OFF)
        return AudioHeader(file.samplerate, file.frames, file.channels, floating=file.subtype in FLOATING)


def listen(path: str, start: int = 0, frames: int | None = None) -> Samples:
    """Decode `frames` samples of every channel from `start` on; None: to the end of the file."""
    peak, full_scale, heard = 0.0, 0, 0
    try:
        with soundfile.SoundFile(path) as file:
            if start:
                file.seek(start)
            wanted = file.frames - start if frames is None else min(frames, file.frames - start)
            while heard < wanted:
                block = np.abs(file.read(min(BLOCK, wanted - heard), dtype="float32", always_2d=True))
                if not len(block):
                    return Samples(AudioFault.DAMAGED)
                highest = float(block.max())  # NaN if any sample is NaN
                if not np.isfinite(highest):
                    return Samples(AudioFault.NOT_FINITE)
                peak, heard = max(peak, highest), heard + len(block)
                full_scale += int((block >= FULL_SCALE).any(axis=1).sum()) if highest >= FULL_SCALE else 0
    except DECODING_ERRORS:
        return Samples(AudioFault.DAMAGED)
    return Samples(AudioFault.SILENT if peak == 0 else None, full_scale / max(heard, 1))


def decodes(path: str) -> bool:
    """Return whether all of a file can be decoded."""
    try:
        with soundfile.SoundFile(path) as file:
            return len(file.read()) == file.frames
    except DECODING_ERRORS:
        return False


def channel_selector(entry: Mapping[str, Any]) -> int | str:
    """Return what a manifest's entry is made of: the number of a channel, or `average` of all channels.

    The value is one that NeMo's `AudioSegment` takes. `channel` of an entry counts where the file has several.

    Args:
        entry: of a manifest, with `audio_filepath`.

    Example:
        >>> channel_selector({"audio_filepath": "a.wav", "duration": 1.0})
        'average'
    """
    channel = entry.get("channel")
    return "average" if channel is None or soundfile.info(entry["audio_filepath"]).channels == 1 else channel


def read_mono(entry: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """Read the audio of a manifest's entry: from `offset` on, for `duration`, the channel of `channel_selector`.

    Args:
        entry: of a manifest.

    Returns:
        Samples [S] float32 and their rate in Hz.

    Raises:
        soundfile.SoundFileError: audio that cannot be read.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/call.wav"
        >>> soundfile.write(path, np.array([[0.5, 0.0], [0.25, 0.0]]), 16000)
        >>> read_mono({"audio_filepath": path})[0].tolist()
        [0.25, 0.125]
        >>> read_mono({"audio_filepath": path, "channel": 0})[0].tolist()
        [0.5, 0.25]
    """
    selected = channel_selector(entry)
    with soundfile.SoundFile(entry["audio_filepath"]) as file:
        file.seek(round((entry.get("offset") or 0.0) * file.samplerate))
        frames = round(entry["duration"] * file.samplerate) if entry.get("duration") else -1
        samples = file.read(frames, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1) if selected == "average" else samples[:, selected]
        return mono, file.samplerate


def mono_entries(entries: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return entries that programs for one channel can read: of files with several, the audio is written to `folder`.

    Args:
        entries: of a manifest. folder: exists, and is kept as long as the entries are used.

    Returns:
        The entries in order. Where audio was written, `audio_filepath` and `duration` are those of the new file, and
        `offset` is gone; an entry whose audio cannot be read is left as it is.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> soundfile.write(folder / "call.wav", np.zeros((80, 2)), 8000)
        >>> [entry] = mono_entries([{"audio_filepath": str(folder / "call.wav"), "duration": 0.01}], folder)
        >>> soundfile.info(entry["audio_filepath"]).channels, entry["duration"]
        (1, 0.01)
    """
    found = []
    for number, entry in enumerate(entries):
        entry = dict(entry)
        try:
            if soundfile.info(entry["audio_filepath"]).channels > 1:
                samples, rate = read_mono(entry)
                path = str(folder / f"{number}.wav")
                soundfile.write(path, samples, rate, subtype="FLOAT")
                entry |= {"audio_filepath": path, "duration": len(samples) / rate, "offset": None}
        except DECODING_ERRORS:
            pass  # reported, with its name, by the program that is going to read it
        found.append(entry)
    return found


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # the file was removed in the meantime
        return -1


def _end_decodes(file: soundfile.SoundFile) -> bool:
    if not file.seekable():
        return True
    try:
        file.seek(max(0, file.frames - TAIL))
        return len(file.read(TAIL)) > 0
    except DECODING_ERRORS:
        return False
