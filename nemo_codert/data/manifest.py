"""NeMo JSON-lines manifests: reading, atomic writing, and screening before training.

One JSON object a line with `audio_filepath`, `duration` (seconds) and `text`; other keys are kept as they are.
Imports tqdm and audio_files.py only, neither torch nor NeMo.
"""

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from tqdm.auto import tqdm

from nemo_codert.data.audio_files import AudioFault, AudioFiles, AudioHeader
from nemo_codert.disk_errors import named_when_full

logger = logging.getLogger(__name__)

DURATION_TOLERANCE = 0.1  # seconds; manifests round durations, and resampled copies differ by some samples
REPORTED_UTTERANCES = 10
RESIZING = ("perturb_speed", "truncate_duration", "cut_into_windows_duration", "pad_min_duration")  # keys of lhotse's
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Reason(AudioFault):
    """Why an utterance cannot be used: the value of "reason" in the list of dropped utterances."""

    EMPTY_TEXT = "empty transcript"
    TOO_LONG_TEXT = "more tokens than encoder frames"
    TOO_LONG_DURATION = "duration in the manifest longer than the audio file"
    SEVERAL_CHANNELS = "several channels, but neither use_lhotse nor channel_selector is set"
    BELOW_MINIMUM = "shorter than min_duration"
    ABOVE_MAXIMUM = "longer than max_duration"


@dataclass(frozen=True)
class Loader:
    """What NeMo's loader of a block such as model.train_ds takes.

    min_duration, max_duration: seconds, both included. mono_only: files of several channels stop it. lhotse: an
    utterance without an offset is the whole file, whatever duration the manifest says.
    """

    min_duration: float = -math.inf
    max_duration: float = math.inf
    mono_only: bool = False
    lhotse: bool = True

    @classmethod
    def of(cls, block: Mapping[str, Any], key: str) -> "Loader":
        """The loader of a config's block, which stands at `key`. Raises ValueError for a limit that is no number.

        Where lhotse changes durations before it compares them (RESIZING), the limits are left to it.
        """
        lhotse = bool(block.get("use_lhotse"))
        limits = {name: block.get(name) for name in ("min_duration", "max_duration") if block.get(name) is not None}
        for name, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise ValueError(f"{key}.{name} is {value!r}: give seconds, or null for no limit.")
        if lhotse and any(block.get(name) for name in RESIZING):
            limits = {}
        return cls(**limits, mono_only=not lhotse and block.get("channel_selector") is None, lhotse=lhotse)

    def seconds(self, entry: dict[str, Any], header: AudioHeader) -> float:
        """Duration of an utterance, as this loader compares it with its limits."""
        if not self.lhotse or any(entry.get(key) is not None for key in ("sampling_rate", "sample_rate")):
            return entry["duration"]
        frames = header.frames
        if (offset := entry.get("offset")) is not None:
            rate = header.sample_rate
            frames = min(round(entry["duration"] * rate), frames - round(offset * rate))
        return frames / header.sample_rate

    def limit_missed(self, entry: dict[str, Any], header: AudioHeader) -> str | None:
        """Why an utterance is left out by choice of the config, None where it is not."""
        seconds = self.seconds(entry, header)
        if seconds < self.min_duration:
            return f"{Reason.BELOW_MINIMUM} of {self.min_duration} s"
        return f"{Reason.ABOVE_MAXIMUM} of {self.max_duration} s" if seconds > self.max_duration else None


@dataclass
class Screening:
    """Entries of one manifest, audio paths resolved, in three lists.

    `usable`; `dropped`, which are faulty, and `outside`, which the loader's limits leave out, each with its "reason".
    `unspelled` are those of `usable` whose transcript holds something that the tokenizer does not know.
    """

    usable: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    outside: list[dict[str, Any]] = field(default_factory=list)
    unspelled: list[dict[str, Any]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of entries in the manifest."""
        return len(self.usable) + len(self.dropped) + len(self.outside)

    def counts(self) -> dict[str, int]:
        """Number of utterances that are not usable for each reason, most frequent first."""
        return _counts(self.dropped + self.outside)


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
        with named_when_full(path):
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
    unk_id: int | None = None,
    loader: Loader = Loader(),
    progress: bool = True,
) -> Screening:
    """Sorts the entries of a manifest into usable and other ones by looking at every audio file's header and end.

    sample_rate: Hz the model listens at; files below it are usable but counted in one warning, because their upper
    mel bins are empty. With tokenize, seconds_per_frame (one encoder frame, seconds) also drops utterances with more
    tokens than encoder frames, and unk_id finds transcripts with that token. Raises ValueError as `read_manifest`.
    """
    if tokenize is None and (seconds_per_frame is not None or unk_id is not None):
        raise ValueError("seconds_per_frame and unk_id need tokenize: give it too, or neither of them.")
    if seconds_per_frame is not None and not seconds_per_frame > 0:
        raise ValueError(f"seconds_per_frame is {seconds_per_frame}: one encoder frame lasts more than 0 seconds.")
    files = AudioFiles()
    if tokenize is not None:
        tokenize = lru_cache(maxsize=1)(tokenize)  # a transcript is asked for twice
    screening, low_rate = Screening(), 0
    entries = read_manifest(path)
    for entry in tqdm(entries, desc=f"Checking {Path(path).name}", unit="utt", disable=not progress, mininterval=1.0):
        header = files.inspect(entry["audio_filepath"])
        if reason := _audio_fault(entry, header):
            screening.dropped.append({**entry, "reason": reason})
        elif reason := loader.limit_missed(entry, header):
            screening.outside.append({**entry, "reason": reason})
        elif reason := _channel_fault(header, loader):
            screening.dropped.append({**entry, "reason": reason})
        elif reason := text_fault(entry["text"], entry["duration"], tokenize, seconds_per_frame):
            screening.dropped.append({**entry, "reason": reason})
        else:
            screening.usable.append(entry)
            low_rate += sample_rate is not None and header.sample_rate < sample_rate
            if unk_id is not None and unk_id in tokenize(entry["text"]):
                screening.unspelled.append(entry)
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
    unk_id: int | None = None,
    loader: Loader = Loader(),
    progress: bool = True,
) -> Path:
    """Path of a manifest that can be trained on: the given one when every utterance is usable.

    policy "drop" writes `<output_dir>/<name>_usable.json` (absolute audio paths) and `<name>_dropped.json` (with
    reasons), and logs one warning. policy "refuse" raises ValueError with the count and the first ten. Utterances
    outside the loader's limits are left out on purpose: with either policy they are dropped, counted and listed.
    A file that only needs its byte order mark or blank lines removed, which NeMo cannot read, is rewritten without a
    warning. Transcripts that the tokenizer cannot spell are kept, counted in one warning, and listed in
    `<name>_unspelled.json`. Also raises ValueError for an unknown policy, when nothing usable is left, and when no
    usable transcript can be spelled.
    """
    if policy not in ("drop", "refuse"):
        raise ValueError(f"bad_utterances is {policy!r}: use 'drop' (counted and listed) or 'refuse'.")
    screening = screen_manifest(
        manifest_path,
        sample_rate=sample_rate,
        tokenize=tokenize,
        seconds_per_frame=seconds_per_frame,
        unk_id=unk_id,
        loader=loader,
        progress=progress,
    )
    unusable = screening.dropped + screening.outside
    if not screening.usable or (screening.dropped and policy == "refuse"):
        raise ValueError(_refusal(manifest_path, screening))
    if screening.unspelled:
        _report_unspelled(manifest_path, screening, tokenize, unk_id, Path(output_dir) / f"{name}_unspelled.json")
    if not unusable and _nemo_can_read(Path(manifest_path)):
        return Path(manifest_path)
    usable_path = write_manifest(Path(output_dir) / f"{name}_usable.json", screening.usable)
    if unusable:
        dropped_path = write_manifest(Path(output_dir) / f"{name}_dropped.json", unusable)
        logger.warning("%s (listed in %s)", _count_line(manifest_path, unusable, screening.total), dropped_path)
    return usable_path


def _channel_fault(header: AudioHeader, loader: Loader) -> str | None:
    return Reason.SEVERAL_CHANNELS if loader.mono_only and header.channels > 1 else None


def _audio_fault(entry: dict[str, Any], header: AudioHeader) -> str | None:
    if header.fault:
        return header.fault
    if entry["duration"] == 0:
        return Reason.EMPTY_AUDIO
    if (entry.get("offset") or 0.0) + entry["duration"] > header.seconds + DURATION_TOLERANCE:
        return Reason.TOO_LONG_DURATION
    return None


def text_fault(
    text: str, seconds: float, tokenize: Callable[[str], list[int]] | None, seconds_per_frame: float | None
) -> str | None:
    """Why a transcript cannot be that of so many seconds of audio; without a tokenizer only an empty one is told."""
    if not text.strip():
        return Reason.EMPTY_TEXT
    if tokenize is None or seconds_per_frame is None:
        return None
    num_tokens = len(tokenize(text))
    if num_tokens == 0:
        return Reason.EMPTY_TEXT
    return Reason.TOO_LONG_TEXT if num_tokens > seconds / seconds_per_frame else None


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


def _report_unspelled(
    manifest_path: str | Path,
    screening: Screening,
    tokenize: Callable[[str], list[int]],
    unk_id: int,
    listed_in: Path,
) -> None:
    texts = [entry["text"] for entry in screening.unspelled]
    unknown = {character for character in set("".join(texts)) if unk_id in tokenize(character)}
    found = ["".join(dict.fromkeys(character for character in text if character in unknown)) for text in texts]
    count = (
        f"{manifest_path}: {len(texts)} of {len(screening.usable)} transcripts hold characters that the "
        f"tokenizer does not know, such as {found[0]!r} in {texts[0]!r}"
    )
    if len(texts) == len(screening.usable):
        raise ValueError(f"{count}. Write them like the tokenizer's own text (upper or lower case), or train another.")
    lines = [{**entry, "unknown": characters} for entry, characters in zip(screening.unspelled, found, strict=True)]
    logger.warning("%s: these are learnt as <unk> (listed in %s)", count, write_manifest(listed_in, lines))


def _counts(entries: list[dict[str, Any]]) -> dict[str, int]:
    return dict(Counter(entry["reason"] for entry in entries).most_common())


def _count_line(manifest_path: str | Path, unusable: list[dict[str, Any]], total: int) -> str:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in _counts(unusable).items())
    return f"{manifest_path}: {len(unusable)} of {total} utterances cannot be used ({reasons})"


def _refusal(manifest_path: str | Path, screening: Screening) -> str:
    listed = screening.dropped if screening.usable else screening.dropped + screening.outside
    shown = [f"  - {entry['audio_filepath']}: {entry['reason']}" for entry in listed[:REPORTED_UTTERANCES]]
    more = len(listed) - len(shown)
    if more:
        shown.append(f"  ... and {more} more")
    if screening.usable:
        remedy = "Mend these lines, or set bad_utterances to 'drop'."
    else:
        ways = ["Mend these lines"] * bool(screening.dropped) + ["change the limits"] * bool(screening.outside)
        remedy = f"{' or '.join(ways).capitalize()}: none is usable."
    return "\n".join([_count_line(manifest_path, listed, screening.total) + ":", *shown, remedy])
