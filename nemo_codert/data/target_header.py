"""Header of a folder of stored targets: what they are, what they were made from, and how large their files are.

The folder (docs/cached_targets.md) is an untrusted file: the header is JSON of bounded size, every value is checked
before it is used, and no path is taken from it. Imports numpy only.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

HEADER = "header.json"
FORMAT, VERSION = "nemo_codert targets", 1
KINDS = ("top_k", "encoder")
PLACES = ("encoder", "ctc")
DTYPES = ("float16", "float32")
PRIORS = ("none", "mean_prediction")
COMBINATIONS = ("mean", "wer", "best")
MAX_HEADER_BYTES = 2**24
MAX_SHARDS = 4096
MAX_CLASSES = MAX_WIDTH = 2**24
MAX_FRAMES = 2**40
REMEDY = "Take the targets from a trusted source, or make them with codert cache"


class TargetFault(ValueError):
    """Error about stored targets that cannot be used."""


@dataclass(frozen=True)
class TeacherRecord:
    """One teacher that made the targets.

    Args:
        name: of its file, without folders, or its pretrained name.
        weights: sha256 of the weights of the networks that its targets depend on: its encoder and, for classes, what
            follows it.
        tokenizer: sha256 of its word pieces; null for an encoder without a tokenizer.
        wer: word error rate on the utterances, where it was measured.
        share: mean weight in the mixture; those of all teachers sum to 1.
    """

    name: str
    weights: str
    tokenizer: str | None = None
    wer: float | None = None
    share: float = 1.0


@dataclass(frozen=True)
class ShardRecord:
    """One file of targets: its frames, and the sha256 of its bytes."""

    frames: int
    sha256: str


@dataclass(frozen=True)
class TargetHeader:
    """Description of stored targets.

    Args:
        kind: `top_k` (the most likely classes of each frame) or `encoder` (output of the teacher's encoder).
        at: `encoder` or `ctc`, where the classes' probabilities come from; `encoder` for the kind of that name.
        dtype: of probabilities or encoder output, `float16` or `float32`.
        frame_seconds: seconds of audio per target frame.
        feature_seconds: seconds of audio per feature frame of the first teacher.
        manifest: sha256 of the manifest whose audio the teachers got.
        teachers: one record each.
        classes: V+1; 0 where no head gives classes.
        k: classes stored for each frame, of `top_k`.
        width: channels D, of `encoder`.
        layers: layers of the encoder, of `encoder`, where it has a number of them.
        temperature, prior: of the classes' probabilities, of `top_k`.
        combine: `mean`, `wer` or `best` of several teachers.
        tokenizer: sha256 of the word pieces that the classes are; null without a tokenizer.
        utterances, frames: numbers of both in all shards.
        index_sha256: of the index file.
        shards: one record for each file.

    Example:
        >>> header = TargetHeader("encoder", "encoder", "float16", 0.08, 0.01, "0" * 64, width=512)
        >>> header.stride, header.frame_bytes
        (8, 1024)
    """

    kind: str
    at: str
    dtype: str
    frame_seconds: float
    feature_seconds: float
    manifest: str
    teachers: tuple[TeacherRecord, ...] = ()
    classes: int = 0
    k: int | None = None
    width: int | None = None
    layers: int | None = None
    temperature: float | None = None
    prior: str | None = None
    combine: str = "mean"
    tokenizer: str | None = None
    utterances: int = 0
    frames: int = 0
    index_sha256: str = ""
    shards: tuple[ShardRecord, ...] = field(default=())

    @property
    def stride(self) -> int:
        """Feature frames per target frame."""
        return round(self.frame_seconds / self.feature_seconds)

    @property
    def frame_type(self) -> np.dtype:
        """The numpy type of one frame."""
        number = np.dtype(self.dtype).newbyteorder("<")
        if self.kind == "encoder":
            return np.dtype((number, (self.width,)))
        ids = np.dtype("<u2" if self.classes <= 2**16 else "<u4")
        return np.dtype([("ids", ids, (self.k,)), ("probabilities", number, (self.k,))])

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.frame_type.itemsize

    def settings(self) -> dict[str, Any]:
        """Return everything that decides the targets' values: without counts, files and measured error rates."""
        plain = {name: value for name, value in asdict(self).items() if name not in MEASURED}
        plain["teachers"] = [{"weights": each.weights, "tokenizer": each.tokenizer} for each in self.teachers]
        return plain

    def plain(self) -> dict[str, Any]:
        """Return the header as it is written."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


MEASURED = ("utterances", "frames", "index_sha256", "shards")
NUMBERS = {"utterances": MAX_FRAMES, "frames": MAX_FRAMES, "classes": MAX_CLASSES}
CHOICES = {"kind": KINDS, "at": PLACES, "dtype": DTYPES, "combine": COMBINATIONS}


def read_header(folder: str | Path) -> TargetHeader:
    """Return the checked header of a folder of targets.

    Args:
        folder: of targets.

    Raises:
        TargetFault: no such folder or header, or a value that is not possible; names the file and the key.

    Example:
        >>> read_header("targets")  # no such folder here
        Traceback (most recent call last):
        ...
        nemo_codert.data.target_header.TargetFault: targets is not a folder. Give the folder that codert cache made
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TargetFault(f"{folder} is not a folder. Give the folder that codert cache made")
    path = folder / HEADER
    if not os.path.lexists(path):
        unfinished = (
            "its targets are not finished: run codert cache again, it resumes" if any(folder.iterdir()) else ""
        )
        raise TargetFault(f"{folder} has no {HEADER}: {unfinished or 'give the folder that codert cache made'}")
    with open_regular(path, MAX_HEADER_BYTES) as file:
        content = file.read()
    try:
        plain = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested without end
        raise TargetFault(f"{path} is not JSON ({error}). {REMEDY}") from error
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise TargetFault(f"{path} is not the header of targets. {REMEDY}")
    if plain.get("version") != VERSION:
        raise TargetFault(f"{path}: version is {plain.get('version')!r}, this program reads {VERSION}. Cache again")
    return _checked(plain, path)


def open_regular(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """Open a file of a folder of targets: no link, no device, and no larger than `max_bytes`.

    Raises:
        TargetFault: it is missing, something else than a plain file, or too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "is a link" if os.path.islink(path) else f"cannot be opened ({error.strerror})"
        raise TargetFault(f"{path} {reason}. {REMEDY}") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or (max_bytes is not None and status.st_size > max_bytes):
        os.close(handle)
        reason = f"has {status.st_size:,} bytes" if stat.S_ISREG(status.st_mode) else "is not a plain file"
        raise TargetFault(f"{path} {reason}. {REMEDY}")
    return os.fdopen(handle, "rb")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _checked(plain: dict[str, Any], path: Path) -> TargetHeader:
    """Build the header of plain values; every one of them is checked."""
    known = {each.name for each in fields(TargetHeader)}
    values = {key: value for key, value in plain.items() if key not in ("format", "version")}
    check = _Check(path, values)
    if values.keys() != known:
        check.fail("keys", sorted(values.keys() ^ known), "those of version 1")
    for key, choices in CHOICES.items():
        check.that(key, values[key] in choices, "one of " + ", ".join(choices))
    for key, highest in NUMBERS.items():
        check.count(key, 0, highest)
    for key in ("frame_seconds", "feature_seconds"):
        check.that(key, _is_number(values[key]) and 0 < values[key] < 60, "seconds above 0")
    for key in ("manifest", "index_sha256"):
        check.that(key, _is_sha(values[key]), "a sha256")
    check.that("tokenizer", values["tokenizer"] is None or _is_sha(values["tokenizer"]), "a sha256 or null")
    if values["kind"] == "top_k":
        check.count("classes", 2, MAX_CLASSES)
        check.count("k", 1, values["classes"])
        tau = values["temperature"]
        check.that("temperature", _is_number(tau) and 0 < tau < math.inf, "a number above 0")
        check.that("prior", values["prior"] in PRIORS, "one of " + ", ".join(PRIORS))
    else:
        check.count("width", 1, MAX_WIDTH)
        check.that("layers", values["layers"] is None or _is_count(values["layers"], 1, 10_000), "a number or null")
    teachers = check.records("teachers", TeacherRecord, 1000)
    shards = check.records("shards", ShardRecord, MAX_SHARDS)
    for number, shard in enumerate(shards):
        check.that(f"shards[{number}].frames", _is_count(shard.frames, 0, MAX_FRAMES), "a number of frames")
        check.that(f"shards[{number}].sha256", _is_sha(shard.sha256), "a sha256")
    for number, teacher in enumerate(teachers):
        check.that(f"teachers[{number}].weights", _is_sha(teacher.weights), "a sha256")
        check.that(f"teachers[{number}].name", isinstance(teacher.name, str), "a name")
    check.that("frames", values["frames"] == sum(shard.frames for shard in shards), "the sum of the shards' frames")
    return TargetHeader(**{**values, "teachers": teachers, "shards": shards})


class _Check:
    """Checks of a header's values, each with an error that names file, key and value."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values

    def fail(self, key: str, value: Any, wanted: str) -> NoReturn:
        raise TargetFault(f"{self.path}: {key} is {value!r:.80}, wanted {wanted}. {REMEDY}")

    def that(self, key: str, is_right: bool, wanted: str) -> None:
        if not is_right:
            self.fail(key, self.values.get(key, "wrong"), wanted)

    def count(self, key: str, lowest: int, highest: int) -> None:
        wanted = f"a whole number from {lowest} to {highest:,}"
        self.that(key, _is_count(self.values[key], lowest, highest), wanted)

    def records(self, key: str, kind: type, most: int) -> tuple[Any, ...]:
        entries, names = self.values[key], {each.name for each in fields(kind)}
        self.that(key, isinstance(entries, list) and len(entries) <= most, f"a list of at most {most}")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or entry.keys() != names:
                self.fail(f"{key}[{number}]", entry, "a block of " + ", ".join(sorted(names)))
        return tuple(kind(**entry) for entry in entries)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _is_sha(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and all(c in "0123456789abcdef" for c in value)
