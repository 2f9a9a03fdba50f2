"""One export in every program that serves it, in one call: `check_deployment`.

Imports torch and NeMo when called, so that bad settings are refused first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_codert.config.arguments import require_at_least, require_choice, require_file
from nemo_codert.files.atomic import folder_to_fill, whole_file

if TYPE_CHECKING:
    import numpy as np
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from nemo_codert.evaluation.served import Deployed

PROGRAMS = ("onnxruntime", "sherpa_onnx")


@dataclass(frozen=True)
class DeploymentSettings:
    """A model to export, and the utterances to transcribe with it.

    Args:
        model: a `.nemo` file of a pair or of one RNN-T.
        manifest: the utterances, with transcripts.
        branch: `student` or `teacher` of a pair.
        limit: how many utterances, from the first on; None for all.
        show: how many of them are in the table of texts.
    """

    model: str | Path
    manifest: str | Path
    branch: str = "student"
    limit: int | None = None
    show: int = 10

    def check(self) -> None:
        """Check all that can be known without opening the model.

        Raises:
            ValueError: a program that is not installed, a file that is missing, a number out of range.
        """
        from importlib.util import find_spec

        for package in PROGRAMS:
            if find_spec(package) is None:
                raise ValueError(f'{package} is not installed: pip install "nemo_codert[deploy]"')
        require_file("model", self.model, "Give the path of a .nemo file")
        require_choice("branch", self.branch, ("student", "teacher"))
        require_at_least("limit", self.limit, 1)
        require_at_least("show", self.show, 0)


@dataclass(frozen=True)
class Deployment:
    """Transcripts of one export in each program, NeMo first; the report in Markdown, and the file that holds it."""

    programs: list["Deployed"]
    report: str
    path: Path


def check_deployment(settings: DeploymentSettings, output_dir: str | Path) -> Deployment:
    """Export a branch in every format and transcribe the utterances in NeMo, onnxruntime and sherpa-onnx.

    Args:
        settings: model and utterances.
        output_dir: gets `student.nemo`, `onnx/`, `sherpa-onnx/` (float and int8) and `deployment.md`.

    Returns:
        Texts and word errors of the four programs, and the report.

    Raises:
        ValueError: settings, files or data that cannot be used, audio longer than the exported files take, or a model
            that sherpa-onnx cannot serve.
    """
    settings.check()
    from nemo_codert.evaluation.served import read_signal, report
    from nemo_codert.evaluation.transcribe import references_for, set_decoding, usable_entries
    from nemo_codert.evaluation.word_errors import metric_of
    from nemo_codert.export.audio_limit import check_lengths, seconds_per_frame
    from nemo_codert.export.sherpa_onnx import export_sherpa_onnx
    from nemo_codert.export.stock_file import stock_of
    from nemo_codert.models.open_model import networks_of, open_model

    entries = usable_entries(settings.manifest)[: settings.limit]
    model = open_model(settings.model)
    networks = networks_of(model, settings.branch)
    check_lengths(entries, networks.encoder, seconds_per_frame(model, networks.encoder))
    references, metric = references_for(model, [entry["text"] for entry in entries]), metric_of(model.cfg)
    with folder_to_fill(output_dir, "output_dir") as folder:
        sherpa = export_sherpa_onnx(model, folder / "sherpa-onnx", branch=settings.branch, int8=True)
        stock = stock_of(model, branch=settings.branch)
        set_decoding(stock, "greedy_batch")
        signals = [read_signal(entry, stock.preprocessor.featurizer.sample_rate) for entry in entries]
        deployed = _transcribed(stock, folder, sherpa, signals, references)
        text = report(deployed, references, settings.show, metric)
        with whole_file(folder / "deployment.md") as path:
            path.write_text(text, encoding="utf-8")
    return Deployment(deployed, text, folder / "deployment.md")


def _transcribed(
    stock: "EncDecRNNTBPEModel",
    folder: Path,
    sherpa: list[Path],
    signals: "Sequence[np.ndarray]",
    references: Sequence[str],
) -> list["Deployed"]:
    """Transcribe the same signals in every program; the stock model's own files are written first."""
    from nemo_codert.evaluation.served import Deployed, OnnxGreedy, nemo_texts
    from nemo_codert.evaluation.sherpa_program import SherpaOnnx
    from nemo_codert.evaluation.word_errors import metric_of
    from nemo_codert.export.stock_file import export_onnx, save_model

    metric = metric_of(stock.cfg)
    nemo = save_model(stock, folder / "student.nemo")
    onnx = export_onnx(stock, folder / "onnx" / "student.onnx")
    greedy = OnnxGreedy(stock, *onnx)
    deployed = [
        Deployed.of("NeMo", nemo_texts(stock, signals), [nemo], references, metric),
        Deployed.of("onnxruntime", [greedy.text(signal) for signal in signals], onnx, references, metric),
    ]
    for int8 in (False, True):
        program = SherpaOnnx(sherpa[0].parent, int8=int8)
        texts = [program.text(signal) for signal in signals]
        files = [path for path in sherpa if path.name.endswith(".int8.onnx") == int8 and path.suffix == ".onnx"]
        deployed.append(Deployed.of("sherpa-onnx int8" if int8 else "sherpa-onnx", texts, files, references, metric))
    return deployed
