"""Cost of stored targets: making them beside the teacher's encoder, a step with them beside the lone student's, size.

The models are those of `training_step`. Audio and targets are made up, in a temporary folder.
"""

# B batch, S samples, T encoder frames, U target tokens, V vocabulary without blank, k stored classes

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_codert.benchmark.measure import MeasureSettings, measure, paired_ratio
from nemo_codert.benchmark.table import CostRow, Finding
from nemo_codert.benchmark.training_step import (
    FRAME_SECONDS,
    SAMPLE_RATE,
    STOCK_TEACHER,
    WINDOW_STRIDE,
    StepSettings,
    make_step_batch,
    pair_config,
    pair_step,
    stock_model,
    stock_step,
)

K, PRIOR = 8, "mean_prediction"  # classes of a frame, and what is added to the encoder logits
BATCHES = 4  # batches of audio that are cached in one call
HOURS, UTTERANCE_SECONDS, CLASSES = 1000, 12.0, 1025  # sizes of the large folder of targets

ENCODER, CACHING = "teacher: features and encoder, no files", f"caching its top_k={K}, from files to files"
CACHING_PRIOR = "the same, with the mean prediction"
LONE, CACHED = "lone student step, additive joint", f"step with cached targets, top_k={K}"
OPENING = "opening the targets"
LEAST_SPEED, MOST_OF_LONE, MOST_GIGABYTES, MOST_SECONDS = 0.9, 1.10, 2.0, 5.0  # targets; the first two of the CPU


@dataclass(frozen=True)
class TargetCase:
    """One row, by name. See `measure.Case`. folder: gets the files that the row needs."""

    name: str
    settings: StepSettings
    folder: str
    device: str = "cpu"
    slow: bool = False  # no row has NeMo's loss

    def prepare(self) -> Callable[[], Any]:
        """Build models, audio and targets and return the call to time."""
        torch.manual_seed(0)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        rows = {
            ENCODER: _encoding,
            CACHING: partial(_caching, prior="none"),
            CACHING_PRIOR: partial(_caching, prior=PRIOR),
            LONE: _lone_step,
            CACHED: _cached_step,
            OPENING: _opening,
        }
        return rows[self.name](self.settings, self.device, folder)


def target_rows(
    settings: StepSettings, device: str, measuring: MeasureSettings
) -> tuple[list[CostRow], list[Finding]]:
    """Measure the rows in three groups, and the findings of each."""
    only_time = replace(measuring, memory=False)
    groups = (
        ((ENCODER, CACHING, CACHING_PRIOR), only_time, f"{BATCHES} batches of {settings}"),
        ((LONE, CACHED), measuring, str(settings)),
        ((OPENING,), only_time, f"{HOURS:,} hours of top_k={K}"),
    )
    sizes = {"batch": settings.batch, "tokens": settings.tokens, "vocabulary": settings.vocabulary}
    rows, found = [], {}
    with tempfile.TemporaryDirectory(prefix="nemo_codert_benchmark_") as folder:
        for names, how, setting in groups:
            cases = [TargetCase(name, settings, folder, device) for name in names]
            measured = measure(cases, how, f"stored targets: {setting}")
            found |= measured
            for name, result in measured.items():
                ratio = paired_ratio([result.seconds], [measured[names[0]].seconds])
                to = {"ratio": ratio, "ratio_to": names[0]} if len(names) > 1 else {}
                rows.append(CostRow("cache", setting, name, sizes, result.seconds, **to, memory=result.memory))
    seconds = {name: result.seconds for name, result in found.items()}
    speed, of_prior = (paired_ratio([seconds[ENCODER]], [seconds[name]]) for name in (CACHING, CACHING_PRIOR))
    step = paired_ratio([seconds[CACHED]], [seconds[LONE]])
    least, most = (None, None) if device == "cuda" else (LEAST_SPEED, MOST_OF_LONE)
    return rows, [
        Finding("speed of caching / speed of features and encoder", speed, at_least=least),
        Finding("speed of caching with the mean prediction / speed of features and encoder", of_prior),
        Finding(f"{CACHED} / {LONE}", step, at_most=most),
        Finding(f"GB of {HOURS:,} hours of top_k={K}", found[OPENING].first / 1e9, at_most=MOST_GIGABYTES),
        Finding("seconds to open them", float(np.median(seconds[OPENING])), at_most=MOST_SECONDS),
    ]


# ---- making targets ------------------------------------------------------------------------------------------------


def _encoding(settings: StepSettings, device: str, folder: Path) -> Callable[[], torch.Tensor]:
    """Return the teacher's features and encoder over batches that are in memory."""
    teacher = _teacher(settings, device)
    signal, signal_len = make_step_batch(settings, device)[:2]

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return torch.stack([teacher.encode(signal, signal_len)[0] for _ in range(BATCHES)])

    return run


def _caching(settings: StepSettings, device: str, folder: Path, prior: str) -> Callable[[], None]:
    """Return the making of one shard of targets from audio files, with a teacher that is open."""
    import soundfile

    from nemo_codert.data.target_writer import TargetWriter
    from nemo_codert.evaluation.target_caching import CacheSettings, Runner

    teacher, entries = _teacher(settings, device), []
    signal, _, transcript, _ = (part.numpy() for part in make_step_batch(settings, "cpu"))
    texts = [teacher.model.tokenizer.ids_to_text(row.tolist()) for row in transcript]
    for number in range(BATCHES * settings.batch):
        path = folder / f"{number}.wav"
        row = number % settings.batch
        soundfile.write(path, signal[row], SAMPLE_RATE)
        entries.append({"audio_filepath": str(path), "duration": settings.seconds, "text": texts[row]})
    manifest = folder / "manifest.json"
    manifest.write_text("made up\n")
    given = CacheSettings(("made up",), manifest, folder, keep=f"top_k={K}", prior=prior, batch_size=settings.batch)
    runner = Runner(given, [teacher], entries, [list(range(len(entries)))])

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            runner.write(TargetWriter(output, runner.header, 1), 0)

    return run


def _teacher(settings: StepSettings, device: str) -> Any:
    from nemo_codert.evaluation.target_teachers import as_teacher

    return as_teacher(stock_model(settings, STOCK_TEACHER).to(device).eval(), "made up")


# ---- training with targets -----------------------------------------------------------------------------------------


def _lone_step(settings: StepSettings, device: str, folder: Path) -> Callable[[], torch.Tensor]:
    """Return a step of NeMo's own class with the additive joint and its exact loss."""
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from nemo_codert.config.stock_checks import ADDITIVE_JOINT
    from nemo_codert.models import student_config

    cfg = student_config(pair_config(settings, ADDITIVE_JOINT, rnnt_loss="auto"))
    return stock_step(EncDecRNNTBPEModel(cfg).to(device).train(), make_step_batch(settings, device))


def _cached_step(settings: StepSettings, device: str, folder: Path) -> Callable[[], torch.Tensor]:
    """Return a step of a pair whose teacher is stored targets; each step reads them again."""
    from nemo_codert.config.stock_checks import ADDITIVE_JOINT
    from nemo_codert.models import EncDecCoDERTBPEModel

    names = [f"{number}.wav" for number in range(settings.batch)]
    _write_targets(folder, settings, names)
    cfg = pair_config(settings, ADDITIVE_JOINT, rnnt_loss="auto")
    cfg.codert.update(teacher="cached", teacher_cache=str(folder), share_decoder=False)
    cfg.codert.distillation = {"encoder": {"weight": 0.1, "prior": PRIOR}}
    return pair_step(EncDecCoDERTBPEModel(cfg).to(device).train(), (*make_step_batch(settings, device), names))


def _write_targets(folder: Path, settings: StepSettings, names: list[str]) -> None:
    from nemo_codert.data.target_cache import Utterance
    from nemo_codert.data.target_writer import TargetWriter

    generator, header = np.random.default_rng(0), _header(settings.vocabulary + 1)
    stored = np.zeros(_frames(settings.seconds), header.frame_type)
    classes = np.tile(np.arange(header.classes), (len(stored), 1))
    writer, made = TargetWriter(folder, header, 1), []
    for name in names:
        stored["ids"] = generator.permuted(classes, axis=1)[:, :K]
        stored["probabilities"] = generator.dirichlet(np.ones(K + 1), len(stored))[:, :K]
        made.append(Utterance(name, stored.copy()))
    writer.write(0, made)
    writer.finish()


def _header(classes: int) -> Any:
    from nemo_codert.data.target_header import TargetHeader

    of_kind = {"classes": classes, "k": K, "temperature": 1.0, "prior": PRIOR}
    return TargetHeader("top_k", "encoder", "float16", FRAME_SECONDS, WINDOW_STRIDE, "0" * 64, **of_kind)


def _frames(seconds: float) -> int:
    """Return the encoder's frames of an utterance."""
    return math.ceil((round(seconds / WINDOW_STRIDE) + 1) * WINDOW_STRIDE / FRAME_SECONDS)


# ---- the size of targets -------------------------------------------------------------------------------------------


def _opening(settings: StepSettings, device: str, folder: Path) -> Callable[[], int]:
    """Return the opening of a folder of `HOURS` hours of targets; its result is the folder's size in bytes."""
    from nemo_codert.data.target_cache import TargetCache

    write_empty_targets(folder, utterances=round(3600 * HOURS / UTTERANCE_SECONDS))

    def run() -> int:
        TargetCache(folder)
        return sum(path.stat().st_size for path in folder.iterdir())

    return run


def write_empty_targets(folder: Path, utterances: int) -> None:
    """Write a folder of targets of `utterances` of `UTTERANCE_SECONDS`, whose frames are holes in the files.

    Sizes, index and header are those of real targets; opening reads nothing else.
    """
    from nemo_codert.data.target_cache import ENTRY, INDEX, file_sha256, npy_prefix, shard_name
    from nemo_codert.data.target_header import HEADER, ShardRecord
    from nemo_codert.evaluation.target_caching import shard_plan

    plan = shard_plan([{"duration": UTTERANCE_SECONDS}] * utterances)
    header, frames, entries = _header(CLASSES), _frames(UTTERANCE_SECONDS), np.zeros(utterances, ENTRY)
    entries["key"] = np.arange(utterances, dtype=np.uint64) * np.uint64(2**63 // utterances)
    entries["frames"] = frames
    for number, places in enumerate(plan):
        entries["shard"][places], entries["start"][places] = number, frames * np.arange(len(places))
        prefix = npy_prefix(header.frame_type, frames * len(places))
        with open(folder / shard_name(number), "wb") as file:
            file.write(prefix)
            file.truncate(len(prefix) + frames * len(places) * header.frame_bytes)
    (folder / INDEX).write_bytes(npy_prefix(ENTRY, utterances) + entries.tobytes())
    header = replace(
        header,
        utterances=utterances,
        frames=frames * utterances,
        index_sha256=file_sha256(folder / INDEX),
        shards=tuple(ShardRecord(frames * len(places), "0" * 64) for places in plan),
    )
    (folder / HEADER).write_text(json.dumps(header.plain()) + "\n", encoding="utf-8")
