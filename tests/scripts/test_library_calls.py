"""The work of the commands, called from Python: results are returned, and bad settings are a ValueError."""

import math
from pathlib import Path

import pytest
import torch

from nemo_codert.analysis.latency import LatencySettings, measure_latency
from nemo_codert.analysis.logits import LogitSettings, analyze_logits
from nemo_codert.benchmark.run import BenchmarkSettings, run_benchmark
from nemo_codert.benchmark.trained_models import EvaluationSettings, evaluate_models
from nemo_codert.evaluation.streamed_files import StreamSettings
from nemo_codert.export.deployment import DeploymentSettings
from nemo_codert.export.student_files import ExportSettings, export_student


@pytest.fixture(scope="module")
def pair(make_config, tmp_path_factory) -> Path:
    """File of an untrained pair."""
    from nemo_codert.export.stock_file import save_model
    from nemo_codert.models import EncDecCoDERTBPEModel

    torch.manual_seed(0)
    model = EncDecCoDERTBPEModel(make_config("tandem_kd"))
    return save_model(model, tmp_path_factory.mktemp("models") / "pair.nemo")


def test_an_exported_student_is_evaluated(pair, manifest, tmp_path, capsys):
    exported = export_student(ExportSettings(pair, tmp_path / "student.nemo", joint="compact"))
    assert exported.files == (tmp_path / "student.nemo", tmp_path / "student.md")
    assert exported.description.startswith("EncDecRNNTBPEModel, ")
    settings = EvaluationSettings([str(exported.files[0])], [str(manifest)], output=str(tmp_path / "said.json"))
    (model,) = evaluate_models(settings)
    assert model.name == "student" and f"{model.about['parameters']:,} parameters" in exported.description
    assert len(model.evaluations[0].predictions) == 8 and model.real_time_factor > 0
    assert "peak_memory_bytes" not in model.about
    assert model.files == (tmp_path / "said.json", tmp_path / "said_summary.json")
    assert capsys.readouterr().out == ""


def test_models_are_evaluated_one_at_a_time_but_refused_at_once(pair, manifest, tmp_path):
    (tmp_path / "broken.nemo").write_text("no archive")
    with pytest.raises(ValueError, match=r"broken\.nemo cannot be restored"):
        evaluate_models(EvaluationSettings([pair, tmp_path / "broken.nemo"], [manifest]))
    assert not isinstance(evaluate_models(EvaluationSettings([pair], [manifest])), list)


def test_a_report_of_logits_and_delays_are_returned(pair, manifest, tmp_path, capsys):
    settings = LogitSettings(str(manifest), [str(pair)], utterances=("0",), max_utterances=2)
    report = analyze_logits(settings, str(tmp_path / "out"))
    assert report.utterances == 2 and 0 < report.models[0].rows[0].mean < math.log(33)
    assert report.models[0].agreement.frames > 0 and (tmp_path / "out" / "report.html").is_file()
    (delays,) = measure_latency(LatencySettings([str(pair)], [str(manifest)]))
    assert (delays.student_seconds, delays.teacher_seconds) == (0.04, 0.04)
    assert delays.manifests[str(manifest)].tokens > 8 and delays.transcript_faults == {str(manifest): {}}
    assert capsys.readouterr().out == ""


def test_a_benchmark_returns_its_rows_and_reports_each_part(tmp_path, capsys):
    said = []
    settings = BenchmarkSettings(
        only=["joint"], joint_shapes=[(2, 6, 2, 8)], joint_hidden=5, memory=False, slow_rounds=1
    )
    result = run_benchmark(settings, str(tmp_path / "new" / "out"), said.append)
    assert [row.sizes["hidden"] for row in result.rows] == [5, 5] and result.findings == []
    assert said[0] == result.machine and "chunked_joint_rnnt_loss" in said[1] and len(said) == 2
    assert [path.name for path in (tmp_path / "new" / "out").iterdir()] == ["benchmark.csv"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "settings, message",
    [
        (LogitSettings("test.json"), "give either `model` .* or `checkpoints`"),
        (LogitSettings("test.json", ["a.nemo"], "folder"), "give either `model` .* or `checkpoints`"),
        (LogitSettings("test.json", checkpoints="folder", branch="pupil"), "`branch` is 'pupil', wanted one of"),
        (LogitSettings("absent.json", checkpoints="folder"), "absent.json is not a file"),
        (LatencySettings([], ["test.json"]), "`model` and `manifest`: give one or more of each"),
        (EvaluationSettings(["a.nemo"], []), "`model` and `manifest`: give one or more of each"),
        (EvaluationSettings(["absent.nemo"], ["test.json"]), "`model` is absent.nemo: no such file"),
        (ExportSettings("absent.nemo", "student.nemo"), "`model` is absent.nemo: no such file"),
        (ExportSettings("a.nemo", "b.nemo", format="tflite"), "`format` is 'tflite', wanted one of nemo, onnx"),
        (ExportSettings("a.nemo", "b.nemo", joint="wide"), "`joint` is 'wide', wanted one of auto, exact"),
        (DeploymentSettings("absent.nemo", "test.json"), "absent.nemo: no such file|is not installed"),
        (StreamSettings("a.nemo"), "give either `manifest` or `audio`"),
        (StreamSettings("absent.nemo", audio=["a.wav"]), "`model` is absent.nemo: no such file"),
        (BenchmarkSettings(only=["everything"]), "`only` is 'everything', wanted one of loss, joint"),
        (BenchmarkSettings(device="tpu"), "`device` is 'tpu', wanted one of cpu, cuda"),
        (BenchmarkSettings(rounds=0), "`rounds` is 0, wanted a number above 0"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        settings.check()
