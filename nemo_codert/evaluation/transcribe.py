"""A stock model on the utterances of a manifest: texts, word errors and speed, by NeMo's `transcribe`.

May import models; nothing but scripts imports this.
"""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nemo.collections.asr.models import ASRModel
from nemo.collections.asr.parts.utils.rnnt_utils import Hypothesis
from omegaconf import DictConfig, OmegaConf

from nemo_codert.config.tdt import is_tdt
from nemo_codert.data.audio_files import decodes, mono_entries, read_mono
from nemo_codert.data.corpora.corpus import resample
from nemo_codert.data.manifest import read_manifest, write_manifest
from nemo_codert.data.normalisation import normalised, normaliser
from nemo_codert.data.screening import TOOLS, Loader, Reason, screen_manifest
from nemo_codert.evaluation.long_audio import refuse_without_memory
from nemo_codert.evaluation.word_errors import UNITS, WER, WordErrors, metric_of, total_word_errors

DECODINGS = ("greedy", "greedy_batch", "beam", "tsd", "alsd", "maes", "maes_batch", "malsd_batch")
TDT_DECODINGS = ("greedy", "greedy_batch", "beam", "maes", "malsd_batch")  # those that NeMo has for durations
MAX_SYMBOLS = 10  # NeMo's default
MAES_STEPS = 4  # expansions a frame; NeMo's default of 2 cuts words off
REPORTED_UTTERANCES = 10
WARM_UP_SECONDS = 60
# Faults that matter in training only.
RECOGNISED_ALL_THE_SAME = (Reason.EMPTY_TEXT, Reason.SILENT, Reason.CONTRADICTION)


@dataclass(frozen=True)
class Evaluation:
    """Outcome of transcribing one manifest.

    Args:
        manifest: its path.
        predictions: its entries with `pred_text` added. `text` is the reference as it is counted; where the manifest
            has another form of it, that is kept as `text_given`.
        errors: word errors, summed; of a `metric` CER those of characters.
        audio_seconds: seconds of audio.
        wall_seconds: seconds of transcribing.
        metric: `WER` or `CER`.
    """

    manifest: str
    predictions: list[dict[str, Any]]
    errors: WordErrors
    audio_seconds: float
    wall_seconds: float
    metric: str = WER

    @classmethod
    def of(
        cls, model: ASRModel, manifest: str, entries: list[dict[str, Any]], texts: list[str], wall_seconds: float
    ) -> "Evaluation":
        """Return the outcome for entries and their transcripts, counted as the model's validation counts.

        Args:
            model: gives tokenizer and metric. manifest, wall_seconds: see above.
            entries, texts: of the same utterances, in the same order.
        """
        metric, given = metric_of(model.cfg), [entry["text"] for entry in entries]
        references = references_for(model, given)
        lines = []
        for entry, reference, text in zip(entries, references, texts, strict=True):
            other = {} if entry["text"] == reference else {"text_given": entry["text"]}
            lines.append({**entry, "text": reference, **other, "pred_text": text})
        errors = total_word_errors(references, texts, metric)
        return cls(manifest, lines, errors, sum(entry["duration"] for entry in entries), wall_seconds, metric)

    @property
    def unit(self) -> str:
        """Name of what is counted: words or characters."""
        return UNITS[self.metric]

    @property
    def real_time_factor(self) -> float:
        """Seconds of a whole `transcribe` call (files read, features, encoder, decoding) per second of audio."""
        return self.wall_seconds / self.audio_seconds


def references_for(model: ASRModel, texts: list[str]) -> list[str]:
    """Return reference texts in the form in which a model writes: normalised by its tokenizer.

    Args:
        model: any model of NeMo's speech recognition. texts: the references.
    """
    return normalised(texts, normaliser(getattr(model, "tokenizer", None)))


def usable_entries(
    manifest: str | Path, sample_rate: int | None = None, *, loader: Loader = TOOLS, text_field: str = "text"
) -> list[dict[str, Any]]:
    """Return all entries of a test manifest, in order. An empty transcript is kept: each recognised word is an error.

    Args:
        sample_rate: the model's, in Hz; audio below it is counted in a warning.
        loader: of `tools_loader`; a channel that it selects is put into the entries as `channel`.
        text_field: key of the transcript.

    Raises:
        ValueError: a missing, empty or malformed manifest, or audio that is missing or unusable.
    """
    entries = read_manifest(manifest, text_field=text_field)
    how = {"sample_rate": sample_rate, "loader": loader, "text_field": text_field, "progress": False}
    screening = screen_manifest(manifest, **how)
    faults = [entry for entry in screening.dropped if entry["reason"] not in RECOGNISED_ALL_THE_SAME]
    if faults:
        raise ValueError(_refusal(f"{manifest}: {len(faults)} utterances cannot be evaluated", faults))
    if loader.channel == "channel":
        return entries
    return [{**entry, "channel": loader.channel_of(entry)} for entry in entries]


def read_signal(entry: dict[str, Any], sample_rate: int) -> np.ndarray:
    """Read [S] float32 of a manifest's entry at `sample_rate`, as `nemo_codert.data.audio_files.read_mono` does."""
    return np.ascontiguousarray(resample(*read_mono(entry), sample_rate))


def nemo_texts(model: ASRModel, signals: Sequence[np.ndarray]) -> list[str]:
    """Transcribe by NeMo's `transcribe`, with the decoding that the model is set to."""
    return [hypothesis.text for hypothesis in model.transcribe(list(signals), batch_size=16, verbose=False)]


def set_decoding(model: ASRModel, strategy: str) -> None:
    """Change a model's decoding strategy and keep its other decoding settings (beam size, symbols a frame, ...).

    Confidence, which NeMo has for greedy decoding only, is switched off for the others, `maes` gets MAES_STEPS steps,
    and one best text is returned.

    Raises:
        ValueError: unknown strategy, or one that the model's kind does not have.
    """
    kind, known = ("RNN-T", DECODINGS) if hasattr(model, "joint") else ("CTC", DECODINGS[:2])
    if is_tdt(model.cfg):
        kind, known = "TDT", TDT_DECODINGS
    if strategy not in known:
        raise ValueError(f"decoding is {strategy!r}, wanted one of {', '.join(known)} for a {kind} model")
    settings = OmegaConf.to_container(model.cfg.decoding, resolve=True)
    settings["strategy"] = strategy
    if not strategy.startswith("greedy"):
        settings.pop("confidence_cfg", None)
        settings.setdefault("greedy", {})["preserve_frame_confidence"] = False
        beam = settings.setdefault("beam", {})
        beam["return_best_hypothesis"] = True
        beam["maes_num_steps"] = max(beam.get("maes_num_steps", MAES_STEPS), MAES_STEPS)
    model.change_decoding_strategy(OmegaConf.create(settings), verbose=False)


def max_symbols(decoding: DictConfig) -> int:
    """Return the maximum of word pieces a frame in greedy decoding: the decoding block's, or NeMo's default."""
    return (decoding.get("greedy") or {}).get("max_symbols") or MAX_SYMBOLS


def evaluate(model: ASRModel, manifest: str | Path, *, batch_size: int = 16, **reading: Any) -> Evaluation:
    """Transcribe a manifest with a stock model's own `transcribe`; its shortest utterance first, as a warm-up.

    `transcribe` reseeds every random generator: never call this inside a run that is to be reproduced.

    Args:
        model: a stock model; `nemo_codert.models.open_model` opens one from a file.
        manifest: NeMo manifest with transcripts.
        batch_size: utterances transcribed at a time.
        reading: `loader` and `text_field`, see `usable_entries`.

    Returns:
        Transcripts, word errors and times.

    Raises:
        ValueError: see `usable_entries`; also audio that breaks off, or needs more memory than there is.
    """
    entries = usable_entries(manifest, model.cfg.preprocessor.sample_rate, **reading)
    transcribed_texts(model, [warm_up(entries)], batch_size)
    start = time.perf_counter()
    texts = transcribed_texts(model, entries, batch_size)
    return Evaluation.of(model, str(manifest), entries, texts, time.perf_counter() - start)


def warm_up(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the utterance that is transcribed before the clock starts: the shortest one, or a minute of it."""
    shortest = min(entries, key=lambda entry: entry["duration"])
    return {**shortest, "duration": min(shortest["duration"], WARM_UP_SECONDS)}


def transcribed_texts(model: ASRModel, entries: list[dict[str, Any]], batch_size: int) -> list[str]:
    """Return the texts of `transcribed`."""
    return [hypothesis.text for hypothesis in transcribed(model, entries, batch_size)]


def transcribed(
    model: ASRModel, entries: list[dict[str, Any]], batch_size: int, *, whole: bool = False
) -> list[Hypothesis]:
    """Transcribe the utterances of manifest entries by a stock model, in order.

    Args:
        whole: return all of NeMo's hypotheses, confidences included, not the texts alone.

    Raises:
        ValueError: audio that breaks off, or needs more memory than there is.
    """
    refuse_without_memory(model.cfg.encoder, model.cfg.preprocessor, entries, batch_size, model.device)
    keys = ("audio_filepath", "duration", "offset")
    with tempfile.TemporaryDirectory(prefix="nemo_codert_evaluate_") as folder:
        mono = mono_entries(entries, Path(folder))
        # References and foreign keys are left out: NeMo's loader would tokenize references and may fail on such keys.
        lines = [{**{key: entry[key] for key in keys if entry.get(key) is not None}, "text": ""} for entry in mono]
        manifest = write_manifest(Path(folder) / "manifest.json", lines)
        try:
            with _without_warnings():
                options = {"batch_size": batch_size, "return_hypotheses": whole, "verbose": False}
                hypotheses = model.transcribe([str(manifest)], **options) or []
        except Exception as error:  # any error of a batch of nothing but broken audio
            if broken := _broken(entries):
                raise ValueError(_refusal(f"{len(broken)} utterances could not be read", broken)) from error
            raise
    if len(hypotheses) != len(entries):  # NeMo's loader leaves out audio that it cannot decode
        raise ValueError(_refusal(f"{len(entries) - len(hypotheses)} utterances could not be read", _broken(entries)))
    return hypotheses


def _broken(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**entry, "reason": Reason.BREAKS_OFF} for entry in entries if not decodes(entry["audio_filepath"])]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence warnings in `transcribe`, which resets NeMo's log level; its loader warns of NeMo's own settings."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def _refusal(count: str, faults: list[dict[str, Any]]) -> str:
    shown = [f"  - {entry['audio_filepath']}: {entry['reason']}" for entry in faults[:REPORTED_UTTERANCES]]
    if len(faults) > len(shown):
        shown.append(f"  ... and {len(faults) - len(shown)} more")
    return "\n".join([f"{count}. Mend or remove these lines:", *shown])


def write_predictions(path: str | Path, evaluations: list[Evaluation], about: dict[str, Any]) -> tuple[Path, Path]:
    """Write predictions as JSON lines to `path`, and `<name>_summary.json` beside it; both whole or not at all.

    Each line is the manifest's with `pred_text` added, and with `manifest` where there are several.

    Args:
        about: entries of the summary on the model, besides the figures of every manifest.
    """
    path = Path(path)
    several = len(evaluations) > 1
    lines = [
        {**line, "manifest": evaluation.manifest} if several else line
        for evaluation in evaluations
        for line in evaluation.predictions
    ]
    summary = {**about, "sets": [_figures(evaluation) for evaluation in evaluations]}
    summary = json.loads(json.dumps(summary))  # plain types, or an error before anything is written
    summary_path = path.with_name(f"{path.stem}_summary.json")
    return write_manifest(path, lines), write_manifest(summary_path, [summary])


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    errors = evaluation.errors
    return {
        "manifest": evaluation.manifest,
        "utterances": len(evaluation.predictions),
        "metric": evaluation.metric,
        evaluation.unit: errors.words,
        "substitutions": errors.substitutions,
        "insertions": errors.insertions,
        "deletions": errors.deletions,
        evaluation.metric.lower(): errors.wer if errors.words else None,  # JSON has no infinity
        "audio_seconds": round(evaluation.audio_seconds, 3),
        "wall_seconds": round(evaluation.wall_seconds, 3),
        "real_time_factor": round(evaluation.real_time_factor, 6),
    }
