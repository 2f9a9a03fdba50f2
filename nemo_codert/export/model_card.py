"""A model card in the form that model hubs read: YAML front matter, then text. Missing facts are given as unknown.

Does not import NeMo; results come from the files that `codert evaluate` and `codert train` write.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from nemo_codert.config.tdt import is_tdt
from nemo_codert.data.manifest import read_manifest
from nemo_codert.evaluation.bootstrap import CONFIDENCE, RESAMPLES, error_rate_interval
from nemo_codert.evaluation.word_errors import CER, UNITS, WER, metric_of, total_word_errors, word_errors
from nemo_codert.export.training_record import DataRecord, TrainingRecord, package_versions

UNKNOWN = "unknown"
TASK = {"type": "automatic-speech-recognition", "name": "Automatic Speech Recognition"}
TAGS = ["automatic-speech-recognition", "speech", "NeMo", "transducer"]
STRATEGIES = {
    "student": "trained alone",
    "teacher": "trained alone",
    "tandem": "beside a teacher, nothing shared",
    "tandem_kd": "beside a teacher, whose encoder logits it learnt from",
    "shared": "beside a teacher, with one prediction network",
    "shared_kd": "beside a teacher, with one prediction network, learning from the teacher's encoder logits",
    "static": "from the encoder logits of a frozen teacher",
    "static_shared": "from the encoder logits of a frozen teacher, with the teacher's prediction network",
    "ema": "from an average of its own weights",
    "two_views": "from itself, on audio without the masks of its own copy",
}
HEADINGS = {WER: "Word error rate", CER: "Character error rate"}
OWN_TERMS = ("ema", "two_views")  # strategies whose words hold whatever their terms are


@dataclass(frozen=True)
class Result:
    """Error rate on one set, 0.0 and up; low, high: the interval, None without the utterances.

    metric: `WER`, or `CER`, whose `words` are characters.
    """

    name: str
    utterances: int
    words: int
    wer: float
    low: float | None = None
    high: float | None = None
    decoding: str | None = None
    metric: str = WER


@dataclass(frozen=True)
class CardOptions:
    """Facts that only the author of a model can give.

    language: ISO codes. datasets: names at a hub. repository: `ORG/NAME`, where the hub has the model itself.
    """

    license: str = UNKNOWN
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    repository: str | None = None


NOTHING_STATED = CardOptions()


def read_error_rates(path: str | Path, *, branch: str, parameters: int, metric: str = WER) -> list[Result]:
    """Read error rates per set from predictions or a summary; with an interval if the predictions are there.

    Args:
        branch, parameters: those of the card's model.
        metric: `WER` or `CER`, what predictions without a summary are counted in.

    Raises:
        ValueError: no such file, other contents, or results of another branch or model.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file. Give predictions or a summary that codert evaluate wrote")
    is_summary = path.stem.endswith("_summary")
    stem = path.stem.removesuffix("_summary")
    summary_path, predictions = path.with_name(f"{stem}_summary.json"), path.with_name(f"{stem}{path.suffix}")
    summary = _summary(summary_path) if summary_path.is_file() else {}
    for key, ours in (("branch", branch), ("parameters", parameters)):
        if summary.get(key, ours) != ours:
            raise ValueError(
                f"{path} is of another model: its {key} is {summary[key]!r}, this model's {ours!r}. Evaluate this one"
            )
    if is_summary and not predictions.is_file():
        results = [_summarised(each, summary.get("decoding")) for each in summary["sets"]]
        return [result for result in results if result.words]
    return _predicted_results(predictions, summary, _metric(summary["sets"][0]) if summary else metric)


def _metric(figures: dict[str, Any]) -> str:
    return figures.get("metric", WER)  # earlier versions counted words alone


def _summarised(figures: dict[str, Any], decoding: str | None) -> Result:
    metric = _metric(figures)
    name, words, rate = Path(figures["manifest"]).stem, figures[UNITS[metric]], figures[metric.lower()]
    return Result(name, figures["utterances"], words, rate, decoding=decoding, metric=metric)


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        for figures in summary["sets"]:
            _summarised(figures, None)
        return summary
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a summary that codert evaluate wrote. Evaluate the model") from error


def _predicted_results(path: Path, summary: dict[str, Any], metric: str) -> list[Result]:
    lines = read_manifest(path)
    if any("pred_text" not in line for line in lines):
        raise ValueError(f"{path} has no pred_text: give predictions that codert evaluate wrote")
    only = summary["sets"][0]["manifest"] if summary else str(path)
    sets: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        sets.setdefault(Path(line.get("manifest", only)).stem, []).append(line)
    decoding = summary.get("decoding")
    return [result for name, own in sets.items() if (result := _result(name, own, decoding, metric))]


def _result(name: str, lines: list[dict[str, Any]], decoding: str | None, metric: str) -> Result | None:
    errors = [word_errors(line["text"], line["pred_text"], metric) for line in lines]
    words = sum(each.words for each in errors)
    if not words:
        return None
    low, high = error_rate_interval([each.errors for each in errors], [each.words for each in errors])
    rate = total_word_errors((line["text"] for line in lines), (line["pred_text"] for line in lines), metric).wer
    return Result(name, len(lines), words, rate, low, high, decoding, metric)


def model_card(
    cfg: DictConfig,
    *,
    name: str,
    branch: str,
    parameters: int,
    record: TrainingRecord | None,
    results: Sequence[Result],
    options: CardOptions = NOTHING_STATED,
) -> str:
    """Return the card of a stock model.

    Args:
        cfg: the model's config.
        record: record of the training, None if there is none.
        name: the model's name.
        branch: `student` or `teacher`, of a pair or trained alone.
    """
    kind = "TDT" if is_tdt(cfg) else "RNN-T"
    front = yaml.safe_dump(_front_matter(name, kind, record, results, options), sort_keys=False, allow_unicode=True)
    text = "\n".join(
        [
            f"---\n{front}---\n\n# {name}\n",
            f"A transducer ({kind}) for NVIDIA NeMo, class `{_class_name(cfg)}`: {parameters:,} parameters, "
            f"{len(cfg.joint.vocabulary)} word pieces, audio at {cfg.preprocessor.sample_rate} Hz. "
            f"It is {_origin(branch, record)}.\n",
            *_usage(name, options.repository),
            *_training(record, options, metric_of(cfg)),
            *_error_rates(results, metric_of(cfg)),
            "## Licence\n",
            f"{_licence(options)}\n",
            "## Versions\n",
            f"Written with {_listed(package_versions())}.",
        ]
    )
    return text.replace("${", "$ {") + "\n"  # the card is stored in a config, where "${" starts a reference


def _class_name(cfg: DictConfig) -> str:
    """Return the class of a stock model, which may be a hybrid RNN-T/CTC."""
    return cfg.target.rsplit(".", 1)[-1]


def _front_matter(
    name: str, kind: str, record: TrainingRecord | None, results: Sequence[Result], options: CardOptions
) -> dict[str, Any]:
    distilled = record is not None and record.teacher is not None
    front: dict[str, Any] = {
        "license": options.license,
        "library_name": "nemo",
        "pipeline_tag": TASK["type"],
        "tags": [*TAGS, kind, *(["CoDERT", "knowledge-distillation"] if distilled else [])],
    }
    if options.language:
        front = {"language": list(options.language), **front}
    if options.datasets:
        front["datasets"] = list(options.datasets)
    if results:
        front["metrics"] = list(dict.fromkeys(result.metric.lower() for result in results))
        front["model-index"] = [{"name": name, "results": [_indexed(result) for result in results]}]
    return front


def _indexed(result: Result) -> dict[str, Any]:
    metric = {"type": result.metric.lower(), "value": round(100 * result.wer, 2), "name": f"{result.metric} (%)"}
    return {"task": dict(TASK), "dataset": {"name": result.name, "type": result.name}, "metrics": [metric]}


def _origin(branch: str, record: TrainingRecord | None) -> str:
    if record is None:
        return f"the {branch} of a run whose training is {UNKNOWN}"
    if record.teacher is None:
        return "a model trained alone with nemo_codert"
    return f"the {branch} of a CoDERT pair (arXiv:2106.07734), trained with nemo_codert"


def _usage(name: str, repository: str | None) -> list[str]:
    opened = f'from_pretrained("{repository}")' if repository else f'restore_from("{name}.nemo")'
    return [
        "## Use\n",
        "```python\nfrom nemo.collections.asr.models import ASRModel\n",
        f'ASRModel.{opened}.transcribe(["audio.wav"])\n```\n',
    ]


def _training(record: TrainingRecord | None, options: CardOptions, metric: str) -> list[str]:
    language = ", ".join(options.language) or UNKNOWN
    if record is None:
        lines = [f"- Strategy, teacher, data and updates: {UNKNOWN} (the file has no record of its training)"]
    else:
        name, _, terms = record.strategy.partition(" by ")
        meaning = STRATEGIES.get(name) if not terms or name in OWN_TERMS else None
        wer = UNKNOWN if record.best_val_wer is None else f"{record.best_val_wer:.2%}"
        lines = [
            f"- Strategy: `{record.strategy}`" + (f" ({meaning})" if meaning else ""),
            f"- Teacher: {record.teacher or 'none'}",
            f"- Training data: {_data(record.train)}",
            f"- Validation data: {_data(record.validation)}; {metric} of the chosen checkpoint: {wer}",
            f"- Updates: {_known(record.updates)}; seed: {_known(record.seed)}",
            *(f"- The {branch} started from: {source}" for branch, source in record.started_from.items()),
            f"- Trained with {_listed(record.versions)}",
        ]
    return ["## Training\n", *lines, f"- Language: {language}\n"]


def _known(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count:,}"


def _data(records: Sequence[DataRecord]) -> str:
    if not records:
        return UNKNOWN
    return ", ".join(
        f"`{each.manifest}` (hours {UNKNOWN})"
        if each.hours is None
        else f"`{each.manifest}` ({each.utterances:,} utterances, {each.hours:.2f} hours)"
        for each in records
    )


def _error_rates(results: Sequence[Result], metric: str) -> list[str]:
    """Return one section for each metric of the results; without results, for the model's metric."""
    if not results:
        return [
            f"## {HEADINGS[metric]}\n",
            f"{UNKNOWN.capitalize()}: this card was written without test results.\n",
        ]
    metrics = list(dict.fromkeys(each.metric for each in results))
    parts = [_rates_by(each, [result for result in results if result.metric == each]) for each in metrics]
    return [line for part in parts for line in part]


def _rates_by(metric: str, results: Sequence[Result]) -> list[str]:
    head = f"| set | utterances | {UNITS[metric]} | {metric} | interval | decoding |"
    lines = [head, "|---|---:|---:|---:|---:|---|"]
    for each in results:
        interval = UNKNOWN if each.low is None else f"{each.low:.1%} to {each.high:.1%}"
        lines.append(
            f"| {each.name} | {each.utterances:,} | {each.words:,} | {each.wer:.2%} | {interval} | "
            f"{each.decoding or UNKNOWN} |"
        )
    note = (
        f"Intervals: {CONFIDENCE:.0%}, {RESAMPLES:,} resamples of the utterances. They cover other utterances like "
        "these, not other speakers or trainings.\n"
    )
    return [f"## {HEADINGS[metric]}\n", *lines, "", note]


def _licence(options: CardOptions) -> str:
    if options.license == UNKNOWN:
        return f"{UNKNOWN.capitalize()}: none was stated when this card was written. Ask before you use the model."
    return options.license


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items()) or UNKNOWN
