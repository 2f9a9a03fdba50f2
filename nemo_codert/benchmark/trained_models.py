"""Trained models on test manifests, one after the other: word errors, speed and size, in one call: `evaluate_models`.

The room is benchmark because files are exported to stock models first and their memory is measured; one opened model
is evaluated by `nemo_codert.evaluation.transcribe`. Imports torch and NeMo when called, so that bad settings are
refused first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from nemo_codert.config.arguments import require_at_least, require_choice, require_file

if TYPE_CHECKING:
    from nemo_codert.evaluation.transcribe import Evaluation


@dataclass(frozen=True)
class EvaluationSettings:
    """Models and manifests of an evaluation.

    Args:
        models: `.nemo` files of pairs, or of models of any kind of `TRANSCRIBED`: RNN-T (with a stock or an additive
            joint), TDT, hybrid, CTC.
        manifests: the utterances, with transcripts.
        branch: `student` or `teacher` of the pairs.
        decoding: strategy, one of `nemo_codert.evaluation.transcribe.DECODINGS`; None: each model's own.
        batch_size: utterances.
        sizes: measure peak memory of one model, too; of several models it is measured in any case.
        output: file of the predictions; `NAME_summary.json` is written beside it. None: nothing is written.
    """

    models: Sequence[str | Path]
    manifests: Sequence[str | Path]
    branch: str = "student"
    decoding: str | None = None
    batch_size: int = 16
    sizes: bool = False
    output: str | Path | None = None

    @property
    def several(self) -> bool:
        """True for two models or more."""
        return len(self.models) > 1

    def check(self) -> None:
        """Check all that can be known without opening a model, and that predictions can be written.

        Raises:
            ValueError: a file that is missing, a manifest that cannot be read, numbers out of range, an output that
                cannot be written.
        """
        from nemo_codert.data.manifest import read_manifest

        if not (self.models and self.manifests):
            raise ValueError("`model` and `manifest`: give one or more of each")
        for model in self.models:
            require_file("model", model, "Give the path of a .nemo file")
        require_choice("branch", self.branch, ("student", "teacher"))
        require_at_least("batch_size", self.batch_size, 1)
        output = None if self.output is None else Path(self.output)
        if output is not None and output.is_dir():
            raise ValueError(f"`output` is {output}: that is a folder, give a file name")
        for manifest in self.manifests:
            read_manifest(manifest)
            if output is not None and output.resolve() == Path(manifest).resolve():
                raise ValueError(f"`output` is `manifest` itself ({manifest}): give another name")
        if output is not None:
            _check_writable(output)


def _check_writable(output: Path) -> None:
    """Make the folder of the predictions and try it, so that they are not lost after a long evaluation."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"`output` is {output}: no file can be made in {output.parent} ({error.strerror}). Give another folder"
        ) from error


@dataclass(frozen=True)
class ModelEvaluation:
    """One model on all manifests.

    name: short, and unique among the models. about: path, branch, parameters, file_bytes, decoding, batch_size,
    device, threads and, where it was measured, peak_memory_bytes. files: what was written.
    """

    name: str
    about: dict[str, Any]
    evaluations: list["Evaluation"]
    files: tuple[Path, ...] = ()

    @property
    def real_time_factor(self) -> float:
        """Seconds of transcribing per second of audio, over all manifests."""
        seconds = (sum(each.wall_seconds for each in self.evaluations), sum(e.audio_seconds for e in self.evaluations))
        return seconds[0] / seconds[1]


def evaluate_models(settings: EvaluationSettings) -> Iterator[ModelEvaluation]:
    """Evaluate models one after the other, on the GPU if there is one, and write their predictions.

    Args:
        settings: models and manifests.

    Returns:
        An iterator that evaluates one model at each step: results that were written stay when a later model fails. A
        model is gone from memory when its evaluation is there.

    Raises:
        ValueError: settings, files or data that cannot be used. Faults of any model's config are raised by the call.

    Example:
        >>> evaluate_models(EvaluationSettings(["student.nemo"], ["test.json"]))  # no such model here
        Traceback (most recent call last):
        ...
        ValueError: `model` is student.nemo: no such file. Give the path of a .nemo file
    """
    settings.check()
    from nemo_codert.benchmark.model_sizes import distinct_names
    from nemo_codert.config.model_kinds import TRANSCRIBED, is_pair
    from nemo_codert.evaluation.long_audio import refuse_without_memory
    from nemo_codert.evaluation.transcribe import usable_entries
    from nemo_codert.models.open_model import restored_config
    from nemo_codert.models.stock_config import network_blocks

    models = [Path(model) for model in settings.models]
    names = distinct_names(models)
    sets = [usable_entries(manifest) for manifest in settings.manifests]
    for model in models:  # a fault of the last model is raised before the first one transcribes
        cfg = restored_config(model, kinds=TRANSCRIBED)
        if settings.branch == "teacher" and not is_pair(cfg):
            raise ValueError(f"`branch` is teacher, but {model}: this model is a single RNN-T, not a pair")
        blocks = network_blocks(cfg, settings.branch)
        for entries in sets:
            refuse_without_memory(blocks.encoder, blocks.preprocessor, entries, settings.batch_size, _device())
    every = [entry for entries in sets for entry in entries]
    return (_evaluated(model, name, every, settings) for model, name in zip(models, names, strict=True))


def _evaluated(model: Path, name: str, entries: list[dict[str, Any]], settings: EvaluationSettings) -> ModelEvaluation:
    from nemo_codert.benchmark.model_sizes import peak_memory_of
    from nemo_codert.evaluation.transcribe import write_predictions

    about, evaluations = _transcribed(model, settings)
    if settings.several or settings.sizes:
        about["peak_memory_bytes"] = peak_memory_of(
            model,
            entries,
            branch=settings.branch,
            decoding=settings.decoding,
            batch_size=settings.batch_size,
            device=about["device"].split(":")[0],
        )
    files: tuple[Path, ...] = ()
    if settings.output is not None:
        path = Path(settings.output)
        if settings.several:
            path = path.with_name(f"{path.stem}_{name.replace('/', '_')}{path.suffix}")
        files = write_predictions(path, evaluations, about)
    return ModelEvaluation(name, about, evaluations, files)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _transcribed(path: Path, settings: EvaluationSettings) -> "tuple[dict[str, Any], list[Evaluation]]":
    """Return a description of one model and its evaluations; the model itself is gone from memory afterwards."""
    import torch

    from nemo_codert.config.model_kinds import TRANSCRIBED
    from nemo_codert.evaluation.transcribe import evaluate, set_decoding
    from nemo_codert.export.stock_file import transcribing
    from nemo_codert.models.open_model import open_model

    model = transcribing(open_model(path, kinds=TRANSCRIBED), branch=settings.branch)
    model.to(_device())
    if settings.decoding is not None:
        set_decoding(model, settings.decoding)
    about = {
        "model": str(path),
        "branch": settings.branch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "file_bytes": path.stat().st_size,
        "decoding": model.cfg.decoding.strategy,
        "batch_size": settings.batch_size,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }
    return about, [evaluate(model, manifest, batch_size=settings.batch_size) for manifest in settings.manifests]
