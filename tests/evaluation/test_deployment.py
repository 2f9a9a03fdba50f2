"""Exported students under onnxruntime decode as NeMo does; the report of several programs counts what it says."""

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from nemo_codert.evaluation.served import Deployed, OnnxGreedy, report
from nemo_codert.evaluation.sherpa_program import SherpaOnnx
from nemo_codert.evaluation.transcribe import read_signal
from nemo_codert.export.stock_file import export_onnx, stock_of
from tests.conftest import ADDITIVE, SAMPLE_RATE, STOCK, lstm, tone

pytest.importorskip("onnxruntime")


GREEDY = {
    "greedy": {"max_symbols": 3, "loop_labels": False},
    "greedy_batch": {"max_symbols": 3, "loop_labels": True},
}


def nemo_tokens(model, signal):
    """Greedy decoding of NeMo's own, one utterance: ids of word pieces."""
    samples = torch.from_numpy(signal)[None]
    with torch.no_grad():
        features, length = model.preprocessor(input_signal=samples, length=torch.tensor([samples.shape[1]]))
        encoded, encoded_len = model.encoder(audio_signal=features, length=length)[:2]
        (hypothesis,) = model.decoding.rnnt_decoder_predictions_tensor(encoded, encoded_len, return_hypotheses=True)
    return [int(token) for token in hypothesis.y_sequence]


@pytest.mark.parametrize(
    "joint, form, student",
    [(ADDITIVE, "exact", None), (ADDITIVE, "compact", lstm()), (STOCK, "auto", None), (STOCK, "auto", lstm())],
    ids=["exact", "compact-lstm", "stock", "stock-lstm"],
)
def test_greedy_decoding_under_onnxruntime_gives_the_tokens_of_both_of_nemos(
    make_model, tmp_path, joint, form, student
):
    pair = make_model("shared_kd", joint, student=student, decoding={"strategy": "greedy", "greedy": GREEDY["greedy"]})
    with torch.no_grad():  # an untrained joint says nothing, or one piece for ever
        for parameter in pair.student_joint.parameters():
            parameter.normal_()
        pair.student_joint.pred.weight.normal_(std=30.0)
    stock = stock_of(pair, joint=form)
    files = export_onnx(stock, tmp_path / "student.onnx")
    signals = [tone(seconds, seed=i) for i, seconds in enumerate((0.6, 0.9, 1.3))]
    for strategy, greedy in GREEDY.items():
        decoding = OmegaConf.merge(stock.cfg.decoding, {"strategy": strategy, "greedy": greedy})
        stock.change_decoding_strategy(decoding, verbose=False)
        decoder = OnnxGreedy(stock, *files)
        said = [decoder.tokens(signal) for signal in signals]
        assert len({token for tokens in said for token in tokens}) > 3, said
        assert said == [nemo_tokens(stock, signal) for signal in signals], strategy
    assert decoder.text(signals[0]) == stock.tokenizer.ids_to_text(said[0])


def test_a_signal_is_read_from_its_offset_at_the_models_rate(tmp_path):
    samples = np.stack([tone(1.0, seed=0), tone(1.0, seed=1)], axis=1)
    soundfile.write(tmp_path / "two.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    entry = {"audio_filepath": str(tmp_path / "two.wav"), "offset": 0.25, "duration": 0.5}
    found = read_signal(entry, SAMPLE_RATE)
    assert found.dtype == np.float32 and np.array_equal(found, samples[4000:12000].mean(axis=1))
    assert np.array_equal(read_signal({**entry, "channel": 1}, SAMPLE_RATE), samples[4000:12000, 1])
    assert len(read_signal(entry, SAMPLE_RATE // 2)) == 4000
    whole = {"audio_filepath": entry["audio_filepath"], "channel": 0}
    assert np.array_equal(read_signal(whole, SAMPLE_RATE), samples[:, 0])


def test_the_report_compares_every_program_with_the_first(tmp_path):
    (tmp_path / "file").write_bytes(bytes(1_230_000))
    references = ["a b", "c d", "e f"]
    texts = {"NeMo": ["a b", "c", "e f"], "other": ["a b", "c d", "e g"], "third": ["a b", "c", "e f"]}
    deployed = [Deployed.of(name, said, [tmp_path / "file"], references) for name, said in texts.items()]
    lines = report(deployed, references, show=2).splitlines()
    assert lines[2] == "| NeMo | 16.67% |  | 3 of 3 | 1.23 MB |"
    assert lines[3] == "| other | 16.67% | +0.00 | 1 of 3 | 1.23 MB |"
    assert lines[4] == "| third | 16.67% | +0.00 | 3 of 3 | 1.23 MB |"
    assert lines[6] == "| reference | NeMo | other | third |"
    assert lines[8:] == ["| a b | a b | same | same |", "| c d | c | c d | same |"]


def test_a_folder_that_lacks_a_file_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sherpa_onnx", object())
    (tmp_path / "encoder.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="has no decoder.onnx, joiner.onnx, tokens.txt: export again"):
        SherpaOnnx(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "sherpa_onnx", None)
    with pytest.raises(ValueError, match=r'sherpa-onnx is not installed: pip install "nemo_codert\[deploy\]"'):
        SherpaOnnx(tmp_path)
