"""The student in the real sherpa-onnx (requirements-deploy.txt): the same text as NeMo's, utterance by utterance."""

import json

import numpy as np
import pytest
import soundfile
import torch

from nemo_codert.cli import verify
from nemo_codert.evaluation.served import OnnxGreedy, SherpaOnnx
from nemo_codert.evaluation.transcribe import nemo_texts
from nemo_codert.export.sherpa_onnx import export_sherpa_onnx
from nemo_codert.export.stock_file import export_onnx, save_model
from tests.conftest import ADDITIVE, SAMPLE_RATE, SENTENCES, conformer, padded_batch, tone

pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed: pip install -r requirements-deploy.txt")
pytestmark = [pytest.mark.deploy, pytest.mark.slow]

STEPS, WARMUP, RATE, CHECK_EVERY = 600, 20, 5e-3, 50
SHIFTS = 8  # of 2.5 ms: what is learned must not hang on where a frame begins, sherpa-onnx's begin 5 ms later
UTTERANCES = 3
CACHE_AWARE = {"att_context_style": "chunked_limited", "att_context_size": [8, 1], "conv_context_size": "causal"}
CACHE_AWARE |= {"causal_downsampling": True}


@pytest.fixture(scope="session")
def spoken() -> dict[str, torch.Tensor]:
    """Three sentences and the signals that stand for them, [S] float32, 1 s or more (NeMo pads shorter ones).

    In some noise, because the features of the very first and last frame are sherpa-onnx's own.
    """
    generator = np.random.default_rng(0)
    signals = [np.pad(tone(0.8 + 0.2 * i, seed=i), (2400, 4800)) for i in range(UTTERANCES)]
    noisy = [signal + 0.003 * generator.standard_normal(len(signal)) for signal in signals]
    return {SENTENCES[i]: torch.from_numpy(signal.astype(np.float32)) for i, signal in enumerate(noisy)}


@pytest.fixture(scope="session")
def trained_pair(make_config, spoken):
    """A pair whose student says the sentences without an error."""
    student, front_end = conformer(layers=1, channels=32), {"preprocessor": {"highfreq": 7600}}
    return _learned(make_config, spoken, student=student, **front_end)


@pytest.fixture(scope="session")
def streaming_pair(make_config, spoken):
    """The same with a cache-aware student."""
    student = {**conformer(layers=1, channels=32), **CACHE_AWARE}
    return _learned(make_config, spoken, student=student, preprocessor={"normalize": "NA"})


def _learned(make_config, spoken, **changes):
    from nemo_codert.models import EncDecCoDERTBPEModel

    torch.manual_seed(0)
    changes |= {"teacher": conformer(layers=1, channels=32), "decoding": {"greedy": {"max_symbols": 10}}}
    model = EncDecCoDERTBPEModel(make_config("shared_kd", ADDITIVE, **changes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        model.train().training_step(_batch(model, spoken, shift=step % SHIFTS), 0)["loss"].backward()
        model.configure_gradient_clipping(optimizer, 5.0, "norm")
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY == 0 and _errors(model.eval(), spoken) == 0:
            break
    assert _errors(model.eval(), spoken) == 0, "not learned"
    return model.eval()


def _errors(model, spoken) -> float:
    return sum(model.validation_pass(_batch(model, spoken, shift), 0)["val_wer"] for shift in range(SHIFTS))


def _batch(model, spoken, shift: int):
    signals = [torch.nn.functional.pad(signal, (40 * shift, 0)) for signal in spoken.values()]
    tokens = [torch.tensor(model.tokenizer.text_to_ids(text)) for text in spoken]
    return padded_batch(signals, tokens)


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
            program = SherpaOnnx(folder, SAMPLE_RATE, int8=int8)
            assert [program.text(signal) for signal in signals] == sentences, (form, int8)


def test_the_online_recognizer_says_what_nemo_says_of_the_whole_utterance(streaming_pair, spoken, tmp_path):
    signals, sentences = [signal.numpy() for signal in spoken.values()], list(spoken)
    assert nemo_texts(streaming_pair.student_model(), signals) == sentences
    export_sherpa_onnx(streaming_pair, tmp_path, int8=True)
    lead = np.zeros(SAMPLE_RATE // 200, dtype=np.float32)  # 5 ms: then its frames are NeMo's
    for int8 in (False, True):
        program = SherpaOnnx(tmp_path, SAMPLE_RATE, int8=int8)
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
