"""NeMo JSON-lines manifests: reading, naming every line that cannot be read, and atomic writing.

One JSON object a line with `audio_filepath`, `duration` (seconds) and `text`; other keys are kept as they are. Other
names that NeMo's loaders accept for audio and text are replaced by these. A line without `text` is an utterance
without transcript, which a caller accepts or not.
Screening before training is in screening.py. Imports neither torch nor NeMo.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_codert.files.atomic import whole_file

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
REPORTED_LINES = 10
MAX_QUANTITY = 1e9  # seconds or Hz; also keeps integers out that no float can hold
QUOTED = 80  # characters of a line that cannot be read
FIELDS = (("audio_filepath", "text"), ("duration", "number"), ("text", "text"))
OTHER_AUDIO = "audio_filename"  # older name of audio_filepath in NeMo
OTHER_TEXTS = ("text_filepath", "normalized_text")  # keys that NeMo's classic loader reads in place of text
OPTIONAL_NUMBERS = ("offset", "sampling_rate", "sample_rate")  # null means absent


class LineFault:
    """Reasons for which a line of a manifest cannot be used."""

    NOT_UTF8 = "manifest line that is not UTF-8 text"
    NOT_JSON = "manifest line that is not JSON"
    NO_OBJECT = "manifest line that is not a JSON object"
    NO_FIELD = "manifest line without a needed field"
    WRONG_TYPE = "manifest line with a field of the wrong kind"


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be used.

    Attributes:
        number: counted from 1.
        reason: one of `LineFault`.
        detail: the value that was found and the value that is wanted.
        content: the start of the line.
    """

    number: int
    reason: str
    detail: str
    content: str

    @property
    def plain(self) -> dict[str, Any]:
        """Entry of a list of dropped lines."""
        return {"line": self.number, "content": self.content, "reason": self.reason, "detail": self.detail}


class _LineError(ValueError):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def read_manifest(path: str | Path, *, unlabelled: bool = False, text_field: str = "text") -> list[dict[str, Any]]:
    """Return the entries of a NeMo manifest, with relative `audio_filepath`s resolved as NeMo does.

    A byte order mark, CRLF line ends and blank lines are accepted; audio files are not opened.

    Args:
        path: the manifest; for relative audio paths see `resolve_audio_path`.
        unlabelled: accept lines without `text`.
        text_field: key of the transcript, as in a data section of NeMo's.

    Returns:
        One dict a line, with all keys of the line; `audio_filepath` is absolute, and `text` is the transcript.

    Raises:
        ValueError: a missing or empty file, or lines with bad JSON or a missing or ill-typed field; names file and
            line of the first ten.

    Example:
        >>> import tempfile
        >>> from nemo_codert.data import read_manifest, write_manifest
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     entry = {"audio_filepath": "a.wav", "duration": 1.5, "text": "yes"}
        ...     [read] = read_manifest(write_manifest(f"{folder}/train.json", [entry]))
        >>> read["audio_filepath"] == f"{folder}/a.wav", read["text"]
        (True, 'yes')
    """
    entries, bad = parse_manifest(path, unlabelled=unlabelled, text_field=text_field)
    if bad:
        shown = [f"{path}:{line.number}: {line.detail}" for line in bad[:REPORTED_LINES]]
        if len(bad) > len(shown):
            shown.append(f"... and {len(bad) - len(shown)} more lines like these")
        raise ValueError("\n  ".join(shown))
    return entries


def parse_manifest(
    path: str | Path, *, unlabelled: bool = False, text_field: str = "text"
) -> tuple[list[dict[str, Any]], list[BadLine]]:
    """Return the entries of a manifest and the lines that cannot be used.

    Args:
        path: the manifest.
        unlabelled: accept lines without `text`.
        text_field: key of the transcript.

    Returns:
        The entries as `read_manifest` gives them, and a BadLine for each line that is not a valid entry.

    Raises:
        ValueError: a missing or empty file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "train.json"
        >>> _ = path.write_text('{"audio_filepath": "a.wav", "duration": 1.5, "text": "yes"}\\nnot JSON\\n')
        >>> entries, bad = parse_manifest(path)
        >>> len(entries), bad[0].number, bad[0].reason
        (1, 2, 'manifest line that is not JSON')
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not a file: want a manifest with one JSON object a line. Check the path.")
    entries: list[dict[str, Any]] = []
    bad: list[BadLine] = []
    # Split at b"\n" alone: str.splitlines() also cuts at U+2028, which JSON allows inside a string.
    for number, line in enumerate(path.read_bytes().removeprefix(BYTE_ORDER_MARK).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = _parse_line(line, path, unlabelled, text_field)
        except _LineError as error:
            content = line[: 4 * QUOTED].decode("utf-8", errors="replace").strip()[:QUOTED]
            bad.append(BadLine(number, error.reason, error.detail, content))
        else:
            entry["audio_filepath"] = resolve_audio_path(entry["audio_filepath"], path)
            entries.append(entry)
    if not entries and not bad:
        raise ValueError(f"{path} is empty: a manifest needs one JSON object a line. Prepare the data again.")
    return entries, bad


def manifest_lines(path: str | Path) -> list[dict[str, Any]]:
    """Return the entries of a manifest of this package as they are written, with relative paths left relative."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def resolve_audio_path(audio_filepath: str, manifest_path: str | Path) -> str:
    """Return the absolute path of a file that a manifest names, as NeMo's loaders find it.

    A relative path starts at the manifest's folder; where there is no such file, at the working folder.

    Args:
        audio_filepath: the path in the manifest.
        manifest_path: the manifest.

    Returns:
        The file that exists; where neither does, the path that starts at the manifest's folder.

    Example:
        >>> resolve_audio_path("a.wav", "/data/train.json")
        '/data/a.wav'
    """
    path = os.path.expanduser(audio_filepath)
    beside = os.path.abspath(os.path.join(Path(manifest_path).parent, path))
    return os.path.abspath(path) if not os.path.isfile(beside) and os.path.isfile(path) else beside


def write_manifest(path: str | Path, entries: Iterable[dict[str, Any]]) -> Path:
    """Write entries as JSON lines through a temporary file, so that `path` holds the old or the complete new content.

    Args:
        path: the manifest; missing folders are made.
        entries: JSON-serialisable dicts, one a line.

    Returns:
        `path` as a Path.

    Raises:
        OSError: the file cannot be written, such as on a full disk; names `path`.

    Example:
        >>> import tempfile
        >>> entry = {"audio_filepath": "a.wav", "duration": 1.5, "text": "yes"}
        >>> print(write_manifest(Path(tempfile.mkdtemp()) / "train.json", [entry]).read_text(), end="")
        {"audio_filepath": "a.wav", "duration": 1.5, "text": "yes"}
    """
    path = Path(path)
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return path


def has_text(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry of `parse_manifest` has a transcript."""
    return "text" in entry


def nemo_can_read(path: Path) -> bool:
    """Return whether both of NeMo's loaders read the file alike.

    They accept CRLF, but no byte order mark and no blank line; lhotse's has no other names for audio and text.
    """
    content = path.read_bytes()
    lines = content.removesuffix(b"\n").split(b"\n")
    renamed = any(f'"{key}"'.encode() in content for key in (OTHER_AUDIO, *OTHER_TEXTS))
    return not content.startswith(BYTE_ORDER_MARK) and not renamed and all(line.strip() for line in lines)


def _parse_line(line: bytes, path: Path, unlabelled: bool, text_field: str) -> dict[str, Any]:
    entry = _json_object(line)
    _rename(entry, path, text_field)
    for key, kind in FIELDS:
        if key == "text" and unlabelled and not has_text(entry):
            continue
        if key not in entry:
            detail = f"{key} is missing. Every line needs audio_filepath, duration and text."
            if key == "text":
                detail = detail if text_field == "text" else f"{text_field} is missing, which text_field names."
                detail += " Audio without text trains distillation terms that read none, in a pair alone."
            raise _LineError(LineFault.NO_FIELD, detail)
        _check_field(text_field if key == "text" else key, entry[key], kind)
    for key in OPTIONAL_NUMBERS:
        if entry.get(key) is not None:
            _check_field(key, entry[key], "number")
    if not entry["audio_filepath"].strip():
        raise _LineError(LineFault.NO_FIELD, "audio_filepath is empty. Give the path of an audio file.")
    return entry


def _rename(entry: dict[str, Any], path: Path, text_field: str) -> None:
    """Put audio and transcript of a line under their usual names."""
    if OTHER_AUDIO in entry:
        entry.setdefault("audio_filepath", entry.pop(OTHER_AUDIO))
    if text_field != "text":
        entry.pop("text", None)  # a loader with text_field does not read it
        if text_field in entry:
            entry["text"] = entry[text_field]
        return
    for key in OTHER_TEXTS:
        if key in entry and "text" not in entry:
            entry["text"] = _content(entry[key], path) if key == "text_filepath" else entry[key]


def _content(text_filepath: object, path: Path) -> str:
    """Return the transcript in a file that a line names."""
    _check_field("text_filepath", text_filepath, "text")
    file = resolve_audio_path(text_filepath, path)
    try:
        if os.path.isfile(file):
            return Path(file).read_text(encoding="utf-8").replace("\n", "")
        reason = "no such file"
    except (OSError, UnicodeDecodeError) as error:
        reason = str(error)
    detail = f"text_filepath is {text_filepath!r:.{QUOTED}}, which cannot be read ({reason}). Give a text file."
    raise _LineError(LineFault.NO_FIELD, detail)


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _LineError(LineFault.NOT_UTF8, f"not UTF-8 ({error}). Save the manifest as UTF-8.") from error
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested without end
        detail = f"not JSON ({error}). A manifest has one JSON object a line."
        raise _LineError(LineFault.NOT_JSON, detail) from error
    if b"\\ud" in line.lower() and not _is_unicode(json.dumps(entry, ensure_ascii=False)):
        detail = "half of a surrogate pair, which no file can hold. Write the character itself."
        raise _LineError(LineFault.NOT_UTF8, detail)
    if not isinstance(entry, dict):
        detail = f"got a JSON {type(entry).__name__}, want an object with audio_filepath, ... ."
        raise _LineError(LineFault.NO_OBJECT, detail)
    return entry


def _check_field(key: str, value: object, kind: str) -> None:
    if kind == "text" and not isinstance(value, str):
        raise _LineError(LineFault.WRONG_TYPE, f"{key} is {value!r:.{QUOTED}}, want a string in quotes.")
    if kind == "number" and not _is_quantity(value):
        unit = "seconds" if key in ("duration", "offset") else "Hz"
        detail = f"{key} is {value!r:.{QUOTED}}, want a number of {unit}, 0 or more."
        raise _LineError(LineFault.WRONG_TYPE, detail)


def _is_quantity(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= MAX_QUANTITY and not math.isnan(value)


def _is_unicode(value: str) -> bool:
    """Return False for half of a surrogate pair, which JSON can spell but no file can hold."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
