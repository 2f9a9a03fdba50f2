"""Storing the targets of trained teachers for the utterances of a manifest: what `codert cache` does, as a library.

B batch, S samples, D channels, T frames, V vocabulary without blank, K teachers.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo.collections.asr.parts.preprocessing.segment import AudioSegment
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from nemo_codert.data.audio_files import channel_selector
from nemo_codert.data.screening import TOOLS, Reason, name_of, screen_manifest
from nemo_codert.data.target_cache import Utterance, listed
from nemo_codert.data.target_header import COMBINATIONS, DTYPES, PLACES, PRIORS, TargetHeader, TeacherRecord
from nemo_codert.data.target_writer import TargetWriter
from nemo_codert.data.utterance_ids import audio_id, entry_id, file_fingerprint, id_key
from nemo_codert.evaluation.target_teachers import (
    TargetTeacher,
    mixture,
    mixture_weights,
    open_teacher,
)
from nemo_codert.evaluation.transcribe import references_for
from nemo_codert.evaluation.word_errors import word_errors
from nemo_codert.modules.checksums import pieces_sha256, weights_sha256

logger = logging.getLogger(__name__)

SHARD_SECONDS = 1800.0  # audio in one shard: the work that a kill can cost
FEWEST_SHARDS, MOST_SHARDS = 8, 500
RATE_TOLERANCE = 0.01  # tolerance of the ratio of two frame rates
# Faults of a manifest's lines that a teacher does not mind.
HEARD_ALL_THE_SAME = (Reason.EMPTY_TEXT, Reason.CONTRADICTION)


@dataclass(frozen=True)
class CacheSettings:
    """Settings of `cache_targets`.

    Args:
        teachers: model files or pretrained names.
        manifest: utterances; its audio is what the teachers get.
        output: folder of the targets: new, empty, or with unfinished targets of the same settings.
        keep: `encoder`, or `top_k=N` with the number of classes of each frame; `top_k=all` keeps all.
        at: `encoder` or `ctc`, where the classes' probabilities come from.
        dtype: `float16` or `float32`.
        temperature: of the classes' probabilities.
        prior: `none`, or `mean_prediction`, which is added to encoder logits.
        combine: of several teachers, see `mixture_weights`.
        group: frames of the slowest teacher that make one target frame.
        measure_wer: measure the teachers' word errors, on the lines with text, where nothing else needs them.
        batch_size: utterances that a teacher gets at a time.
        jobs: processes.
        progress: show a progress bar.
    """

    teachers: Sequence[str]
    manifest: str | Path
    output: str | Path
    keep: str = "top_k=8"
    at: str = "encoder"
    dtype: str = "float16"
    temperature: float = 1.0
    prior: str = "none"
    combine: str = "mean"
    group: int = 1
    measure_wer: bool = False
    batch_size: int = 16
    jobs: int = 1
    progress: bool = True

    @property
    def kind(self) -> str:
        """`top_k` or `encoder`."""
        return self.keep.partition("=")[0]

    def check(self) -> None:
        """Raise ValueError for settings that contradict each other, without opening a model."""
        kind, _, count = self.keep.partition("=")
        is_top_k = kind == "top_k" and (count == "all" or (count.isdecimal() and int(count) >= 1))
        if not is_top_k and self.keep != "encoder":
            raise ValueError(f"`keep` is {self.keep!r}, wanted encoder, or top_k=N with N classes or top_k=all")
        choices = {"at": PLACES, "dtype": DTYPES, "prior": PRIORS, "combine": COMBINATIONS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}, wanted one of {', '.join(allowed)}")
        for name in ("group", "batch_size", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, wanted 1 or more")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"`temperature` is {self.temperature}, wanted a number above 0")
        if self.at == "ctc" and self.prior != "none":
            raise ValueError(
                "`prior` is mean_prediction but `at` is ctc: a CTC head has no prediction network beside it"
            )
        if not self.teachers:
            raise ValueError("`teachers` is empty: give at least one model")
        several = len(self.teachers) > 1
        if several and kind == "encoder":
            raise ValueError("`keep` is encoder but there are several `teachers`: keep top_k classes of a mixture")
        if several and self.at == "encoder" and self.prior == "none":
            raise ValueError(
                "several `teachers` with `at` encoder need `prior` mean_prediction: encoder logits of other models "
                "are not comparable without it (or mix CTC heads, with `at` ctc)"
            )
        self._check_encoder_kind(several)

    def _check_encoder_kind(self, several: bool) -> None:
        if self.kind == "encoder":
            for name, default in (("at", "encoder"), ("temperature", 1.0), ("prior", "none"), ("group", 1)):
                if getattr(self, name) != default:
                    raise ValueError(f"`{name}` is for top_k classes, but `keep` is encoder: leave it out")
        if not several and self.combine != "mean":
            raise ValueError(f"`combine` is {self.combine} but there is one teacher: leave it out")


def cache_targets(settings: CacheSettings) -> TargetHeader:
    """Run teachers over a manifest and store their targets; finished shards of an earlier call are kept.

    Args:
        settings: see `CacheSettings`.

    Returns:
        The header of the folder.

    Raises:
        ValueError: settings, models or a manifest that cannot be used.
        OSError: such as a full disk.

    Example:
        >>> cache_targets(CacheSettings(["a.nemo", "b.nemo"], "train.json", "targets", keep="encoder"))
        Traceback (most recent call last):
        ...
        ValueError: `keep` is encoder but there are several `teachers`: keep top_k classes of a mixture
    """
    settings.check()
    teachers = [open_teacher(str(source)) for source in settings.teachers]
    entries = usable_utterances(settings)
    plan = shard_plan(entries)
    runner = Runner(settings, teachers, entries, plan)
    writer = TargetWriter(settings.output, runner.header, len(plan))
    missing = writer.unfinished()
    done = sum(len(plan[number]) for number in range(len(plan)) if number not in set(missing))
    with tqdm(total=len(entries), initial=done, unit="utt", disable=not settings.progress, desc="Targets") as bar:
        if settings.jobs == 1 or len(missing) <= 1:
            for number in missing:
                runner.write(writer, number, bar.update)
        else:
            _in_processes(replace(settings, teachers=tuple(settings.teachers)), missing, plan, bar)
    return writer.finish(_measured(runner.header, writer.notes()))


def _in_processes(settings: CacheSettings, missing: list[int], plan: list[list[int]], bar: tqdm) -> None:
    jobs = min(settings.jobs, len(missing))
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start, initargs=(jobs,)) as pool:
        shards = {pool.submit(_write_shard, settings, number): number for number in missing}
        try:
            for finished in as_completed(shards):
                finished.result()
                bar.update(len(plan[shards[finished]]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start(jobs: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))


@lru_cache(maxsize=1)
def _runner(settings: CacheSettings) -> tuple["Runner", TargetWriter]:
    teachers = [open_teacher(str(source)) for source in settings.teachers]
    entries = usable_utterances(replace(settings, progress=False))
    runner = Runner(settings, teachers, entries, shard_plan(entries))
    return runner, TargetWriter(settings.output, runner.header, len(runner.plan))


def _write_shard(settings: CacheSettings, number: int) -> None:
    runner, writer = _runner(settings)
    runner.write(writer, number)


def usable_utterances(settings: CacheSettings) -> list[dict[str, Any]]:
    """Return a manifest's entries whose audio can be read, with or without text, each id once.

    Raises:
        ValueError: no usable entry, or two different utterances with one id.
    """
    loader = replace(TOOLS, lhotse=False)  # a line is used whatever its _skipme
    screening = screen_manifest(settings.manifest, loader=loader, unlabelled=True, progress=settings.progress)
    kept = [entry for entry in screening.dropped if entry["reason"] in HEARD_ALL_THE_SAME]
    faulty = [entry for entry in screening.dropped if entry["reason"] not in HEARD_ALL_THE_SAME]
    if faulty:
        names = listed([name_of(entry) for entry in faulty])
        logger.warning("%s: %d utterances have no targets: %s", settings.manifest, len(faulty), names)
    entries, by_id = [], {}
    for entry in [*screening.usable, *kept]:
        audio = tuple(entry.get(key) for key in ("audio_filepath", "offset", "duration", "channel"))
        if (known := by_id.setdefault(entry_id(entry), audio)) != audio:
            raise ValueError(
                f"{settings.manifest}: two utterances have the id {entry_id(entry)!r} ({known[0]}, {audio[0]}): give "
                "every line an id of its own"
            )
        if audio is known:
            entries.append(entry)
    if not entries:
        raise ValueError(f"{settings.manifest} has no usable utterance")
    return entries


def shard_plan(entries: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Return the places of the entries of each shard; the same entries always give the same plan."""
    seconds = sum(entry["duration"] for entry in entries)
    count = int(np.clip(np.ceil(seconds / SHARD_SECONDS), min(FEWEST_SHARDS, len(entries)), MOST_SHARDS))
    parts = np.array_split(np.arange(len(entries)), count)
    return [sorted(part.tolist(), key=lambda place: entries[place]["duration"]) for part in parts]


def _measured(header: TargetHeader, notes: Sequence[dict[str, Any]]) -> list[TeacherRecord]:
    """Return the teachers' records with their word error rates, where measured, and mean weights."""
    utterances = sum(note["utterances"] for note in notes)
    shares = np.sum([note["shares"] for note in notes], axis=0) / utterances
    words, errors = sum(note["words"] for note in notes), np.sum([note["errors"] for note in notes], axis=0)
    rates = [float(count / words) if words else None for count in errors]
    return [
        replace(teacher, wer=rate, share=float(share))
        for teacher, rate, share in zip(header.teachers, rates, shares, strict=True)
    ]


@dataclass
class Runner:
    """Teachers, and the utterances that they make targets of.

    Args:
        settings: see `CacheSettings`. teachers: opened.
        entries: utterances. plan: places of the entries of each shard.

    Raises:
        ValueError: teachers that cannot make such targets, or not together.
    """

    settings: CacheSettings
    teachers: list[TargetTeacher]
    entries: list[dict[str, Any]]
    plan: list[list[int]]
    header: TargetHeader = field(init=False)
    groups: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._check_teachers()
        frames = [teacher.stride * teacher.feature_seconds for teacher in self.teachers]
        slowest = max(frames) * self.settings.group
        self.groups = [_whole_ratio(slowest, each, self.teachers[k].name) for k, each in enumerate(frames)]
        self.header = self._header(slowest)
        needs_wer = self.settings.combine != "mean" or self.settings.measure_wer
        self.measures = needs_wer or (self.settings.at == "ctc" and self.settings.kind == "top_k")
        if self.settings.combine != "mean":
            silent = [entry_id(entry) for entry in self.entries if not (entry.get("text") or "").split()]
            if silent:
                raise ValueError(
                    f"`combine` is {self.settings.combine} but {len(silent)} utterances have no transcript "
                    f"({listed(silent)}): word errors need one. Set it to mean, or leave these lines out"
                )

    def write(self, writer: TargetWriter, number: int, progress: Any = lambda count: None) -> None:
        """Run the teachers over one shard and write it.

        Args:
            writer: of the folder. number: of the shard. progress: called with the number of new utterances.
        """
        count = len(self.teachers)
        notes = {"utterances": 0, "words": 0, "errors": [0] * count, "shares": [0.0] * count}
        utterances = []
        for batch, signals in self._batches(self.plan[number]):
            made, of_batch = self.targets(batch, signals)
            utterances += made
            for key, value in of_batch.items():
                notes[key] = (np.asarray(notes[key]) + value).tolist()
            progress(len(batch))
        writer.write(number, utterances, notes)

    def _batches(self, places: Sequence[int]) -> Iterator[tuple[list[dict[str, Any]], dict[int, list[torch.Tensor]]]]:
        """Yield entries of batches with their signals by sample rate, read in the background."""
        size = self.settings.batch_size
        batches = [[self.entries[place] for place in places[i : i + size]] for i in range(0, len(places), size)]
        rates = sorted({teacher.sample_rate for teacher in self.teachers})
        with ThreadPoolExecutor(1) as reader:
            waiting = [reader.submit(_read, batch, rates) for batch in batches[:2]]
            for number, batch in enumerate(batches):
                signals = waiting.pop(0).result()
                if number + 2 < len(batches):
                    waiting.append(reader.submit(_read, batches[number + 2], rates))
                yield batch, signals

    @torch.inference_mode()
    def targets(
        self, batch: Sequence[dict[str, Any]], signals: dict[int, list[torch.Tensor]]
    ) -> tuple[list[Utterance], dict[str, Any]]:
        """Return the targets of a batch, and its counts: utterances, words, errors and shares of each teacher."""
        encoded = []
        for teacher in self.teachers:
            rows = signals[teacher.sample_rate]
            lengths = torch.tensor([len(row) for row in rows])
            device = next(teacher.encoder.parameters()).device
            encoded.append(teacher.encode(pad_sequence(rows, batch_first=True).to(device), lengths.to(device)))
        weights, counts = self._weights(batch, encoded)
        if self.settings.kind == "encoder":
            output, lengths = encoded[0]
            rows = output.transpose(1, 2).float().cpu().numpy()  # [B, T, D]
            frames = [row[:length].copy() for row, length in zip(rows, lengths.tolist(), strict=True)]
        else:
            frames = self._top_k(batch, encoded, weights)
        names = [(entry_id(entry), id_key(audio_id(entry))) for entry in batch]
        prints = [_fingerprint(entry["audio_filepath"]) for entry in batch]
        made = [
            Utterance(name, rows, path, mark) for (name, path), rows, mark in zip(names, frames, prints, strict=True)
        ]
        return made, counts

    def _top_k(self, batch: Sequence[dict[str, Any]], encoded: list[Any], weights: torch.Tensor) -> list[np.ndarray]:
        settings, header = self.settings, self.header
        texts = [entry.get("text") or "" for entry in batch] if settings.prior == "mean_prediction" else None
        logits = [
            teacher.logits(*each, settings.at, texts) for teacher, each in zip(self.teachers, encoded, strict=True)
        ]
        lengths = [length for _, length in encoded]
        probabilities, length = mixture(
            logits, lengths, self.groups, weights.to(logits[0].device), settings.temperature
        )
        values, ids = probabilities.topk(header.k, dim=-1)  # [B, T, k]
        values, ids = values.float().cpu().numpy(), ids.cpu().numpy()
        frames = []
        for row in range(len(batch)):
            stored = np.zeros(int(length[row]), header.frame_type)
            stored["ids"], stored["probabilities"] = ids[row, : len(stored)], values[row, : len(stored)]
            frames.append(stored)
        return frames

    def _weights(self, batch: Sequence[dict[str, Any]], encoded: list[Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the weights [B, K] of the teachers, and counts of the batch."""
        count, references = len(self.teachers), [entry.get("text") or "" for entry in batch]
        errors = np.zeros((len(batch), count), dtype=np.int64)
        words = [len(text.split()) for text in references] if self.measures else [0] * len(batch)
        if self.measures:
            for k, (teacher, each) in enumerate(zip(self.teachers, encoded, strict=True)):
                texts = teacher.texts(*each, self.settings.at)
                pairs = zip(references_for(teacher.model, references), texts, strict=True)
                errors[:, k] = [word_errors(*pair).errors if pair[0] else 0 for pair in pairs]
        rates = errors / np.maximum(words, 1)[:, None]
        weights = np.stack([mixture_weights(rates[b], self.settings.combine) for b in range(len(batch))])
        shares = {"utterances": len(batch), "words": sum(words), "errors": errors.sum(0), "shares": weights.sum(0)}
        return torch.from_numpy(weights), shares

    def _check_teachers(self) -> None:
        settings, first = self.settings, self.teachers[0]
        for teacher in self.teachers if settings.kind == "top_k" else ():
            if settings.at == "ctc" and teacher.ctc_head is None:
                raise ValueError(f"`at` is ctc but {teacher.name} has no CTC head: give a CTC or hybrid model")
            if settings.at == "encoder" and teacher.networks is None:
                raise ValueError(
                    f"`at` is encoder but {teacher.name} is not an RNN-T: set `at` to ctc, or `keep` to encoder"
                )
            if teacher.pieces != first.pieces:
                raise ValueError(
                    f"{teacher.name} has another tokenizer than {first.name}: classes can be mixed only where they "
                    "are the same word pieces in the same order"
                )
        head = first.ctc_head if settings.at == "ctc" else first.networks
        if settings.measure_wer and head is None:
            raise ValueError(f"`measure_wer` needs a model that transcribes, {first.name} is an encoder alone")

    def _header(self, frame_seconds: float) -> TargetHeader:
        settings, first = self.settings, self.teachers[0]
        classes, count = len(first.pieces) + 1 if first.pieces else 0, settings.keep.partition("=")[2]
        k = classes if count == "all" else int(count or 0)
        if settings.kind == "top_k" and k > classes:
            raise ValueError(
                f"`keep` is top_k={k} but there are {classes} classes, blank included: give at most these"
            )
        of_kind: dict[str, Any] = {"k": k, "temperature": float(settings.temperature), "prior": settings.prior}
        if settings.kind == "encoder":
            layers = getattr(first.encoder, "layers", None)
            of_kind = {"width": first.width, "layers": len(layers) if layers is not None else None}
        return TargetHeader(
            kind=settings.kind,
            at=settings.at,
            dtype=settings.dtype,
            frame_seconds=frame_seconds,
            feature_seconds=first.feature_seconds,
            manifest=hashlib.sha256(Path(settings.manifest).read_bytes()).hexdigest(),
            teachers=tuple(_record(teacher, settings) for teacher in self.teachers),
            classes=classes,
            combine=settings.combine,
            tokenizer=pieces_sha256(first.pieces),
            **of_kind,
        )


def _record(teacher: TargetTeacher, settings: CacheSettings) -> TeacherRecord:
    """Return a teacher's record, with the checksum of the networks that its targets depend on."""
    networks = [teacher.encoder]
    if settings.kind == "top_k":
        networks += [teacher.ctc_head] if settings.at == "ctc" else [teacher.networks.decoder, teacher.networks.joint]
    return TeacherRecord(teacher.name, weights_sha256(*networks), pieces_sha256(teacher.pieces))


def _whole_ratio(slow: float, fast: float, name: str) -> int:
    ratio = slow / fast
    if abs(ratio - round(ratio)) > RATE_TOLERANCE:
        raise ValueError(
            f"{name} makes a frame each {1000 * fast:g} ms, which does not divide the target's {1000 * slow:g} ms: "
            "mix teachers whose frame rates are whole multiples of each other"
        )
    return round(ratio)


def _read(batch: Sequence[dict[str, Any]], rates: Sequence[int]) -> dict[int, list[torch.Tensor]]:
    """Read the utterances' signals at each sample rate, as NeMo's loader reads them."""
    return {rate: [_signal(entry, rate) for entry in batch] for rate in rates}


def _signal(entry: dict[str, Any], rate: int) -> torch.Tensor:
    place = {"offset": entry.get("offset") or 0, "duration": entry["duration"]}
    place["channel_selector"] = channel_selector(entry)
    segment = AudioSegment.from_file(entry["audio_filepath"], target_sr=rate, **place)
    return torch.from_numpy(segment.samples)


@lru_cache(maxsize=1024)
def _fingerprint(path: str) -> int:
    return file_fingerprint(path)
