"""Transcripts of a trained model as labels for audio without text, filtered by confidence and by a second model.

Gandhi et al., arXiv:2311.00430, train a small model on the transcripts of a large one and keep those that agree with a
reference; here a second model may stand in for the reference. Confidence is NeMo's own, Laptev and Ginsburg,
arXiv:2212.08703. Imports numpy, torch and NeMo when called, so that bad settings are refused first.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_codert.config.arguments import require_at_least, require_choice, require_file

if TYPE_CHECKING:
    from nemo.collections.asr.models import ASRModel

Entry = dict[str, Any]

EMPTY = "empty transcript of the model"
BATCHES = 4  # batches whose transcripts are written at a time: what a kill loses
CONFIDENCE = {
    "preserve_word_confidence": True,
    "exclude_blank": True,
    "aggregation": "mean",
    "method_cfg": {"name": "entropy", "entropy_type": "tsallis", "alpha": 0.33, "entropy_norm": "exp"},
}


@dataclass(frozen=True)
class PseudoLabelSettings:
    """Model, audio and filter of pseudo-labels.

    Args:
        model: `.nemo` or `.ckpt` of any CTC, RNN-T, TDT or hybrid model of NeMo's, or of a pair.
        manifest: the audio; transcripts in it are replaced.
        output: manifest of the labels that are kept; the other files are written beside it.
        branch: `student` or `teacher` of a pair.
        min_confidence: least mean confidence of the words, 0 to 1.
        agree_with: a second model; None: no agreement is wanted.
        max_disagreement: largest word error rate of the second model's transcript against the first one's.
        batch_size: utterances.
    """

    model: str | Path
    manifest: str | Path
    output: str | Path
    branch: str = "student"
    min_confidence: float = 0.0
    agree_with: str | Path | None = None
    max_disagreement: float = 0.1
    batch_size: int = 16

    def check(self) -> None:
        """Check all that can be known without opening a model.

        Raises:
            ValueError: a file that is missing, a number out of range, or the manifest itself as output.
        """
        require_file("model", self.model, "Give the path of a .nemo file")
        require_file("manifest", self.manifest, "Give the path of a manifest")
        if self.agree_with is not None:
            require_file("agree_with", self.agree_with, "Give the path of a .nemo file")
        require_choice("branch", self.branch, ("student", "teacher"))
        require_at_least("batch_size", self.batch_size, 1)
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ValueError(f"`min_confidence` is {self.min_confidence}, wanted a number from 0 to 1")
        if not 0.0 <= self.max_disagreement < math.inf:
            raise ValueError(f"`max_disagreement` is {self.max_disagreement}, wanted a word error rate, 0 or more")
        if Path(self.output).resolve() == Path(self.manifest).resolve():
            raise ValueError(f"`output` is `manifest` itself ({self.manifest}): give another name")


@dataclass(frozen=True)
class PseudoLabels:
    """Outcome of labelling one manifest.

    Args:
        kept: number of labels in the manifest that was written.
        dropped: number of utterances for each reason, most frequent first.
        hours: hours of audio that are kept.
        files: paths that were written, the manifest first.
    """

    kept: int
    dropped: dict[str, int]
    hours: float
    files: tuple[Path, ...]


def pseudo_label(settings: PseudoLabelSettings) -> PseudoLabels:
    """Transcribe a manifest and write the transcripts that pass the filter as a manifest to train on.

    A line of it is the given one with `text`, `confidence`, `source` (name and hash of the model's file) and, with a
    second model, `disagreement`. `NAME_dropped.json` has the other lines with a `reason`, `NAME_summary.json` the
    counts. All transcripts stay in `NAME_MODEL_HASH.jsonl`: a call that was killed is resumed from there, and
    another filter needs no further decoding.

    Args:
        settings: model, audio and filter.

    Returns:
        Counts and files.

    Raises:
        ValueError: settings, files or data that cannot be used.

    Example:
        >>> pseudo_label(PseudoLabelSettings("teacher.nemo", "audio.json", "labels.json"))  # no such model here
        Traceback (most recent call last):
        ...
        ValueError: `model` is teacher.nemo: no such file. Give the path of a .nemo file
    """
    settings.check()
    from nemo_codert.evaluation.word_errors import word_errors

    entries, unusable = _audio(settings.manifest)
    source, found = _transcripts(Path(settings.model), entries, settings)
    labels = [{**entry, **line, "source": source} for entry, line in zip(entries, found, strict=True)]
    if settings.agree_with is not None:
        _, others = _transcripts(Path(settings.agree_with), entries, settings)
        for label, other in zip(labels, others, strict=True):
            label["disagreement"] = round(min(word_errors(label["text"], other["text"]).wer, 1e6), 6)
    return _written(labels, unusable, settings)


def reason_to_drop(label: Entry, min_confidence: float, max_disagreement: float) -> str | None:
    """Return why a label does not pass the filter, None if it does.

    Example:
        >>> reason_to_drop({"text": "stop", "confidence": 0.5}, min_confidence=0.8, max_disagreement=0.1)
        'confidence below 0.8'
    """
    if not label["text"].strip():
        return EMPTY
    if label["confidence"] < min_confidence:
        return f"confidence below {min_confidence}"
    return f"disagreement above {max_disagreement}" if label.get("disagreement", 0.0) > max_disagreement else None


def _audio(manifest: str | Path) -> tuple[list[Entry], list[Entry]]:
    """Return the utterances of a manifest without their text, and those whose audio cannot be used."""
    from nemo_codert.data.screening import TOOLS, Reason, screen_manifest

    about_text = (Reason.EMPTY_TEXT, Reason.CONTRADICTION)  # faults of a text that is replaced here
    screening = screen_manifest(manifest, unlabelled=True, loader=TOOLS)
    entries = screening.usable + [entry for entry in screening.dropped if entry["reason"] in about_text]
    if not entries:
        raise ValueError(f"{manifest}: none of {screening.total} utterances can be transcribed")
    bare = [{key: value for key, value in entry.items() if key not in ("text", "reason")} for entry in entries]
    return bare, [entry for entry in screening.dropped if entry["reason"] not in about_text]


def _quartiles(labels: list[Entry]) -> list[float]:
    """Return the least confidence, the quartiles and the largest."""
    import numpy as np

    return np.percentile([label["confidence"] for label in labels], [0, 25, 50, 75, 100]).round(3).tolist()


def _written(labels: list[Entry], unusable: list[Entry], settings: PseudoLabelSettings) -> PseudoLabels:
    from nemo_codert.data.manifest import write_manifest
    from nemo_codert.data.screening import count_by

    output, kept, dropped = Path(settings.output), [], list(unusable)
    for label in labels:
        reason = reason_to_drop(label, settings.min_confidence, settings.max_disagreement)
        if reason is None:
            kept.append(label)
        else:
            dropped.append({**label, "reason": reason})
    counts, hours = count_by(dropped, "reason"), sum(label["duration"] for label in kept) / 3600
    options = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    confidences = _quartiles(labels)
    summary = {**options, "kept": len(kept), "hours": round(hours, 4), "dropped": counts, "confidences": confidences}
    if not kept:
        raise ValueError(
            f"{settings.manifest}: no label passes the filter ({counts}), confidences are {confidences}. Lower "
            "`min_confidence`"
        )
    files = (
        write_manifest(output, kept),
        write_manifest(output.with_name(f"{output.stem}_dropped.json"), dropped),
        write_manifest(output.with_name(f"{output.stem}_summary.json"), [summary]),
    )
    return PseudoLabels(len(kept), counts, hours, files)


def _transcripts(path: Path, entries: list[Entry], settings: PseudoLabelSettings) -> tuple[str, list[Entry]]:
    """Return name and hash of a model, and text and confidence of every entry; those on disk are not made again."""
    from nemo_codert.evaluation.long_audio import refuse_without_memory

    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    source = f"{path.name} sha256:{digest[:16]}"
    output = Path(settings.output)
    store = output.with_name(f"{output.stem}_{path.stem}_{digest[:8]}.jsonl")
    header = {"source": source, "branch": settings.branch, "audio": _hash_of_audio(entries)}
    found = _stored(store, header)[: len(entries)]
    if len(found) < len(entries):
        model = _transcriber(path, settings.branch)
        blocks = model.cfg.encoder, model.cfg.preprocessor
        refuse_without_memory(*blocks, entries, settings.batch_size, model.device)
        with open(store, "ab") as file:
            for lines in _in_chunks(model, entries, len(found), settings.batch_size):
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
                file.flush()
                os.fsync(file.fileno())
                found += lines
    return source, found


def _in_chunks(model: "ASRModel", entries: list[Entry], done: int, batch_size: int) -> Iterator[list[Entry]]:
    from tqdm.auto import tqdm

    from nemo_codert.evaluation.transcribe import transcribed

    with tqdm(total=len(entries), initial=done, desc="Transcribing", unit="utt", mininterval=1.0) as progress:
        for start in range(done, len(entries), BATCHES * batch_size):
            hypotheses = transcribed(model, entries[start : start + BATCHES * batch_size], batch_size, whole=True)
            yield [{"text": h.text, "confidence": _mean(h.word_confidence or ())} for h in hypotheses]
            progress.update(len(hypotheses))


def _mean(confidences: Sequence[Any]) -> float:
    """Return the mean of word confidences; 0 without a word."""
    return round(sum(map(float, confidences)) / len(confidences), 6) if len(confidences) else 0.0


def _stored(store: Path, header: Entry) -> list[Entry]:
    """Return the transcripts in a file; one of other audio or of another model, or no file, begins from scratch."""
    lines = store.read_bytes().split(b"\n")[:-1] if store.is_file() else []  # the last piece is empty or torn
    try:
        first, *found = [json.loads(line) for line in lines]
    except ValueError:  # no line at all, or one that is not JSON
        first, found = None, []
    if first != header:
        found, lines = [], [json.dumps(header).encode()]
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_bytes(b"".join(line + b"\n" for line in lines))
    return found


def _hash_of_audio(entries: list[Entry]) -> str:
    keys = ("audio_filepath", "offset", "duration")
    # Stores of earlier versions know no channel.
    named = [
        [*(entry.get(key) for key in keys), *([entry["channel"]] if "channel" in entry else [])] for entry in entries
    ]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _transcriber(path: Path, branch: str) -> "ASRModel":
    """Return a model, or a stock copy of a pair's branch, that decodes greedily with confidences."""
    import torch
    from omegaconf import OmegaConf

    from nemo_codert.config.model_kinds import TRANSCRIBED, is_pair
    from nemo_codert.models.open_model import open_model

    model = open_model(path, kinds=TRANSCRIBED)
    if is_pair(model.cfg):
        model = model.student_model() if branch == "student" else model.teacher_model()
    decoding = OmegaConf.to_container(model.cfg.decoding, resolve=True)
    decoding |= {"strategy": "greedy_batch", "confidence_cfg": CONFIDENCE}
    model.change_decoding_strategy(OmegaConf.create(decoding), verbose=False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
