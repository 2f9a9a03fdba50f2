"""Checks of audio files: the header, the end and, on request, all samples.

Imports numpy and soundfile only, neither torch nor NeMo. libsndfile runs without the interpreter's lock, so that
threads help where storage is slow.
"""

import os
from dataclasses import dataclass

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
