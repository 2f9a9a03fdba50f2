"""Audio files through one of NeMo's streaming pipelines, in one call: `transcribe_streaming`.

Imports torch and NeMo when called, so that bad settings are refused first.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_codert.config.arguments import require_choice, require_file
from nemo_codert.config.shipped import conf_folder

if TYPE_CHECKING:
    from nemo_codert.evaluation.transcribe import Evaluation

PIPELINES = ("buffered", "cache_aware")


@dataclass(frozen=True)
class StreamSettings:
    """A model, a pipeline, and what to transcribe.

    Args:
        model: the `.nemo` file of a stock RNN-T, hybrid or TDT model.
        manifest: the utterances; without it `audio` is transcribed.
        audio: files, in place of a manifest.
        pipeline: `buffered` or `cache_aware`.
        changes: `KEY=VALUE`, changes of the pipeline's settings.
        config: a YAML in place of the shipped settings (`conf/inference/*_rnnt.yaml`).
        output: file of the predictions; `NAME_summary.json` is written beside it. None: nothing is written.
    """

    model: str | Path
    manifest: str | Path | None = None
    audio: Sequence[str | Path] = ()
    pipeline: str = "buffered"
    changes: Sequence[str] = ()
    config: str | Path | None = None
    output: str | Path | None = None

    def check(self) -> None:
        """Check all that can be known without opening the model.

        Raises:
            ValueError: a file that is missing, an output that would replace the manifest, a change without a value.
        """
        if bool(self.audio) == (self.manifest is not None):
            raise ValueError("give either `manifest` or `audio` (one file or more)")
        for name in ("model", "manifest", "config"):
            require_file(name, getattr(self, name))
        require_choice("pipeline", self.pipeline, PIPELINES)
        output = None if self.output is None else Path(self.output)
        if output is not None and output.is_dir():
            raise ValueError(f"`output` is {output}: that is a folder, give a file name")
        if output is not None and self.manifest is not None:
            if output.resolve() == Path(self.manifest).resolve():
                raise ValueError(f"`output` is `manifest` itself ({self.manifest}): give another name")
        for change in self.changes:
            if "=" not in change:
                raise ValueError(f"`set` {change}: wanted KEY=VALUE, such as streaming.chunk_size=0.8")


@dataclass(frozen=True)
class Streamed:
    """Texts, word errors and speed of a pipeline, and the files that were written."""

    evaluation: "Evaluation"
    files: tuple[Path, ...] = ()


def transcribe_streaming(settings: StreamSettings) -> Streamed:
    """Transcribe audio as a stream, in one of NeMo's pipelines, on the GPU if there is one.

    Args:
        settings: model, pipeline and audio.

    Returns:
        The evaluation (without a reference text, with no word to count), and the files written.

    Raises:
        ValueError: settings, files or data that cannot be used, or a model that the pipeline cannot run.
    """
    settings.check()
    import torch
    from omegaconf import OmegaConf

    from nemo_codert.evaluation.streaming import build_pipeline, pipeline_config, refuse_unfit, stream
    from nemo_codert.evaluation.transcribe import write_predictions
    from nemo_codert.models.open_model import restored_config

    model = Path(settings.model)
    model_cfg = restored_config(model)
    cfg = pipeline_config(
        conf_folder() / "inference" / f"{settings.pipeline}_rnnt.yaml",
        model,
        model_cfg,
        device="cuda" if torch.cuda.is_available() else "cpu",
        own=None if settings.config is None else Path(settings.config),
        changes=settings.changes,
    )
    refuse_unfit(cfg, model_cfg)
    entries = _entries(settings, cfg.streaming.sample_rate)
    evaluation = stream(build_pipeline(cfg), entries, str(settings.manifest or "audio"))
    if settings.output is None:
        return Streamed(evaluation)
    about = {
        "model": str(model),
        "pipeline": settings.pipeline,
        "settings": OmegaConf.to_container(cfg.streaming),
    }
    return Streamed(evaluation, write_predictions(settings.output, [evaluation], about))


def _entries(settings: StreamSettings, sample_rate: int) -> list[dict[str, Any]]:
    """Return the entries of the manifest, or one without a transcript for each audio file."""
    import soundfile

    from nemo_codert.data.audio_files import inspect
    from nemo_codert.data.manifest import write_manifest
    from nemo_codert.evaluation.transcribe import usable_entries

    if settings.manifest is not None:
        return usable_entries(settings.manifest, sample_rate)
    for path in settings.audio:
        if fault := inspect(str(path)).fault:
            raise ValueError(f"`audio` is {path}: {fault}")
    lines = [
        {"audio_filepath": str(Path(path).resolve()), "duration": soundfile.info(str(path)).duration, "text": ""}
        for path in settings.audio
    ]
    with tempfile.TemporaryDirectory(prefix="nemo_codert_audio_") as folder:
        return usable_entries(write_manifest(Path(folder) / "audio.json", lines), sample_rate)
