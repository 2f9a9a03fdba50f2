"""The folder for sherpa-onnx, part by part against torch; what sherpa-onnx cannot serve is refused."""

import numpy as np
import onnx
import pytest
import torch
from nemo.collections.asr.modules.rnnt import StatelessTransducerDecoder

from nemo_codert.export.sherpa_onnx import (
    NETWORKS,
    export_sherpa_onnx,
    front_end_problems,
    network_problems,
    sum_joiner,
)
from nemo_codert.export.stock_file import stock_of
from nemo_codert.models.open_model import networks_of
from nemo_codert.modules.encoder_logits import encoder_logits, joint_logits, prediction_logits
from nemo_codert.modules.transducer import Transducer
from tests.conftest import ADDITIVE, STOCK, conformer, lstm

onnxruntime = pytest.importorskip("onnxruntime")

# float32 through two layers and layer norms, other kernels than torch's; 1.1e-6 seen
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
FILES = sorted([f"{network}.onnx" for network in NETWORKS] + ["tokens.txt"])


def int8_weights(path) -> list[np.ndarray]:
    """Matrices of eight bits, signed or not."""
    arrays = [onnx.numpy_helper.to_array(entry) for entry in onnx.load(path).graph.initializer]
    return [array for array in arrays if array.dtype in (np.int8, np.uint8) and array.ndim > 1]


def run(path, *inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]  # by position, as sherpa-onnx feeds them
    return session.run(None, {n: x.detach().numpy() for n, x in zip(names, inputs, strict=True)})


def metadata(path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("joint", [ADDITIVE, STOCK], ids=["additive", "stock"])
@pytest.mark.parametrize("student", [None, lstm()], ids=["conformer", "lstm"])
@torch.no_grad()
def test_each_part_equals_torch_at_other_lengths_and_batch_sizes(shared_pair, tmp_path, joint, student):
    pair = shared_pair("shared_kd", joint, student=student)
    networks = networks_of(pair.eval())
    assert sorted(p.name for p in export_sherpa_onnx(pair, tmp_path)) == FILES
    for batch, frames in ((1, 83), (3, 161)):
        features, lengths = torch.randn(batch, 32, frames), torch.arange(frames, frames - 20 * batch, -20)
        encoded, encoded_len = networks.encoder(audio_signal=features, length=lengths)[:2]
        tokens, states = torch.randint(0, 32, (batch, 1), dtype=torch.int32), torch.randn(2, 1, batch, 20).unbind()
        decoded, new_states = networks.decoder.predict(tokens.long(), state=list(states), add_sos=False)
        decoded = decoded.transpose(1, 2)  # [B, D, 1]
        encoder_output, prediction_output = encoded, decoded
        if joint == ADDITIVE:  # the projections are in the networks' graphs
            encoder_output = encoder_logits(networks.joint, encoded).transpose(1, 2)
            prediction_output = prediction_logits(networks.joint, decoded).transpose(1, 2)

        found, found_len = run(tmp_path / "encoder.onnx", features, lengths)
        assert found_len.tolist() == encoded_len.tolist()
        for i, length in enumerate(encoded_len.tolist()):
            np.testing.assert_allclose(found[i, :, :length], encoder_output[i, :, :length].numpy(), **CLOSE)
        found, _, *found_states = run(tmp_path / "decoder.onnx", tokens, torch.ones(batch).int(), *states)
        np.testing.assert_allclose(found, prediction_output.numpy(), **CLOSE)
        for state, expected in zip(found_states, new_states, strict=True):
            np.testing.assert_allclose(state, expected.numpy(), **CLOSE)
        (found,) = run(tmp_path / "joiner.onnx", encoder_output, prediction_output)
        np.testing.assert_allclose(found, joint_logits(networks.joint, encoded, decoded).numpy(), **CLOSE)


def test_the_joiner_of_an_additive_joint_adds_and_nothing_else(shared_pair, tmp_path):
    pair = shared_pair("shared_kd", ADDITIVE)
    export_sherpa_onnx(pair, tmp_path / "sum")
    assert sorted({node.op_type for node in onnx.load(tmp_path / "sum/joiner.onnx").graph.node}) == [
        "Add",
        "Transpose",
        "Unsqueeze",
    ]
    encoder, prediction = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    onnx.save(sum_joiner(5), tmp_path / "joiner.onnx")
    (found,) = run(tmp_path / "joiner.onnx", encoder, prediction)
    expected = encoder.transpose(1, 2)[:, :, None] + prediction.transpose(1, 2)[:, None]
    assert np.array_equal(found, expected.numpy())  # one float32 addition: nothing to round differently
    export_sherpa_onnx(pair, tmp_path / "compact", joint="compact")
    assert "MatMul" in {node.op_type for node in onnx.load(tmp_path / "compact/joiner.onnx").graph.node}


def test_metadata_and_tokens_are_those_of_the_model(make_model, tmp_path):
    pair = make_model("tandem_kd", ADDITIVE, teacher=lstm())
    export_sherpa_onnx(pair, tmp_path)
    found = metadata(tmp_path / "encoder.onnx")
    expected = {"vocab_size": "32", "normalize_type": "per_feature", "pred_rnn_layers": "1", "pred_hidden": "20"}
    expected |= {"subsampling_factor": "4", "feat_dim": "32", "sample_rate": "16000"}
    assert found.items() >= expected.items() and found["model_type"] == "EncDecRNNTBPEModel"
    lines = (tmp_path / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{piece} {i}" for i, piece in enumerate([*pair.joint.vocabulary, "<blk>"])]
    export_sherpa_onnx(pair, tmp_path, branch="teacher")
    assert "LSTM" in {node.op_type for node in onnx.load(tmp_path / "encoder.onnx").graph.node}


def test_features_without_normalisation_are_said_to_be_so(make_model, tmp_path):
    export_sherpa_onnx(make_model(preprocessor={"normalize": "NA"}), tmp_path)
    assert metadata(tmp_path / "encoder.onnx")["normalize_type"] == "NA"


@torch.no_grad()
def test_int8_files_hold_8_bit_weights_and_say_nearly_the_same(shared_pair, tmp_path):
    pair = shared_pair("shared_kd", ADDITIVE)
    names = [path.name for path in export_sherpa_onnx(pair, tmp_path, int8=True)]
    assert sorted(names) == sorted([*FILES, *(f"{network}.int8.onnx" for network in NETWORKS)])
    # Signed weights of eight bits overflow on processors without VNNI, which a machine with it would not see below.
    weights = {network: int8_weights(tmp_path / f"{network}.int8.onnx") for network in ("encoder", "decoder")}
    assert weights["encoder"] and not any(weight.dtype == np.int8 for weight in weights["encoder"])
    signed = [weight for weight in weights["decoder"] if weight.dtype == np.int8]  # of the LSTM
    assert signed and all(np.abs(weight.astype(int)).max() <= 64 for weight in signed)
    assert metadata(tmp_path / "encoder.int8.onnx").items() >= metadata(tmp_path / "encoder.onnx").items()
    assert (tmp_path / "joiner.int8.onnx").read_bytes() == (tmp_path / "joiner.onnx").read_bytes()
    features, lengths = torch.randn(1, 32, 83), torch.tensor([83])
    states = torch.randn(1, 1, 20), torch.randn(1, 1, 20)
    tokens = torch.tensor([[3, 5, 7]], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    for network, given in (("encoder", (features, lengths)), ("decoder", (*tokens, *states))):
        exact, rough = (run(tmp_path / f"{network}{kind}.onnx", *given)[0] for kind in ("", ".int8"))
        difference = np.abs(exact - rough).max()
        assert 0 < difference < 0.05 * np.abs(exact).max(), network  # 0.01 seen in both
    export_sherpa_onnx(pair, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES  # none of an earlier export stays


def test_the_model_is_left_as_it_is(shared_pair, batch, tmp_path):
    pair = shared_pair("shared_kd", STOCK, student=lstm())
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    random_state = torch.random.get_rng_state()
    export_sherpa_onnx(pair, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    pair.training_step(batch, 0)["loss"].backward()
    assert pair.student_encoder.layers[0].weight_hr_l0.grad.abs().sum() > 0


def test_a_failed_export_leaves_nothing(shared_pair, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("disk full")

    monkeypatch.setattr("nemo_codert.export.sherpa_onnx._write_tokens", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        export_sherpa_onnx(shared_pair(), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file: sherpa-onnx takes a folder"):
        export_sherpa_onnx(shared_pair(), tmp_path / "file")


# Of the preprocessor, what sherpa-onnx says of it.
FOREIGN_FEATURES = {
    "window_stride": (0.02, "is 0.02, sherpa-onnx has 0.01 only"),
    "window_size": (0.02, "is 0.02, sherpa-onnx has 0.025 only"),
    "n_fft": (1024, "is 1024, sherpa-onnx has 512 at 16000 Hz"),
    "window": ("hamming", "is 'hamming', sherpa-onnx has 'hann' only"),
    "lowfreq": (100, "is 100, sherpa-onnx has 0 only"),
    "highfreq": (4000, "is 4000, sherpa-onnx has 7600.0 or 8000.0 only"),
    "log": (False, "is False, sherpa-onnx has True only"),
    "preemph": (None, "is None, sherpa-onnx has 0.97 only"),
    "mag_power": (1.0, "is 1.0, sherpa-onnx has 2.0 only"),
    "mel_norm": (None, "is None, sherpa-onnx has 'slaney' only"),
    "exact_pad": (True, "is True, sherpa-onnx has False only"),
    "normalize": ("all_features", "is 'all_features', sherpa-onnx has 'NA' or 'per_feature' only"),
    "log_zero_guard_type": ("clamp", "is 'clamp', sherpa-onnx has 'add' only"),
    "log_zero_guard_value": (1e-3, "is 0.001, sherpa-onnx has "),
}


def test_features_that_sherpa_onnx_cannot_compute_are_refused_by_name_all_at_once(make_model, tmp_path):
    folder = tmp_path / "folder"
    pair = make_model(preprocessor={key: value for key, (value, _) in FOREIGN_FEATURES.items()})
    with pytest.raises(ValueError, match="cannot serve this model:\n  - ") as caught:
        export_sherpa_onnx(pair, folder)
    problems = str(caught.value).split("\n  - ")[1:]
    assert len(problems) == len(FOREIGN_FEATURES) and not folder.exists()
    for key, (_, message) in FOREIGN_FEATURES.items():
        assert any(problem.startswith(f"model.preprocessor.{key} {message}") for problem in problems), key


def test_features_that_it_can_compute_are_not_refused(shared_pair, make_model):
    assert front_end_problems(shared_pair()) == []
    for changes in ({"highfreq": 8000}, {"highfreq": 7600, "features": 32, "n_fft": None}):
        assert front_end_problems(make_model(preprocessor=changes)) == []


def test_every_fault_of_the_networks_is_told_at_once(make_model, shared_pair, tmp_path):
    with pytest.raises(ValueError) as caught:
        front_end = {"preemph": 0.9, "window": "none"}
        export_sherpa_onnx(make_model(decoder={"blank_as_pad": False}, preprocessor=front_end), tmp_path)
    assert str(caught.value).count("\n  - ") == 3
    for part in ("preprocessor.preemph is 0.9", "window is 'none'", "blank_as_pad is false"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="projected or normalised LSTM"):
        export_sherpa_onnx(make_model(decoder={"prednet": {"rnn_hidden_size": 24}}), tmp_path)
    stateless = StatelessTransducerDecoder(prednet={"pred_hidden": 20, "context_size": 1}, vocab_size=32)
    networks = networks_of(shared_pair())
    (problem,) = network_problems(Transducer(networks.encoder, stateless, networks.joint))
    assert problem == "model.decoder is StatelessTransducerDecoder, sherpa-onnx runs NeMo's RNNTDecoder only"


def cache_aware(**changes) -> dict:
    return {
        **conformer(layers=2, channels=16),
        "att_context_style": "chunked_limited",
        "att_context_size": [8, 1],
        "conv_context_size": "causal",
        "causal_downsampling": True,
        **changes,
    }


@pytest.mark.parametrize(
    "encoder, front_end, message",
    [
        ({}, {}, "normalize is 'per_feature', sherpa-onnx's online recognizer has 'NA' only"),
        (
            {},
            {"normalize": "NA", "highfreq": 7600},
            "highfreq is 7600, sherpa-onnx's online recognizer has 8000.0 only",
        ),
        ({"att_context_size": [-1, 1]}, {"normalize": "NA"}, r"att_context_size is \[-1, 1\]: the cache of a stream"),
    ],
)
def test_streams_that_the_online_recognizer_cannot_serve_are_refused(
    make_model, tmp_path, encoder, front_end, message
):
    with pytest.raises(ValueError, match=message):
        export_sherpa_onnx(make_model(student=cache_aware(**encoder), preprocessor=front_end), tmp_path)


def test_an_online_recognizer_of_another_sample_rate_is_refused(make_model):
    problems = front_end_problems(make_model(sample_rate=8000, preprocessor={"sample_rate": 8000, "n_fft": 256}), True)
    assert any("sample_rate is 8000, sherpa-onnx's online recognizer has 16000 only" in line for line in problems)


@torch.no_grad()
def test_the_windows_of_a_stream_make_the_frames_of_the_whole_utterance(make_model, tmp_path):
    pair = make_model(student=cache_aware(), preprocessor={"normalize": "NA"}).eval()
    export_sherpa_onnx(pair, tmp_path)
    found = {key: int(value) for key, value in metadata(tmp_path / "encoder.onnx").items() if value.isdigit()}
    # two frames of 4 a chunk, after the 5 feature frames that their convolutions look back to
    assert (found["chunk_shift"], found["window_size"]) == (8, 13)
    features, window, shift = torch.randn(2, 32, 8 * 12 + 5), found["window_size"], found["chunk_shift"]
    lengths = torch.full((2,), features.shape[2])
    encoded = pair.student_encoder(audio_signal=features, length=lengths)[0]
    expected = encoder_logits(pair.student_joint, encoded).transpose(1, 2)
    shapes = [[found[f"{name}_dim{i}"] for i in (1, 2, 3)] for name in ("cache_last_channel", "cache_last_time")]
    caches, frames = [*(torch.zeros(2, *shape) for shape in shapes), torch.zeros(2).long()], []
    for start in range(0, features.shape[2] - window + 1, shift):
        inputs = (features[:, :, start : start + window], torch.full((2,), window), *caches)
        frame, _, *caches = map(torch.from_numpy, run(tmp_path / "encoder.onnx", *inputs))
        frames.append(frame)
    assert [frame.shape[2] for frame in frames] == [4] + [2] * 11  # the first window has nothing before it to drop
    streamed = torch.cat(frames, dim=2)
    assert streamed.shape == expected.shape
    # of the table of positions, 640 kB here, only what a window can ask for is in the file
    assert (tmp_path / "encoder.onnx").stat().st_size < 300_000 < pair.student_encoder.pos_enc.pe.nbytes
    np.testing.assert_allclose(streamed.numpy(), expected.numpy(), **CLOSE)


def test_int8_without_onnxruntime_is_refused_before_anything_is_written(shared_pair, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime.quantization", None)
    with pytest.raises(ValueError, match="int8: onnxruntime is not installed: pip install"):
        export_sherpa_onnx(shared_pair(), tmp_path / "folder", int8=True)
    assert not (tmp_path / "folder").exists()


def test_a_stock_copy_exports_the_joint_it_has(shared_pair, tmp_path):
    export_sherpa_onnx(stock_of(shared_pair("shared_kd", ADDITIVE)), tmp_path)
    assert "Relu" in {node.op_type for node in onnx.load(tmp_path / "joiner.onnx").graph.node}
