"""One export in every program that serves it, in one call: `check_deployment`.

Imports torch and NeMo when called, so that bad settings are refused first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_codert.config.arguments import require_at_least, require_choice, require_file, require_installed
from nemo_codert.files.atomic import folder_to_fill, whole_file

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from nemo_codert.evaluation.robustness import Recording
    from nemo_codert.evaluation.served import Deployed

PROGRAMS = ("onnxruntime", "sherpa_onnx")
CHECKS = ("programs", "recordings")


@dataclass(frozen=True)
class DeploymentSettings:
    """A model to export, and the utterances to transcribe with it.

    Args:
        model: a `.nemo` file of a pair or of one RNN-T.
        manifest: the utterances, with transcripts.
        branch: `student` or `teacher` of a pair.
        limit: how many utterances, from the first on; None for all.
        show: how many of them are in the table of texts.
        checks: `programs`, the texts of NeMo, onnxruntime and sherpa-onnx; `recordings`, the word errors of NeMo with
            silent edges, at other levels and as a stream, which needs nothing but NeMo.
    """

    model: str | Path
    manifest: str | Path
    branch: str = "student"
    limit: int | None = None
    show: int = 10
    checks: Sequence[str] = CHECKS

    def check(self) -> None:
        """Check all that can be known without opening the model.

        Raises:
            ValueError: a program that is not installed, a file that is missing, a number out of range.
        """
        for check in self.checks:
            require_choice("checks", check, CHECKS)
        if not self.checks:
            raise ValueError(f"`checks` is empty: give one of {', '.join(CHECKS)}, or both")
        if "programs" in self.checks:
            require_installed("deploy", *PROGRAMS)
        require_file("model", self.model, "Give the path of a .nemo file")
        require_choice("branch", self.branch, ("student", "teacher"))
        require_at_least("limit", self.limit, 1)
        require_at_least("show", self.show, 0)


@dataclass(frozen=True)
class Deployment:
    """Transcripts of one export in each program, NeMo first; word errors in each way of recording; the report.

    Args:
        programs, recordings: empty where that check was not wanted.
        report: Markdown. path: the file that holds it.
    """

    programs: list["Deployed"]
    recordings: list["Recording"]
    report: str
    path: Path


def check_deployment(settings: DeploymentSettings, output_dir: str | Path) -> Deployment:
    """Export a branch and transcribe the utterances in the programs that serve it, and recorded otherwise.

    Args:
        settings: model, utterances and checks.
        output_dir: gets `student.nemo`, `deployment.md`, and of the check `programs` `onnx/` and `sherpa-onnx/` (float
            and int8).

    Returns:
        Texts and word errors of the four programs and of the ways of recording, and the report.

    Raises:
        ValueError: settings, files or data that cannot be used, audio longer than the exported files take, or a model
            that sherpa-onnx cannot serve.
    """
    settings.check()
    from nemo_codert.evaluation.transcribe import references_for, set_decoding, usable_entries
    from nemo_codert.evaluation.word_errors import metric_of
    from nemo_codert.export.stock_file import save_model, stock_of
    from nemo_codert.models.open_model import open_model

    entries = usable_entries(settings.manifest)[: settings.limit]
    model = open_model(settings.model)
    if "programs" in settings.checks:
        _refuse_long(model, settings.branch, entries)
    with folder_to_fill(output_dir, "output_dir") as folder:
        stock = stock_of(model, branch=settings.branch)
        set_decoding(stock, "greedy_batch")
        file = save_model(stock, folder / "student.nemo")
        programs, recordings, parts = [], [], []
        if "programs" in settings.checks:
            from nemo_codert.evaluation.served import report

            references = references_for(stock, [entry["text"] for entry in entries])
            programs = _transcribed(model, stock, settings.branch, file, entries, references)
            parts.append(report(programs, references, settings.show, metric_of(stock.cfg)))
        if "recordings" in settings.checks:
            from nemo_codert.evaluation.robustness import check_recordings, recordings_report

            recordings = check_recordings(stock, file, entries)
            parts.append(recordings_report(recordings, metric_of(stock.cfg)))
        with whole_file(folder / "deployment.md") as path:
            path.write_text("\n".join(parts), encoding="utf-8")
    return Deployment(programs, recordings, "\n".join(parts), folder / "deployment.md")


def _refuse_long(model: Any, branch: str, entries: list[dict[str, Any]]) -> None:
    from nemo_codert.export.audio_limit import check_lengths, seconds_per_frame
    from nemo_codert.models.open_model import networks_of

    encoder = networks_of(model, branch).encoder
    check_lengths(entries, encoder, seconds_per_frame(model, encoder))


def _transcribed(
    model: Any,
    stock: "EncDecRNNTBPEModel",
    branch: str,
    nemo: Path,
    entries: list[dict[str, Any]],
    references: Sequence[str],
) -> list["Deployed"]:
    """Export in the other formats, beside `nemo`, and transcribe the same signals in every program."""
    from nemo_codert.evaluation.served import Deployed, OnnxGreedy
    from nemo_codert.evaluation.sherpa_program import SherpaOnnx
    from nemo_codert.evaluation.transcribe import nemo_texts, read_signal
    from nemo_codert.evaluation.word_errors import metric_of
    from nemo_codert.export.sherpa_onnx import export_sherpa_onnx
    from nemo_codert.export.stock_file import export_onnx

    rate, metric = stock.cfg.preprocessor.sample_rate, metric_of(stock.cfg)
    sherpa = export_sherpa_onnx(model, nemo.parent / "sherpa-onnx", branch=branch, int8=True)
    onnx = export_onnx(stock, nemo.parent / "onnx" / "student.onnx")
    signals = [read_signal(entry, rate) for entry in entries]
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
