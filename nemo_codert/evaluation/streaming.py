"""A student in NeMo's streaming pipelines (`nemo.collections.asr.inference`): settings, checks, results.

NeMo's pipelines have no defaults, and where model and settings do not fit they fail late or compute something else;
such a combination is refused here first. May import models; nothing but scripts imports this.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo.collections.asr.inference.factory.pipeline_builder import PipelineBuilder
from nemo.collections.asr.inference.pipelines.base_pipeline import BasePipeline
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_codert.config.model_kinds import is_pair
from nemo_codert.config.tdt import is_tdt
from nemo_codert.data.audio_files import mono_entries
from nemo_codert.evaluation.transcribe import WARM_UP_SECONDS, Evaluation, max_symbols

DECODING = "greedy_batch"  # NeMo's other strategies keep no state between chunks
# Encoder settings of a cache-aware model.
CACHE_AWARE = {"att_context_style": "chunked_limited", "causal_downsampling": True, "conv_context_size": "causal"}
UNNORMALISED = (None, "NA", "None")


def pipeline_config(
    settings: Path, model: Path, model_cfg: DictConfig, *, device: str, own: Path | None = None, changes: Sequence[str]
) -> DictConfig:
    """Return the settings of a pipeline for a model: the project's file, or the user's, with the model's figures.

    Args:
        settings: conf/inference/*.yaml of the kind of pipeline; names every key that NeMo reads.
        model, model_cfg: the `.nemo` file and the config in it.
        device: `cpu` or `cuda`; ignored with `own`, which has a device.
        own: the user's file in place of `settings`.
        changes: `key=value`, which override all else.

    Raises:
        ValueError: keys that are missing or unknown, another kind of pipeline.
    """
    complete = OmegaConf.load(settings)
    cfg = _own_settings(own, complete) if own is not None else complete
    OmegaConf.set_struct(cfg, True)
    cfg.asr.model_name, cfg.streaming.sample_rate = str(model), model_cfg.preprocessor.sample_rate
    if own is None:
        cfg.asr.device = device
        cfg.asr.decoding.greedy.max_symbols = max_symbols(model_cfg.decoding)
    try:
        return OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(changes)))
    except OmegaConfBaseException as error:
        raise ValueError(
            f"--set {' '.join(changes)}: {str(error).splitlines()[0]}. The keys are those of {settings.name}"
        ) from error


def _own_settings(path: Path, complete: DictConfig) -> DictConfig:
    cfg = OmegaConf.load(path)
    missing = [key for key in _leaves(complete) if key not in _leaves(cfg)]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing. NeMo has no defaults: copy the shipped file")
    if cfg.pipeline_type != complete.pipeline_type:
        raise ValueError(f"{path}: pipeline_type is {cfg.pipeline_type!r}, wanted {complete.pipeline_type}")
    return cfg


def _leaves(cfg: DictConfig, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key in cfg:
        missing = OmegaConf.is_missing(cfg, key)
        keys += _leaves(cfg[key], f"{prefix}{key}.") if not missing and OmegaConf.is_dict(cfg[key]) else [prefix + key]
    return keys


def refuse_unfit(cfg: DictConfig, model_cfg: DictConfig) -> None:
    """Raise one ValueError that lists all settings with which a model cannot run, or would not run as trained."""
    problems = [*_model_problems(model_cfg), *_setting_problems(cfg, model_cfg)]
    if cfg.pipeline_type == "cache_aware":
        problems += [*_cache_problems(model_cfg), *_slot_problems(cfg)]
    else:
        problems += _buffer_problems(model_cfg)
    if problems:
        raise ValueError("this model cannot be streamed so:\n  - " + "\n  - ".join(problems))


def _model_problems(model_cfg: DictConfig) -> list[str]:
    if is_pair(model_cfg):
        return ["the file is a pair, of which NeMo would run the teacher: export a branch first (codert export)"]
    if "subsampling_factor" in model_cfg.encoder and model_cfg.encoder._target_.endswith(".RNNEncoder"):
        return ["encoder is an RNNEncoder, which NeMo's pipelines cannot run (it has no subsampling_factor)"]
    return []


def _setting_problems(cfg: DictConfig, model_cfg: DictConfig) -> list[str]:
    problems, strategy, rate = [], cfg.asr.decoding.strategy, model_cfg.preprocessor.sample_rate
    keeps_state = cfg.pipeline_type == "cache_aware" or cfg.streaming.get("stateful")
    if keeps_state and strategy != DECODING:
        problems.append(f"asr.decoding.strategy is {strategy!r}, wanted {DECODING}, which alone continues over chunks")
    if cfg.streaming.sample_rate != rate:
        problems.append(f"streaming.sample_rate is {cfg.streaming.sample_rate}, the model's is {rate} Hz")
    for key, least in (("batch_size", 1), ("chunk_size", 0.01), ("left_padding_size", 0), ("right_padding_size", 0)):
        value = cfg.streaming.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
            problems.append(f"streaming.{key} is {value!r}, wanted {least} or more")
    return problems


def _cache_problems(model_cfg: DictConfig) -> list[str]:
    encoder, normalize = model_cfg.encoder, model_cfg.preprocessor.get("normalize", "per_feature")
    differing = [(key, value) for key, value in CACHE_AWARE.items() if encoder.get(key) != value]
    wrong = [f"{key} {encoder.get(key)!r}, not {value!r}" for key, value in differing]
    problems = []
    if is_tdt(model_cfg):
        problems.append(
            "the model is a TDT model, which NeMo has in its buffered pipeline only: take --pipeline buffered"
        )
    if wrong:
        problems.append(
            f"encoder is not cache-aware ({'; '.join(wrong)}): train one that is, or take --pipeline buffered"
        )
    if normalize not in UNNORMALISED:
        problems.append(
            f"preprocessor.normalize is {normalize!r}, but this pipeline leaves features as they are, silently: "
            "train with NA, or take --pipeline buffered"
        )
    return problems


def _buffer_problems(model_cfg: DictConfig) -> list[str]:
    normalize = model_cfg.preprocessor.get("normalize", "per_feature")
    if normalize == "per_feature":
        return []
    other = "train with per_feature"
    if normalize in UNNORMALISED:
        other += ", or take --pipeline cache_aware where the encoder is cache-aware"
    return [
        f"preprocessor.normalize is {normalize!r}, but this pipeline normalises features per_feature whatever a model "
        f"was trained with, silently: {other}"
    ]


def _slot_problems(cfg: DictConfig) -> list[str]:
    slots, streams = cfg.streaming.num_slots, cfg.streaming.batch_size
    if isinstance(slots, int) and isinstance(streams, int) and slots >= streams:
        return []
    return [f"streaming.num_slots is {slots!r}, wanted streaming.batch_size ({streams!r}) or more"]


def build_pipeline(cfg: DictConfig) -> BasePipeline:
    """Build NeMo's pipeline; raises ValueError for anything that its builder refuses."""
    try:
        return PipelineBuilder.build_pipeline(cfg)
    except (OmegaConfBaseException, NotImplementedError, KeyError) as error:
        raise ValueError(f"NeMo cannot build this pipeline: {' '.join(str(error).split())}") from error


def stream(pipeline: BasePipeline, entries: list[dict[str, Any]], manifest: str) -> Evaluation:
    """Stream utterances into a pipeline at full speed; the shortest one first, as a warm-up, unless it is long.

    Args:
        entries: whole audio files; `text` is the reference.
        manifest: name of the result.

    Raises:
        ValueError: an utterance that is a part of a file, which NeMo would stream whole, or chunks too short for NeMo.
    """
    if parts := [entry["audio_filepath"] for entry in entries if entry.get("offset")]:
        raise ValueError(f"{parts[0]}: offset is set, but a pipeline plays whole files. Cut the audio first")
    with tempfile.TemporaryDirectory(prefix="nemo_codert_stream_") as folder:
        files = [entry["audio_filepath"] for entry in mono_entries(entries, Path(folder))]
        seconds, shortest = min((entry["duration"], file) for entry, file in zip(entries, files, strict=True))
        if seconds <= WARM_UP_SECONDS:
            _played(pipeline, [shortest])
        start = time.perf_counter()
        results = _played(pipeline, files)
        wall_seconds = time.perf_counter() - start
    texts = [" ".join(results[i]["text"].split()) for i in range(len(files))]
    return Evaluation.of(pipeline.asr_model.asr_model, manifest, entries, texts, wall_seconds)


def _played(pipeline: BasePipeline, files: list[str]) -> dict[int, dict[str, Any]]:
    try:
        return pipeline.run(files)
    except IndexError as error:  # NeMo's decoder reads past the few remaining frames of an utterance
        raise ValueError(
            f"NeMo's pipeline failed at these settings ({error}): make streaming.chunk_size and "
            "streaming.right_padding_size longer"
        ) from error
