"""Ids of utterances that are the same in every manifest and loader: what stored targets are joined by.

A manifest's own field (`id`, `utt_id` or `utterance_id`) is the id. Where there is none it is made of the last two
parts of the audio's path and, of a part of a file, its place in it; so a corpus can be moved to another folder.
Imports neither torch nor NeMo.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

ID_KEYS = ("id", "utt_id", "utterance_id")
CHANGES = {"Speed": "speed", "Tempo": "tempo"}  # lhotse's transforms of a recording that change its length
SAMPLED_BYTES = 4096  # read at the beginning, middle and end of a file for its fingerprint


def entry_id(entry: Mapping[str, Any]) -> str:
    """Return the id of a manifest's entry.

    Args:
        entry: a line of a manifest.

    Example:
        >>> entry_id({"utterance_id": "anna_17", "audio_filepath": "mixed/17.wav"})
        'anna_17'
        >>> entry_id({"audio_filepath": "/data/fsdd/clips/7_lucas_3.wav", "duration": 0.5})
        'clips/7_lucas_3.wav'
        >>> entry_id({"audio_filepath": "talks/anna.wav", "offset": 12.0, "duration": 1.5})
        'talks/anna.wav-001200-000150'
    """
    return own_id(entry) or audio_id(entry)


def own_id(fields: Mapping[str, Any] | None) -> str | None:
    """Return the id that a manifest's entry, or the custom fields of a cut, state; None where there is none."""
    values = (fields.get(key) for key in ID_KEYS) if fields else ()
    return next((str(value) for value in values if value is not None and str(value)), None)


def audio_id(entry: Mapping[str, Any]) -> str:
    """Return the id that an entry has by its audio alone: end of the path, and the place in the file."""
    place = ""
    if (offset := entry.get("offset")) is not None:  # NeMo names cuts of lhotse so
        place = f"-{round(offset * 100):06d}-{round(entry['duration'] * 100):06d}"
    return _short_path(entry["audio_filepath"]) + place


def cut_id(cut: Any) -> str:
    """Return the id of a lhotse cut that NeMo's loader made of a manifest's entry: that of the entry.

    A cut of another length (speed, tempo) has the id of no entry: its factor is appended.

    Args:
        cut: of one recording, or a mixture, whose first track counts.

    Example:
        >>> from types import SimpleNamespace
        >>> source = SimpleNamespace(source="/data/clips/a.wav")
        >>> recording = SimpleNamespace(id="a", sources=[source], transforms=None)
        >>> cut_id(SimpleNamespace(id="a", recording=recording, custom={}))
        'clips/a.wav'
    """
    if tracks := getattr(cut, "tracks", None):
        cut = tracks[0].cut
    recording = getattr(cut, "recording", None)
    if recording is None:
        return own_id(getattr(cut, "custom", None)) or str(cut.id)
    changed = "".join(_change(transform) for transform in recording.transforms or ())
    if own := own_id(cut.custom):
        return own + changed
    source = recording.sources[0].source if recording.sources else None
    path = source if isinstance(source, str) and source else recording.id
    place = str(cut.id).removeprefix(str(recording.id))  # NeMo's, of an entry with an offset
    return _short_path(path) + place + changed


def id_key(name: str) -> int:
    """Return the 64-bit number under which an index keeps an id."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def file_fingerprint(path: str | os.PathLike) -> int:
    """Return a 64-bit number of a file's size and of parts of its content: another recording has another.

    Args:
        path: of an audio file; three blocks of it are read.

    Raises:
        OSError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     before = file_fingerprint(file.name)
        ...     _ = file.write(b"x"), file.flush()
        ...     before == file_fingerprint(file.name)
        False
    """
    size = os.path.getsize(path)
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    with open(path, "rb") as file:
        for place in sorted({0, max(0, size // 2), max(0, size - SAMPLED_BYTES)}):
            file.seek(place)
            digest.update(file.read(SAMPLED_BYTES))
    return int.from_bytes(digest.digest(), "little")


def _short_path(path: str) -> str:
    return "/".join(str(path).replace(os.sep, "/").split("/")[-2:])


def _change(transform: Any) -> str:
    """Return the factor of a transform that changes a recording's length, as text; lhotse keeps objects or dicts."""
    if isinstance(transform, Mapping):
        name, factor = str(transform.get("name")), (transform.get("kwargs") or {}).get("factor")
    else:
        name, factor = type(transform).__name__, getattr(transform, "factor", None)
    return f" at {CHANGES[name]} {factor}" if name in CHANGES else ""
