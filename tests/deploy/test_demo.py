"""`codert demo`: its functions give sherpa-onnx's own texts, whole and live, and Gradio builds and serves the page."""

import socket
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from nemo_codert.cli import demo as command
from nemo_codert.evaluation.demo import Recogniser, demo_page
from nemo_codert.export.sherpa_onnx import export_sherpa_onnx
from tests.conftest import SAMPLE_RATE

pytestmark = [pytest.mark.deploy, pytest.mark.slow]


@pytest.fixture
def sherpa():
    return pytest.importorskip("sherpa_onnx", reason='sherpa-onnx is not installed: pip install "nemo_codert[demo]"')


def as_gradio(signal, rate: int = SAMPLE_RATE, channels: int = 1) -> tuple[int, np.ndarray]:
    """[S] float as Gradio passes it on: integers of 16 bits, [S] or [S, channels]."""
    samples = np.round(32767 * signal).astype(np.int16)
    return rate, samples if channels == 1 else np.stack([samples] * channels, axis=1)


def networks(folder: Path) -> dict[str, str]:
    return {
        **{name: f"{folder}/{name}.onnx" for name in ("encoder", "decoder", "joiner")},
        "tokens": f"{folder}/tokens.txt",
    }


def test_a_recording_gets_the_text_of_the_offline_recognizer(sherpa, trained_pair, spoken, tmp_path):
    export_sherpa_onnx(trained_pair, tmp_path)
    recogniser = Recogniser(tmp_path)
    options = {"sample_rate": SAMPLE_RATE, "feature_dim": 32, "model_type": "nemo_transducer"}
    directly = sherpa.OfflineRecognizer.from_transducer(**networks(tmp_path), **options)
    for sentence, signal in spoken.items():
        stream = directly.create_stream()
        stream.accept_waveform(SAMPLE_RATE, as_gradio(signal.numpy())[1] / np.float32(32768))
        directly.decode_stream(stream)
        for channels in (1, 2):
            assert (
                recogniser.transcribe(as_gradio(signal.numpy(), channels=channels)) == stream.result.text == sentence
            )
    high = np.repeat(signal.numpy(), 3)  # the microphone of a browser has 48 kHz
    assert recogniser.transcribe(as_gradio(high, 3 * SAMPLE_RATE)) == sentence
    for short in (None, (48000, np.zeros(0, dtype=np.int16)), as_gradio(np.zeros(800))):
        assert recogniser.transcribe(short) == ""


def test_a_microphone_gets_the_text_of_the_online_recognizer_while_it_is_on(sherpa, streaming_pair, spoken, tmp_path):
    export_sherpa_onnx(streaming_pair, tmp_path)
    recogniser = Recogniser(tmp_path)
    directly = sherpa.OnlineRecognizer.from_transducer(
        **networks(tmp_path), feature_dim=32, model_type="nemo_transducer"
    )
    lead = np.zeros(SAMPLE_RATE // 200, dtype=np.float32)  # 5 ms: then its frames are NeMo's
    for sentence, signal in spoken.items():
        audio = np.concatenate([lead, signal.numpy()])
        stream = directly.create_stream()
        stream.accept_waveform(SAMPLE_RATE, np.concatenate([as_gradio(audio)[1] / np.float32(32768), np.zeros(8000)]))
        while directly.is_ready(stream):
            directly.decode_stream(stream)
        assert directly.get_result(stream).strip() == sentence
        live, texts = None, []
        for piece in np.array_split(audio, 5):
            live, text = recogniser.listen(as_gradio(piece), live)
            texts.append(text)
        assert recogniser.end(live) == sentence == recogniser.transcribe(as_gradio(audio))
        assert all(sentence.startswith(text) for text in texts) and texts[0] != texts[-1]
        assert recogniser.listen(as_gradio(np.zeros(480)), live)[1] == sentence  # a piece that arrives late
    assert recogniser.end(None) == ""


@pytest.mark.parametrize("is_online", [False, True])
def test_gradio_serves_the_page_and_its_function(is_online, trained_pair, streaming_pair, spoken, tmp_path, sherpa):
    pytest.importorskip("gradio", reason='gradio is not installed: pip install "nemo_codert[demo]"')
    export_sherpa_onnx(streaming_pair if is_online else trained_pair, tmp_path)
    page = demo_page(Recogniser(tmp_path), "sherpa")
    names = {dependency["api_name"] for dependency in page.get_config_file()["dependencies"]}
    assert "transcribe" in names and ("listen" in names) == ("end" in names) == is_online
    _, address, _ = page.launch(server_name=command.HOST, prevent_thread_lock=True, quiet=True, share=False)
    try:
        assert address.startswith(f"http://{command.HOST}:")
        with urllib.request.urlopen(address) as answer:
            assert "codert demo" in answer.read().decode()
    finally:
        page.close()


def test_the_command_names_its_address_or_a_port_in_use(trained_pair, tmp_path, monkeypatch, capsys, sherpa):
    gradio = pytest.importorskip("gradio", reason='gradio is not installed: pip install "nemo_codert[demo]"')
    export_sherpa_onnx(trained_pair, tmp_path, int8=True)
    monkeypatch.setattr(gradio.Blocks, "block_thread", gradio.Blocks.close)
    with socket.create_server((command.HOST, 0)) as other:
        port = other.getsockname()[1]
        arguments = ["--model", str(tmp_path), "--int8", "--port", str(port)]
        assert command.main(arguments) == 2
        assert capsys.readouterr().err.endswith(f"error: --port is {port}, which is in use: give another\n")
    assert command.main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"http://127.0.0.1:{port}  Ctrl-C ends\n")


def test_a_folder_that_is_not_an_export_is_named(sherpa, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nemo_codert.config.arguments.find_spec", lambda name: sys)
    assert command.main(["--model", str(tmp_path / "student.nemo")]) == 2
    assert "has no encoder.onnx, decoder.onnx, joiner.onnx, tokens.txt: export" in capsys.readouterr().err
