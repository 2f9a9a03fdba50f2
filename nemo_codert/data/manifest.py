"""NeMo JSON-lines manifests: reading, atomic writing, and screening before training.

One JSON object a line with `audio_filepath`, `duration` (seconds) and `text`; other keys are kept as they are.
Imports tqdm and audio_files.py only, neither torch nor NeMo.
"""

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from tqdm.auto import tqdm

from nemo_codert.data.audio_files import AudioFault, AudioFiles, AudioHeader

logger = logging.getLogger(__name__)

DURATION_TOLERANCE = 0.1  # seconds; manifests round durations, and resampled copies differ by some samples
REPORTED_UTTERANCES = 10
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Reason(AudioFault):
    """Why an utterance cannot be used: the value of "reason" in the list of dropped utterances."""

    EMPTY_TEXT = "empty transcript"
    TOO_LONG_TEXT = "more tokens than encoder frames"
    TOO_LONG_DURATION = "duration in the manifest longer than the audio file"


@dataclass
class Screening:
    """Entries of one manifest, audio paths resolved: `usable`, and `dropped`, each of those with its "reason"."""

    usable: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Number of dropped utterances for each reason, most frequent first."""
        return dict(Counter(entry["reason"] for entry in self.dropped).most_common())


def read_manifest(path: str | Path) -> list[dict[str, Any]]:
    """Entries of a NeMo manifest, relative `audio_filepath`s resolved against the manifest's folder as NeMo does.

    A byte order mark, CRLF line ends and blank lines are accepted; audio files are not looked at. Raises ValueError,
    naming file and line, for a missing or empty file, bad JSON, and a missing or ill-typed field.
    """
    path = Path(path)
    entries = []
    for number, line in enumerate(_read_lines(path), start=1):
        if line.strip():
            entry = _parse_line(line, where=f"{path}:{number}")
            entry["audio_filepath"] = resolve_audio_path(entry["audio_filepath"], path)
            entries.append(entry)
    if not entries:
        raise ValueError(f"{path} is empty: a manifest needs one JSON object a line. Prepare the data anew.")
    return entries


def resolve_audio_path(audio_filepath: str, manifest_path: str | Path) -> str:
    """Absolute path of an audio file; a relative one is meant from the manifest's folder."""
    return os.path.abspath(Path(manifest_path).parent / Path(audio_filepath).expanduser())


def write_manifest(path: str | Path, entries: Iterable[dict[str, Any]]) -> Path:
    """Writes entries as JSON lines through a temporary file: `path` is either old or complete. Returns it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_not(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return path


@contextmanager
def whole_or_not(path: Path) -> Iterator[Path]:
    """A temporary file's name beside `path`, which takes its place when the block ends well and else is removed."""
    # Not tempfile's: those can be read by their owner only. The ranks of one run may write at the same time.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def screen_manifest(
    path: str | Path,
    *,
    sample_rate: int | None = None,
    tokenize: Callable[[str], list[int]] | None = None,
    seconds_per_frame: float | None = None,
    progress: bool = True,
) -> Screening:
    """Sorts the entries of a manifest into usable and dropped ones by looking at every audio file's header and end.

    sample_rate: Hz the model listens at; files below it are usable but counted in one warning, because their upper
    mel bins are empty. tokenize and seconds_per_frame (one encoder frame, seconds), given together, also drop
    utterances with more tokens than encoder frames. Raises ValueError as `read_manifest`.
    """
    if (tokenize is None) != (seconds_per_frame is None):
        raise ValueError("tokenize and seconds_per_frame come together: give both or neither.")
    if seconds_per_frame is not None and not seconds_per_frame > 0:
        raise ValueError(f"seconds_per_frame is {seconds_per_frame}: one encoder frame lasts more than 0 seconds.")
    files = AudioFiles()
    screening, low_rate = Screening(), 0
    entries = read_manifest(path)
    for entry in tqdm(entries, desc=f"Checking {Path(path).name}", unit="utt", disable=not progress, mininterval=1.0):
        header = files.inspect(entry["audio_filepath"])
        reason = _audio_fault(entry, header) or _text_fault(entry, tokenize, seconds_per_frame)
        if reason:
            screening.dropped.append({**entry, "reason": reason})
        else:
            screening.usable.append(entry)
            low_rate += sample_rate is not None and header.sample_rate < sample_rate
    if low_rate:
        logger.warning(
            "%s: %d of %d utterances are below %d Hz and will be upsampled.", path, low_rate, len(entries), sample_rate
        )
    return screening


def screen_dataset(
    manifest_path: str | Path,
    *,
    policy: str,
    output_dir: str | Path,
    name: str,
    sample_rate: int | None = None,
    tokenize: Callable[[str], list[int]] | None = None,
    seconds_per_frame: float | None = None,
    progress: bool = True,
) -> Path:
    """Path of a manifest that can be trained on: the given one when every utterance is usable.

    policy "drop" writes `<output_dir>/<name>_usable.json` (absolute audio paths) and `<name>_dropped.json` (with
    reasons), and logs one warning. policy "refuse" raises ValueError with the count and the first ten. A file that
    only needs its byte order mark or blank lines removed, which NeMo cannot read, is rewritten without a warning.
    Also raises ValueError for an unknown policy, and when nothing usable is left.
    """
    if policy not in ("drop", "refuse"):
        raise ValueError(f"bad_utterances is {policy!r}: use 'drop' (counted and listed) or 'refuse'.")
    screening = screen_manifest(
        manifest_path,
        sample_rate=sample_rate,
        tokenize=tokenize,
        seconds_per_frame=seconds_per_frame,
        progress=progress,
    )
    if not screening.dropped and _nemo_can_read(Path(manifest_path)):
        return Path(manifest_path)
    if screening.dropped and (policy == "refuse" or not screening.usable):
        raise ValueError(_refusal(manifest_path, screening))
    usable_path = write_manifest(Path(output_dir) / f"{name}_usable.json", screening.usable)
    if screening.dropped:
        dropped_path = write_manifest(Path(output_dir) / f"{name}_dropped.json", screening.dropped)
        logger.warning("%s (listed in %s)", _count_line(manifest_path, screening), dropped_path)
    return usable_path


def _audio_fault(entry: dict[str, Any], header: AudioHeader) -> str | None:
    if header.fault:
        return header.fault
    if entry["duration"] == 0:
        return Reason.EMPTY_AUDIO
    if (entry.get("offset") or 0.0) + entry["duration"] > header.seconds + DURATION_TOLERANCE:
        return Reason.TOO_LONG_DURATION
    return None


def _text_fault(
    entry: dict[str, Any], tokenize: Callable[[str], list[int]] | None, seconds_per_frame: float | None
) -> str | None:
    if not entry["text"].strip():
        return Reason.EMPTY_TEXT
    if tokenize is None or seconds_per_frame is None:
        return None
    num_tokens = len(tokenize(entry["text"]))
    if num_tokens == 0:
        return Reason.EMPTY_TEXT
    return Reason.TOO_LONG_TEXT if num_tokens > entry["duration"] / seconds_per_frame else None


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file: want a manifest with one JSON object a line. Check the path.")
    try:
        # split("\n") and not splitlines(): the latter also cuts at U+2028, which JSON allows inside a string.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}). Save the manifest as UTF-8.") from error


def _parse_line(line: str, *, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error}). A manifest has one JSON object a line.") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: got a JSON {type(entry).__name__}, want an object with audio_filepath, ... .")
    for key, kind in (("audio_filepath", "text"), ("duration", "number"), ("text", "text")):
        if key not in entry:
            raise ValueError(f"{where}: {key} is missing. Every line needs audio_filepath, duration and text.")
        _check_field(key, entry[key], kind, where)
    if entry.get("offset") is not None:
        _check_field("offset", entry["offset"], "number", where)
    if not entry["audio_filepath"].strip():
        raise ValueError(f"{where}: audio_filepath is empty. Give the path of an audio file.")
    return entry


def _check_field(key: str, value: object, kind: str, where: str) -> None:
    if kind == "text" and not isinstance(value, str):
        raise ValueError(f"{where}: {key} is {value!r}, want a string in quotes.")
    if kind == "number" and (
        isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0
    ):
        raise ValueError(f"{where}: {key} is {value!r}, want a number of seconds, 0 or more.")


def _nemo_can_read(path: Path) -> bool:
    """NeMo's reader stops at a byte order mark and at a blank line; it accepts CRLF."""
    content = path.read_bytes()
    lines = content.removesuffix(b"\n").split(b"\n")
    return not content.startswith(BYTE_ORDER_MARK) and all(line.strip() for line in lines)


def _count_line(manifest_path: str | Path, screening: Screening) -> str:
    total = len(screening.usable) + len(screening.dropped)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in screening.counts().items())
    return f"{manifest_path}: {len(screening.dropped)} of {total} utterances cannot be used ({reasons})"


def _refusal(manifest_path: str | Path, screening: Screening) -> str:
    shown = [f"  - {entry['audio_filepath']}: {entry['reason']}" for entry in screening.dropped[:REPORTED_UTTERANCES]]
    more = len(screening.dropped) - len(shown)
    if more:
        shown.append(f"  ... and {more} more")
    remedy = "Mend these lines" + (", or set bad_utterances to 'drop'." if screening.usable else ": none is usable.")
    return "\n".join([_count_line(manifest_path, screening) + ":", *shown, remedy])
