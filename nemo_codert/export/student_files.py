"""Files of a trained branch in one call, `export_student`: stock `.nemo` with a model card, ONNX, or sherpa-onnx.

`nemo_codert.export.hub` uploads the first of these.

Imports torch and NeMo when called, so that bad settings are refused first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.config.arguments import require_choice, require_file

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecRNNTBPEModel
    from omegaconf import DictConfig

    from nemo_codert.export.training_record import TrainingRecord

FORMATS = ("nemo", "onnx", "sherpa-onnx")
JOINTS = ("auto", "exact", "compact", "narrow")
SUFFIXES = {"nemo": ".nemo", "onnx": ".onnx"}
UNKNOWN = "unknown"


@dataclass(frozen=True)
class ExportSettings:
    """A trained model, and the files to make of one of its branches.

    Args:
        model: a `.nemo` file of a pair, or of one RNN-T trained alone.
        output: `NAME.nemo`, `NAME.onnx`, or for sherpa-onnx a folder.
        format: `nemo`, `onnx` or `sherpa-onnx`.
        joint: form of the stock joint that replaces an additive one: `auto`, `exact`, `compact` or `narrow`.
        branch: `student` or `teacher` of a pair.
        int8: for sherpa-onnx, 8-bit files beside the others.
        wer: for the model card, predictions or summaries that `evaluate_models` wrote.
        license: for the model card, the id at a hub, such as `cc-by-4.0`.
        language: for the model card, ISO codes.
        dataset: for the model card, names at a hub of the training data.
        push: for the model card, `ORG/NAME` of the Hugging Face hub, where `push_to_hub` then uploads the files.
    """

    model: str | Path
    output: str | Path
    format: str = "nemo"
    joint: str = "auto"
    branch: str = "student"
    int8: bool = False
    wer: Sequence[str | Path] = ()
    license: str = UNKNOWN
    language: Sequence[str] = ()
    dataset: Sequence[str] = ()
    push: str | None = None

    def check(self) -> None:
        """Check all that can be known without opening the model.

        Raises:
            ValueError: no such file, a wrong suffix, a setting of another format, an output that would replace the
                input, a repository or a token that the hub would refuse.
        """
        require_choice("format", self.format, FORMATS)
        require_choice("joint", self.joint, JOINTS)
        require_choice("branch", self.branch, ("student", "teacher"))
        if self.int8 and self.format != "sherpa-onnx":
            raise ValueError(f"`int8` is for `format` sherpa-onnx, the format is {self.format}: leave it out")
        if self.format != "nemo":
            if self.push is not None:
                raise ValueError(f"`push` is for `format` nemo, the format is {self.format}: leave one of them out")
            given = {"wer": self.wer, "language": self.language, "dataset": self.dataset}
            given["license"] = self.license != UNKNOWN
            for name in [name for name, value in given.items() if value]:
                raise ValueError(f"`{name}` is for the model card, which `format` {self.format} has none of")
        require_file("model", self.model, "Give the .nemo that training left")
        self._check_output(Path(self.output))
        if self.push is not None:
            check_repository(self.push)

    def _check_output(self, output: Path) -> None:
        if self.format == "sherpa-onnx":
            if output.exists() and not output.is_dir() or output.suffix in SUFFIXES.values():
                raise ValueError(f"`output` is {output}, but `format` sherpa-onnx fills a folder: give one")
            return
        suffix = SUFFIXES[self.format]
        if output.suffix != suffix:
            raise ValueError(f"`output` is {output}, but `format` {self.format} makes a {suffix} file")
        if output.is_dir():
            raise ValueError(f"`output` is {output}: that is a folder")
        if output.resolve() == Path(self.model).resolve():
            raise ValueError(f"`output` is `model` itself ({self.model}): give another name")


def check_repository(name: str) -> None:
    """Check, without asking the hub, that `push` names a repository of the hub and that there is a token to write it.

    Args:
        name: `ORG/NAME`.

    Raises:
        ValueError: another form, no token, or a client that is set to stay offline.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import validate_repo_id

    if [bool(part) for part in name.split("/")] != [True, True]:
        raise ValueError(f"`push` is {name!r}, wanted ORG/NAME: your user or organisation at the hub, and the model")
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ValueError(f"`push` is {name!r}, which is not a name at the hub: {error}") from error
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"`push` is {name!r}, but HF_HUB_OFFLINE is set: unset it to reach the hub")
    if not get_token():
        raise ValueError(
            f"`push` is {name!r}, but there is no token for the hub: run hf auth login (in older "
            "versions huggingface-cli login), or set HF_TOKEN to a token that may write"
        )


@dataclass(frozen=True)
class Exported:
    """Files of an export, and in `description` what model they hold, for people."""

    description: str
    files: tuple[Path, ...]


def export_student(settings: ExportSettings) -> Exported:
    """Write the files of a trained branch; a file is complete under its name or not there.

    Args:
        settings: model, branch and format.

    Returns:
        The files that were written and a description of the exported model.

    Raises:
        ValueError: settings or files that cannot be used, or a branch that the format cannot hold.

    Example:
        >>> export_student(ExportSettings("pair.nemo", "student.onnx", format="onnx"))  # no such model here
        Traceback (most recent call last):
        ...
        ValueError: `model` is pair.nemo: no such file. Give the .nemo that training left
    """
    settings.check()
    from nemo_codert.models.open_model import open_model

    model = open_model(settings.model)
    return _sherpa_folder(model, settings) if settings.format == "sherpa-onnx" else _stock_files(model, settings)


def _stock_files(model: "EncDecRNNTBPEModel", settings: ExportSettings) -> Exported:
    """Write a stock `.nemo` with its card, or NeMo's ONNX."""
    from nemo_codert.export.audio_limit import limit_in_words, seconds_per_frame
    from nemo_codert.export.stock_file import export_onnx, save_with_card, stock_of
    from nemo_codert.export.training_record import recorded_training
    from nemo_codert.modules.encoder_logits import num_token_classes

    stock = stock_of(model, branch=settings.branch, joint=settings.joint)
    parameters, limit = sum(parameter.numel() for parameter in stock.parameters()), ""
    if settings.format == "onnx":
        written = export_onnx(stock, settings.output)
        limit = limit_in_words(stock.encoder, seconds_per_frame(stock))
    else:
        card = _card(stock.cfg, recorded_training(model.cfg), parameters, settings)
        written = save_with_card(stock, settings.output, card)
    pieces = num_token_classes(stock.joint) - 1
    hidden = f"joint_hidden {stock.joint.joint_hidden}"
    what = f"{type(stock).__name__}, {parameters:,} parameters, {hidden}, {pieces} word pieces"
    return Exported(f"{what}{limit}", written)


def _card(cfg: "DictConfig", record: "TrainingRecord | None", parameters: int, settings: ExportSettings) -> str:
    from nemo_codert.evaluation.word_errors import metric_of
    from nemo_codert.export.model_card import CardOptions, model_card, read_error_rates

    about = {"branch": settings.branch, "parameters": parameters}
    return model_card(
        cfg,
        name=(settings.push or Path(settings.output).stem).rpartition("/")[2],
        record=record,
        results=[result for path in settings.wer for result in read_error_rates(path, **about, metric=metric_of(cfg))],
        options=CardOptions(settings.license, tuple(settings.language), tuple(settings.dataset), settings.push),
        **about,
    )


def _sherpa_folder(model: "EncDecRNNTBPEModel", settings: ExportSettings) -> Exported:
    """Write the folder for sherpa-onnx; the description names the recognizer that takes it."""
    from nemo_codert.export.audio_limit import limit_in_words, seconds_per_frame
    from nemo_codert.export.sherpa_onnx import export_sherpa_onnx, is_cache_aware
    from nemo_codert.models.open_model import networks_of
    from nemo_codert.modules.encoder_logits import num_token_classes

    choice = {"branch": settings.branch, "joint": settings.joint, "int8": settings.int8}
    written = export_sherpa_onnx(model, Path(settings.output), **choice)
    networks = networks_of(model, settings.branch)
    online = is_cache_aware(networks.encoder)  # served in windows: audio of any length
    limit = "" if online else limit_in_words(networks.encoder, seconds_per_frame(model, networks.encoder))
    pieces = num_token_classes(networks.joint) - 1
    program = "OnlineRecognizer" if online else "OfflineRecognizer"
    return Exported(f"sherpa-onnx {program}, {pieces} word pieces{limit}", tuple(written))
