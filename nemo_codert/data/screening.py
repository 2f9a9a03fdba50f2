"""Screening of manifests before training: usable utterances, faulty ones with the reason, and notices.

Imports tqdm, manifest.py, audio_files.py and normalisation.py only, neither torch nor NeMo.
"""

import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from nemo_codert.data.audio_files import AudioFault, AudioHeader, Samples, inspect, listen
from nemo_codert.data.manifest import has_text, nemo_can_read, parse_manifest, write_manifest
from nemo_codert.data.normalisation import composed
from nemo_codert.data.utterance_ids import ID_KEYS

logger = logging.getLogger(__name__)
Asked = TypeVar("Asked", bound=Hashable)
Answer = TypeVar("Answer")

DURATION_TOLERANCE = 0.1  # seconds; manifests round durations, and resampled copies differ by some samples
REPORTED_UTTERANCES = 10
RESIZING = ("perturb_speed", "truncate_duration", "cut_into_windows_duration", "pad_min_duration")  # keys of lhotse
RATE_KEYS = ("sampling_rate", "sample_rate")
CHANNEL_KEYS = ("channel", "channel_id", "channel_selector")  # keys by which lines state a channel
AUDIO_CHECKS = ("auto", "headers", "samples")
AUTO_HOURS = 20.0  # hours of audio in a manifest, up to which audio_check: auto decodes all samples
CLIPPED_SHARE = 0.001  # an utterance is clipped if at least this share of its samples is at full scale
MAX_THREADS = 8


class Reason(AudioFault):
    """Reasons for which an utterance cannot be used: values of "reason" in the list of dropped utterances.

    Example:
        >>> Reason.EMPTY_TEXT
        'empty transcript'
    """

    EMPTY_TEXT = "empty transcript"
    TOO_LONG_TEXT = "more tokens than encoder frames"
    TOO_LONG_DURATION = "duration in the manifest longer than the audio file"
    WRONG_RATE = "sampling_rate in the manifest is not the file's"
    SEVERAL_CHANNELS = "several channels, but neither use_lhotse nor channel_selector is set"
    NO_CHANNEL = "no such channel in the audio file"
    UNREACHABLE_CHANNEL = "channel_selector selects nothing in lines with a sampling_rate: leave the rate out"
    CONTRADICTION = "other transcripts for the same audio"
    CONTRADICTION_OF_CHANNELS = (
        "other transcripts for the same audio: its channel is not read, set use_lhotse to true and channel_selector "
        "to the key that has it"
    )
    BELOW_MINIMUM = "shorter than min_duration"
    ABOVE_MAXIMUM = "longer than max_duration"
    SKIPPED = "_skipme is set"


class Notice:
    """Peculiarities of utterances that are used all the same: values of "notice" in the list of noticed ones."""

    CLIPPED = "clipped: samples at full scale"
    REPEATED = "same audio and transcript as another line"
    SAME_ID = "same id as another line"
    UNREAD_CHANNEL = (
        "channel is not read, all are mixed: set use_lhotse to true and channel_selector to the key that has it"
    )


@dataclass(frozen=True)
class Loader:
    """Utterances that NeMo's loader of a block such as model.train_ds accepts.

    Args:
        min_duration, max_duration: limits in seconds, both included.
        mono_only: files of several channels stop the loader.
        channel: the channel that the loader selects: a number, or the key of a line that has it. None: all channels
            are mixed.
        by_tools: this package reads the audio by itself, as its tools do: `channel` need not be in every line.
        lhotse: the loader is lhotse's: an utterance without an offset is the whole file, whatever its manifest's
            duration.
        resizing: settings by which lhotse changes durations before comparing them with the limits.
        resized_limits: the limits in seconds where `resizing` is not empty; min_duration and max_duration are then
            infinite.

    Example:
        >>> loader = Loader.of({"use_lhotse": True, "min_duration": 0.5}, "model.train_ds")
        >>> loader.min_duration, loader.max_duration, loader.mono_only
        (0.5, inf, False)
    """

    min_duration: float = -math.inf
    max_duration: float = math.inf
    mono_only: bool = False
    channel: int | str | None = None
    by_tools: bool = False
    lhotse: bool = True
    resizing: Mapping[str, Any] = field(default_factory=dict)
    resized_limits: tuple[float, float] = (-math.inf, math.inf)

    @classmethod
    def of(cls, block: Mapping[str, Any], key: str) -> "Loader":
        """Return the loader of a config's block.

        Where lhotse changes durations before comparing them (RESIZING), its limits become `resized_limits`.

        Args:
            block: the block, such as model.train_ds.
            key: the block's place in the config, for messages.

        Raises:
            ValueError: a limit that is not a number, or a channel_selector that the loader does not take.
        """
        lhotse = bool(block.get("use_lhotse"))
        limits = {name: block.get(name) for name in ("min_duration", "max_duration") if block.get(name) is not None}
        for name, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise ValueError(f"{key}.{name} is {value!r}: give seconds, or null for no limit.")
        mono_only = not lhotse and block.get("channel_selector") is None
        settings = {"mono_only": mono_only, "lhotse": lhotse, "channel": _selected_channel(block, key, lhotse)}
        resizing = {name: block.get(name) for name in RESIZING if block.get(name)} if lhotse else {}
        if not resizing:
            return cls(**limits, **settings)
        lowest, highest = limits.get("min_duration", -math.inf), limits.get("max_duration", math.inf)
        return cls(**settings, resizing=resizing, resized_limits=(lowest, highest))

    def may_pass(self, seconds: float) -> bool:
        """Return whether any duration that lhotse may make out of `seconds` lies within the limits."""
        lengths = [seconds, *((seconds / 0.9, seconds / 1.1) if self.resizing.get("perturb_speed") else ())]
        lengths = [min(length, self.resizing.get("truncate_duration", math.inf)) for length in lengths]
        if window := self.resizing.get("cut_into_windows_duration"):
            lengths = [part for length in lengths for part in (min(length, window), length % window)]
        lengths = [max(length, self.resizing.get("pad_min_duration", 0.0)) for length in lengths]
        return any(self.resized_limits[0] <= length <= self.resized_limits[1] for length in lengths)

    def seconds(self, entry: dict[str, Any], header: AudioHeader) -> float:
        """Return the duration in seconds that this loader compares with its limits."""
        if not self.lhotse or any(entry.get(key) is not None for key in RATE_KEYS):
            return entry["duration"]
        frames = header.frames
        if (offset := entry.get("offset")) is not None:
            rate = header.sample_rate
            frames = min(round(entry["duration"] * rate), frames - round(offset * rate))
        return frames / header.sample_rate

    def channel_of(self, entry: Mapping[str, Any]) -> Any:
        """Return the number of the channel that this loader selects for an entry; None where it mixes all."""
        return entry.get(self.channel) if isinstance(self.channel, str) else self.channel

    def channel_fault(self, entry: Mapping[str, Any], header: AudioHeader) -> str | None:
        """Return why the channel of an entry cannot be selected, None if it can."""
        if self.channel is None:
            return None
        channel = self.channel_of(entry)
        if self.by_tools and isinstance(self.channel, str) and (channel is None or header.channels == 1):
            return None
        if isinstance(channel, bool) or not isinstance(channel, int) or not 0 <= channel < header.channels:
            return Reason.NO_CHANNEL
        if self.by_tools or not self.lhotse or header.channels == 1:
            return None
        # NeMo then takes the file for one of a single channel, and lhotse mixes what is in it.
        stated = any(entry.get(key) is not None for key in RATE_KEYS)
        return Reason.UNREACHABLE_CHANNEL if stated else None

    def ignores_channel(self, entry: Mapping[str, Any], header: AudioHeader) -> bool:
        """Return whether an entry states one of several channels that this loader mixes all the same."""
        stated = any(entry.get(key) is not None for key in CHANNEL_KEYS)
        return self.channel is None and stated and header.channels > 1

    def limit_missed(self, entry: dict[str, Any], header: AudioHeader) -> str | None:
        """Return the limit of the config that leaves an utterance out, None if it is within the limits."""
        seconds = self.seconds(entry, header)
        if seconds < self.min_duration:
            return f"{Reason.BELOW_MINIMUM} of {self.min_duration} s"
        return f"{Reason.ABOVE_MAXIMUM} of {self.max_duration} s" if seconds > self.max_duration else None


# Reading by this package's own tools: the `channel` of a line, or all channels mixed.
TOOLS = Loader(channel="channel", by_tools=True)


def tools_loader(block: Mapping[str, Any], key: str) -> Loader:
    """Return the loader of a section of test data, which the tools read: `TOOLS`, or the channel that it selects.

    Args:
        block: the section, such as model.test_ds. key: its place in the config, for messages.

    Raises:
        ValueError: a channel_selector that is neither a number nor a key of the lines.

    Example:
        >>> tools_loader({"channel_selector": 1}, "model.test_ds").channel
        1
    """
    if (selector := block.get("channel_selector")) is None:
        return TOOLS
    channel = None if selector == "average" else _selected_channel(block, key, lhotse=True)
    return replace(TOOLS, channel=channel)


def _selected_channel(block: Mapping[str, Any], key: str, lhotse: bool) -> int | str | None:
    """Return the channel that a block's loader selects; None where it mixes all."""
    value = block.get("channel_selector")
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is None or number or (lhotse and isinstance(value, str) and value != "average"):
        return value
    if not lhotse and value == "average":
        return None
    wanted = "the number of a channel, or null to mix all"
    if lhotse:
        wanted = "the number of a channel, the key of the lines that has it, or null to mix all"
    raise ValueError(f"{key}.channel_selector is {value!r}, wanted {wanted}.")


@dataclass
class Screening:
    """Entries of one manifest, audio paths resolved, in lists.

    Args:
        usable: entries that can be used.
        dropped: faulty entries, each with its "reason"; lines that cannot be read come first.
        outside: entries that the loader's limits leave out, each with its "reason".
        unlabelled: those of `usable` without a transcript.
        unspelled: those of `usable` whose transcript has a character that the tokenizer lacks.
        noticed: those of `usable` with a "notice".
        low_rate: those of `usable` below the model's sample rate.
        decoded: number of utterances whose samples were all decoded.

    Example:
        >>> screening = Screening(usable=[{}], dropped=[{"reason": Reason.EMPTY_TEXT}])
        >>> screening.total, screening.counts()
        (2, {'empty transcript': 1})
    """

    usable: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    outside: list[dict[str, Any]] = field(default_factory=list)
    unlabelled: list[dict[str, Any]] = field(default_factory=list)
    unspelled: list[dict[str, Any]] = field(default_factory=list)
    noticed: list[dict[str, Any]] = field(default_factory=list)
    low_rate: list[dict[str, Any]] = field(default_factory=list)
    decoded: int = 0

    @property
    def total(self) -> int:
        """Number of lines in the manifest, blank ones left out."""
        return len(self.usable) + len(self.dropped) + len(self.outside)

    def counts(self) -> dict[str, int]:
        """Return the number of unusable utterances for each reason, most frequent first."""
        return count_by(self.dropped + self.outside, "reason")


@dataclass
class _Line:
    """A manifest entry during screening. reason: None while usable. chosen: the config's limits leave it out."""

    entry: dict[str, Any]
    header: AudioHeader
    reason: str | None = None
    chosen: bool = False
    is_unspelled: bool = False
    notices: list[str] = field(default_factory=list)


def screen_manifest(
    path: str | Path,
    *,
    sample_rate: int | None = None,
    tokenize: Callable[[str], list[int]] | None = None,
    seconds_per_frame: float | None = None,
    spare_frames: int = 0,
    unk_id: int | None = None,
    loader: Loader = Loader(),
    audio_check: str = "headers",
    unlabelled: bool = False,
    text_field: str = "text",
    normalise: Callable[[str], str] = composed,
    progress: bool = True,
) -> Screening:
    """Sort the entries of a manifest into usable and unusable ones by checking every audio file.

    Args:
        path: the manifest.
        sample_rate: the model's, in Hz; files below it are usable but counted in one warning, because their upper mel
            bins are empty.
        tokenize: text to token ids; needed by seconds_per_frame and unk_id.
        seconds_per_frame: one encoder frame in seconds; drops utterances with more tokens than encoder frames.
        spare_frames: encoder frames that an utterance needs besides one for each token.
        unk_id: id of the unknown token; lists transcripts that contain it in `unspelled`.
        loader: limits of the loader that will read the manifest.
        audio_check: `headers` reads header and end of every file, `samples` decodes every utterance that is still
            usable, `auto` does so in a manifest of at most 20 hours; files of floating-point samples, which alone can
            hold NaN, are decoded in any case.
        unlabelled: a line without `text` is an utterance without transcript; else it is a line that cannot be used.
        text_field: key of the transcript.
        normalise: the form in which transcripts are compared; see `nemo_codert.data.normalisation`.
        progress: show progress bars.

    Returns:
        The entries by outcome.

    Raises:
        ValueError: a missing or empty manifest, an unknown audio_check, or arguments that need `tokenize`.

    Example:
        >>> import tempfile
        >>> entry = {"audio_filepath": "a.wav", "duration": 1.5, "text": "yes"}
        >>> manifest = write_manifest(Path(tempfile.mkdtemp()) / "train.json", [entry])
        >>> screen_manifest(manifest, progress=False).counts()
        {'audio file missing': 1}
    """
    if tokenize is None and (seconds_per_frame is not None or unk_id is not None):
        raise ValueError("seconds_per_frame and unk_id need tokenize: give it too, or neither of them.")
    if seconds_per_frame is not None and not seconds_per_frame > 0:
        raise ValueError(f"seconds_per_frame is {seconds_per_frame}: one encoder frame lasts more than 0 seconds.")
    if audio_check not in AUDIO_CHECKS:
        raise ValueError(f"audio_check is {audio_check!r}: use one of {', '.join(AUDIO_CHECKS)}.")
    entries, bad = parse_manifest(path, unlabelled=unlabelled, text_field=text_field)
    headers = _ask(inspect, [entry["audio_filepath"] for entry in entries], f"Checking {Path(path).name}", progress)
    lines = [_Line(entry, headers[entry["audio_filepath"]]) for entry in entries]
    if tokenize is not None:
        tokenize = lru_cache(maxsize=1)(tokenize)  # each transcript is tokenized twice
    for line in lines:
        line.reason, line.chosen = _reason(line, loader, tokenize, seconds_per_frame, spare_frames)
        if unk_id is not None and line.reason is None and has_text(line.entry):
            line.is_unspelled = unk_id in tokenize(line.entry["text"])
    decoded = _listen(_usable(lines), loader, audio_check, f"Decoding {Path(path).name}", progress)
    _compare(_usable(lines), loader, normalise)
    screening = _sorted(lines, sample_rate)
    screening.dropped[:0], screening.decoded = [line.plain for line in bad], decoded
    if screening.low_rate:
        logger.warning(
            "%s: %d of %d utterances are below %d Hz and will be upsampled.",
            *(path, len(screening.low_rate), screening.total, sample_rate),
        )
    return screening


def screen_dataset(
    manifest_path: str | Path,
    *,
    policy: str,
    output_dir: str | Path,
    name: str,
    report: Callable[[Screening], None] = lambda screening: None,
    tokenize: Callable[[str], list[int]] | None = None,
    unk_id: int | None = None,
    **how: Any,
) -> Path:
    """Return the path of a manifest that can be trained on: the given one if every utterance is usable.

    Utterances outside the loader's limits are left out on purpose: with either policy they are dropped, counted and
    listed. A file that only needs its byte order mark or blank lines removed, which NeMo cannot read, is rewritten
    without a warning. Transcripts that the tokenizer cannot spell are kept, counted in one warning, and listed in
    `<name>_unspelled.json`; other utterances with a notice likewise in `<name>_noticed.json`.

    Args:
        manifest_path: the manifest.
        policy: "drop" writes `<output_dir>/<name>_usable.json` (absolute audio paths) and `<name>_dropped.json` (with
            reasons), and logs one warning; "refuse" raises with the count and the first ten.
        output_dir: folder of the files that are written.
        name: start of the names of these files.
        report: called with the outcome of a manifest that is not refused.
        tokenize, unk_id, how: as for `screen_manifest`.

    Returns:
        `manifest_path`, or the path of the usable entries.

    Raises:
        ValueError: an unknown policy, faulty utterances with "refuse", no usable utterance left, or no usable
            transcript that the tokenizer can spell.

    Example:
        >>> import tempfile
        >>> import numpy, soundfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> soundfile.write(folder / "a.wav", numpy.sin(numpy.arange(16000) / 20), 16000)
        >>> lines = [{"audio_filepath": f"{name}.wav", "duration": 1.0, "text": "yes"} for name in ("a", "b")]
        >>> manifest = write_manifest(folder / "train.json", lines)
        >>> screen_dataset(manifest, policy="drop", output_dir=folder / "run", name="train", progress=False).name
        'train_usable.json'
    """
    if policy not in ("drop", "refuse"):
        raise ValueError(f"bad_utterances is {policy!r}: use 'drop' (counted and listed) or 'refuse'.")
    screening = screen_manifest(manifest_path, tokenize=tokenize, unk_id=unk_id, **how)
    unusable, folder = screening.dropped + screening.outside, Path(output_dir)
    if not screening.usable or (screening.dropped and policy == "refuse"):
        raise ValueError(_refusal(manifest_path, screening))
    loader = how.get("loader", Loader())
    if not any(loader.may_pass(entry["duration"]) for entry in screening.usable):
        raise ValueError(
            f"{manifest_path}: after {', '.join(loader.resizing)} no utterance is within min_duration and "
            "max_duration, and lhotse would search for one without end. Change the limits: none is usable."
        )
    if screening.unspelled:
        normalise = how.get("normalise", composed)
        listed_in = folder / f"{name}_unspelled.json"
        _report_unspelled(manifest_path, screening, tokenize, unk_id, listed_in, normalise)
    if screening.noticed:
        counts = _counted(screening.noticed, "notice")
        listed = write_manifest(folder / f"{name}_noticed.json", screening.noticed)
        logger.warning("%s: used all the same, but worth a look: %s (listed in %s)", manifest_path, counts, listed)
    report(screening)
    if not unusable and nemo_can_read(Path(manifest_path)):
        return Path(manifest_path)
    usable_path = write_manifest(folder / f"{name}_usable.json", screening.usable)
    if unusable:
        dropped_path = write_manifest(folder / f"{name}_dropped.json", unusable)
        logger.warning("%s (listed in %s)", _count_line(manifest_path, unusable, screening.total), dropped_path)
    return usable_path


def name_of(entry: Mapping[str, Any]) -> str:
    """Return the name of an utterance for messages: its audio file, or its line if the line cannot be read."""
    return f"line {entry['line']}" if "audio_filepath" not in entry else entry["audio_filepath"]


def count_by(entries: Iterable[Mapping[str, Any]], key: str) -> dict[str, int]:
    """Return the number of entries for each value of a key, most frequent first."""
    return dict(Counter(entry[key] for entry in entries).most_common())


def _reason(
    line: _Line,
    loader: Loader,
    tokenize: Callable[[str], list[int]] | None,
    seconds_per_frame: float | None,
    spare_frames: int,
) -> tuple[str | None, bool]:
    """Return the fault that headers and text show, None if there is none, and whether the config's limits are it."""
    entry, header = line.entry, line.header
    if loader.lhotse and entry.get("_skipme"):
        return Reason.SKIPPED, True
    if reason := _audio_fault(entry, header):
        return reason, False
    if reason := loader.limit_missed(entry, header):
        return reason, True
    if loader.mono_only and header.channels > 1:
        return Reason.SEVERAL_CHANNELS, False
    if reason := loader.channel_fault(entry, header):
        return reason, False
    if loader.lhotse and any(entry.get(key) not in (None, header.sample_rate) for key in RATE_KEYS):
        return Reason.WRONG_RATE, False  # lhotse uses the manifest's rate, which would change the speed
    if not has_text(entry):
        return None, False
    return text_fault(entry["text"], entry["duration"], tokenize, seconds_per_frame, spare_frames), False


def _audio_fault(entry: dict[str, Any], header: AudioHeader) -> str | None:
    if header.fault:
        return header.fault
    if entry["duration"] == 0:
        return Reason.EMPTY_AUDIO
    if (entry.get("offset") or 0.0) + entry["duration"] > header.seconds + DURATION_TOLERANCE:
        return Reason.TOO_LONG_DURATION
    return None


def text_fault(
    text: str,
    seconds: float,
    tokenize: Callable[[str], list[int]] | None,
    seconds_per_frame: float | None,
    spare_frames: int = 0,
) -> str | None:
    """Return the fault of a transcript for `seconds` of audio, None if it fits; without a tokenizer only emptiness."""
    if not text.strip():
        return Reason.EMPTY_TEXT
    if tokenize is None or seconds_per_frame is None:
        return None
    num_tokens = len(tokenize(text))
    if num_tokens == 0:
        return Reason.EMPTY_TEXT
    return Reason.TOO_LONG_TEXT if num_tokens + spare_frames > seconds / seconds_per_frame else None


def _ask(
    question: Callable[[Asked], Answer], about: Iterable[Asked], what: str, progress: bool
) -> dict[Asked, Answer]:
    """Return the answer for each different argument, by threads: libsndfile works without the interpreter's lock."""
    different = list(dict.fromkeys(about))
    bar = {"desc": what, "unit": "file", "disable": not progress, "mininterval": 1.0, "total": len(different)}
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(different, tqdm(pool.map(question, different), **bar), strict=True))


def _listen(lines: list[_Line], loader: Loader, audio_check: str, what: str, progress: bool) -> int:
    """Decode utterances, note the faults of their samples and return the number of decoded utterances."""
    hours = sum(loader.seconds(line.entry, line.header) for line in lines) / 3600
    if audio_check == "headers" or (audio_check == "auto" and hours > AUTO_HOURS):
        lines = [line for line in lines if line.header.floating]
    if not lines:
        return 0
    stretches = [_stretch(line) for line in lines]
    answers: dict[Any, Samples] = _ask(lambda stretch: listen(*stretch), stretches, what, progress)
    for line, stretch in zip(lines, stretches, strict=True):
        line.reason = answers[stretch].fault
        if answers[stretch].full_scale >= CLIPPED_SHARE:
            line.notices.append(Notice.CLIPPED)
    return len(lines)


def _stretch(line: _Line) -> tuple[str, int, int | None]:
    """Return path, first sample and number of samples of an utterance; None: the whole file."""
    entry, rate = line.entry, line.header.sample_rate
    if entry.get("offset") is None:
        return entry["audio_filepath"], 0, None
    return entry["audio_filepath"], round(entry["offset"] * rate), max(1, round(entry["duration"] * rate))


def _compare(lines: list[_Line], loader: Loader, normalise: Callable[[str], str]) -> None:
    """Mark lines of the same audio: a fault if transcripts differ, else a notice; a notice for equal ids, too."""
    same_audio, same_id = defaultdict(list), defaultdict(list)
    for line in lines:
        entry = line.entry
        channel = loader.channel_of(entry) if line.header.channels > 1 else None
        length = None if entry.get("offset") is None else (round(entry["offset"], 2), round(entry["duration"], 2))
        same_audio[entry["audio_filepath"], length, channel].append(line)
        if loader.ignores_channel(entry, line.header):
            line.notices.append(Notice.UNREAD_CHANNEL)
        for key in ID_KEYS:
            if entry.get(key) is not None:
                same_id[key, str(entry[key])].append(line)
    for group in same_audio.values():
        if len({" ".join(normalise(line.entry["text"]).split()) for line in group if has_text(line.entry)}) > 1:
            for line in group:
                unread = loader.ignores_channel(line.entry, line.header)
                line.reason = Reason.CONTRADICTION_OF_CHANNELS if unread else Reason.CONTRADICTION
        for line in group[1:]:
            line.notices.append(Notice.REPEATED)
    for group in same_id.values():
        for line in group[1:]:
            if Notice.REPEATED not in line.notices:
                line.notices.append(Notice.SAME_ID)


def _usable(lines: list[_Line]) -> list[_Line]:
    return [line for line in lines if line.reason is None]


def _sorted(lines: list[_Line], sample_rate: int | None) -> Screening:
    screening = Screening()
    for line in lines:
        if line.reason is not None:
            (screening.outside if line.chosen else screening.dropped).append({**line.entry, "reason": line.reason})
            continue
        screening.usable.append(line.entry)
        screening.unlabelled += [] if has_text(line.entry) else [line.entry]
        screening.noticed += [{**line.entry, "notice": notice} for notice in line.notices]
        if line.is_unspelled:
            screening.unspelled.append(line.entry)
        if sample_rate is not None and line.header.sample_rate < sample_rate:
            screening.low_rate.append(line.entry)
    return screening


def _report_unspelled(
    manifest_path: str | Path,
    screening: Screening,
    tokenize: Callable[[str], list[int]],
    unk_id: int,
    listed_in: Path,
    normalise: Callable[[str], str],
) -> None:
    texts = [normalise(entry["text"]) for entry in screening.unspelled]
    total = len(screening.usable) - len(screening.unlabelled)
    unknown = {character for character in set("".join(texts)) if unk_id in tokenize(character)}
    found = ["".join(dict.fromkeys(character for character in text if character in unknown)) for text in texts]
    count = (
        f"{manifest_path}: {len(texts)} of {total} transcripts hold characters that the "
        f"tokenizer lacks, such as {found[0]!r} in {texts[0]!r}"
    )
    if len(texts) == total:
        raise ValueError(f"{count}. Write them like the tokenizer's own text (upper or lower case), or train another.")
    lines = [{**entry, "unknown": characters} for entry, characters in zip(screening.unspelled, found, strict=True)]
    logger.warning("%s: these are learnt as <unk> (listed in %s)", count, write_manifest(listed_in, lines))


def _counted(entries: list[dict[str, Any]], key: str) -> str:
    return ", ".join(f"{value}: {count}" for value, count in count_by(entries, key).items())


def _count_line(manifest_path: str | Path, unusable: list[dict[str, Any]], total: int) -> str:
    return f"{manifest_path}: {len(unusable)} of {total} utterances cannot be used ({_counted(unusable, 'reason')})"


def _why(entry: Mapping[str, Any]) -> str:
    return entry["reason"] if "audio_filepath" in entry else entry["detail"]


def _refusal(manifest_path: str | Path, screening: Screening) -> str:
    listed = screening.dropped if screening.usable else screening.dropped + screening.outside
    shown = [f"  - {name_of(entry)}: {_why(entry)}" for entry in listed[:REPORTED_UTTERANCES]]
    more = len(listed) - len(shown)
    if more:
        shown.append(f"  ... and {more} more")
    if screening.usable:
        remedy = "Mend these lines, or set bad_utterances to 'drop'."
    else:
        ways = ["Mend these lines"] * bool(screening.dropped) + ["change the limits"] * bool(screening.outside)
        remedy = f"{' or '.join(ways).capitalize()}: none is usable."
    return "\n".join([_count_line(manifest_path, listed, screening.total) + ":", *shown, remedy])
