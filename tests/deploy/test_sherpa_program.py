"""The student in the real sherpa-onnx (requirements-deploy.txt): the same text as NeMo's, utterance by utterance."""

import json

import numpy as np
import pytest
import soundfile

from nemo_codert.cli import verify
from nemo_codert.evaluation.served import OnnxGreedy
from nemo_codert.evaluation.sherpa_program import SherpaOnnx
from nemo_codert.evaluation.transcribe import nemo_texts
from nemo_codert.export.sherpa_onnx import export_sherpa_onnx
from nemo_codert.export.stock_file import export_onnx, save_model
from tests.conftest import SAMPLE_RATE

pytest.importorskip("sherpa_onnx", reason='sherpa-onnx is not installed: pip install "nemo_codert[deploy]"')
pytestmark = [pytest.mark.deploy, pytest.mark.slow]


def test_sherpa_onnx_and_onnxruntime_say_what_nemo_says(trained_pair, spoken, tmp_path):
    signals, sentences = [signal.numpy() for signal in spoken.values()], list(spoken)
    stock = trained_pair.student_model()
    assert nemo_texts(stock, signals) == sentences
    greedy = OnnxGreedy(stock, *export_onnx(stock, tmp_path / "onnx" / "student.onnx"))
    assert [greedy.text(signal) for signal in signals] == sentences
    for form in ("auto", "exact", "compact"):
        folder = tmp_path / form
        export_sherpa_onnx(trained_pair, folder, joint=form, int8=True)
        for int8 in (False, True):
            program = SherpaOnnx(folder, int8=int8)
            assert [program.text(signal) for signal in signals] == sentences, (form, int8)


def test_a_tdt_student_says_the_same_in_nemo_onnxruntime_and_sherpa_onnx(tdt_pair, spoken, tmp_path):
    signals, sentences = [signal.numpy() for signal in spoken.values()], list(spoken)
    stock = tdt_pair.student_model()
    assert nemo_texts(stock, signals) == sentences
    greedy = OnnxGreedy(stock, *export_onnx(stock, tmp_path / "onnx" / "student.onnx"))
    assert [greedy.text(signal) for signal in signals] == sentences
    export_sherpa_onnx(tdt_pair, tmp_path / "sherpa", int8=True)
    for int8 in (False, True):
        program = SherpaOnnx(tmp_path / "sherpa", int8=int8)
        assert [program.text(signal) for signal in signals] == sentences, int8


def test_the_online_recognizer_says_what_nemo_says_of_the_whole_utterance(streaming_pair, spoken, tmp_path):
    signals, sentences = [signal.numpy() for signal in spoken.values()], list(spoken)
    assert nemo_texts(streaming_pair.student_model(), signals) == sentences
    export_sherpa_onnx(streaming_pair, tmp_path, int8=True)
    lead = np.zeros(SAMPLE_RATE // 200, dtype=np.float32)  # 5 ms: then its frames are NeMo's
    for int8 in (False, True):
        program = SherpaOnnx(tmp_path, int8=int8)
        assert program.online
        assert [program.text(np.concatenate([lead, signal])) for signal in signals] == sentences, int8


def test_the_check_of_a_deployment_exports_all_and_finds_the_same_texts(
    trained_pair, spoken, tmp_path, monkeypatch, capsys
):
    lines = []
    for i, (text, signal) in enumerate(spoken.items()):
        soundfile.write(tmp_path / f"{i}.wav", signal.numpy(), SAMPLE_RATE)
        lines.append({"audio_filepath": f"{i}.wav", "duration": len(signal) / SAMPLE_RATE, "text": text})
    lines.append({**lines[0], "text": "beyond the limit"})
    (tmp_path / "test.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pair, folder = save_model(trained_pair, tmp_path / "pair.nemo"), tmp_path / "out" / "deployment"
    monkeypatch.setattr("nemo_codert.cli.console.quieten_libraries", lambda: None)
    arguments = ["--model", str(pair), "--manifest", str(tmp_path / "test.json"), "--output-dir", str(folder)]
    assert verify.main([*arguments, "--limit", "3", "--show", "2"]) == 0
    table = (folder / "deployment.md").read_text()
    assert table in capsys.readouterr().out
    for program in ("NeMo", "onnxruntime", "sherpa-onnx", "sherpa-onnx int8"):
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {program} |")]
        assert "| 0.00% |" in line and "| 3 of 3 |" in line and line.endswith(" MB |")
    first, second, third = spoken
    assert f"| {first} | {first} | same | same | same |" in table and second in table and third not in table
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    networks = [
        f"sherpa-onnx/{name}{kind}.onnx" for name in ("decoder", "encoder", "joiner") for kind in (".int8", "")
    ]
    onnx = ["onnx/decoder_joint-student.onnx", "onnx/encoder-student.onnx"]
    assert found == sorted(["deployment.md", "student.nemo", *onnx, *networks, "sherpa-onnx/tokens.txt"])
