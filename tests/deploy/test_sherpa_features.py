"""How near sherpa-onnx's features are to NeMo's: what docs/deployment.md says of them is read out of the real program.

sherpa-onnx shows no features, so a probe is served as if it were a model: its encoder hands out every feature of every
frame one after the other, and its joint the number of the step that the value lies on.
"""

import numpy as np
import onnx
import pytest
import torch
from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import SAMPLE_RATE, tone

sherpa_onnx = pytest.importorskip(
    "sherpa_onnx", reason='sherpa-onnx is not installed: pip install "nemo_codert[deploy]"'
)
pytestmark = pytest.mark.deploy

FEATURES, STEP, STEPS = 20, 0.01, 1600  # of normalised features: -8 to 8
LOWEST, TOKENS_A_FRAME = -8.0, 10  # the probe says no blank, so sherpa-onnx takes as many as it allows


def _graph(path, nodes, inputs, outputs, constants, metadata=None):
    ports = [[helper.make_tensor_value_info(name, *kind) for name, kind in ends.items()] for ends in (inputs, outputs)]
    arrays = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    graph = helper.make_graph([helper.make_node(*node[:3], **node[3]) for node in nodes], "probe", *ports, arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: str(value) for key, value in (metadata or {}).items()})
    onnx.checker.check_model(model)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    number, token = TensorProto.FLOAT, TensorProto.INT32
    metadata = {"vocab_size": STEPS, "normalize_type": "per_feature", "pred_rnn_layers": 1, "pred_hidden": 1}
    metadata |= {"subsampling_factor": 1, "feat_dim": FEATURES, "model_type": "EncDecRNNTBPEModel"}
    _graph(
        folder / "encoder.onnx",
        [
            ("Transpose", ["signal"], ["frames"], {"perm": [0, 2, 1]}),
            ("Reshape", ["frames", "shape"], ["encoded"], {}),
            ("Mul", ["length", "features"], ["encoded_len"], {}),
        ],
        {"signal": (number, ["B", FEATURES, "T"]), "length": (TensorProto.INT64, ["B"])},
        {"encoded": (number, ["B", 1, "N"]), "encoded_len": (TensorProto.INT64, ["B"])},
        {"shape": np.array([1, 1, -1]), "features": np.array([FEATURES])},
        metadata,
    )
    states = {"state_1": (number, [1, "B", 1]), "state_2": (number, [1, "B", 1])}
    _graph(
        folder / "decoder.onnx",
        [
            ("Cast", ["targets"], ["value"], {"to": number}),
            ("Unsqueeze", ["value", "axis"], ["decoded"], {}),
            ("Identity", ["target_length"], ["decoded_len"], {}),
            *(("Identity", [name], [f"new_{name}"], {}) for name in states),
        ],
        {"targets": (token, ["B", "U"]), "target_length": (token, ["B"]), **states},
        {
            "decoded": (number, ["B", 1, "U"]),
            "decoded_len": (token, ["B"]),
            **{f"new_{name}": kind for name, kind in states.items()},
        },
        {"axis": np.array([1])},
    )
    steps = np.append(LOWEST + STEP * np.arange(STEPS), 1e6).astype(np.float32)
    _graph(
        folder / "joiner.onnx",
        [
            ("Mul", ["decoded", "zero"], ["nothing"], {}),  # an input must be used
            ("Add", ["encoded", "nothing"], ["value"], {}),
            ("Unsqueeze", ["value", "axis"], ["values"], {}),
            ("Sub", ["values", "steps"], ["difference"], {}),
            ("Abs", ["difference"], ["distance"], {}),
            ("Neg", ["distance"], ["logits"], {}),
        ],
        {"encoded": (number, ["B", 1, "T"]), "decoded": (number, ["B", 1, "U"])},
        {"logits": (number, ["B", 1, 1, STEPS + 1])},
        {"steps": steps, "axis": np.array([3]), "zero": np.zeros(1, dtype=np.float32)},
    )
    tokens = [*(f"t{i} {i}" for i in range(STEPS)), f"<blk> {STEPS}"]
    (folder / "tokens.txt").write_text("\n".join(tokens) + "\n")
    files = {name: str(folder / f"{name}.onnx") for name in ("encoder", "decoder", "joiner")}
    return sherpa_onnx.OfflineRecognizer.from_transducer(
        **files, tokens=str(folder / "tokens.txt"), model_type="nemo_transducer"
    )


def sherpa_features(probe, signal):
    """[S] -> [T, F]."""
    stream = probe.create_stream()
    stream.accept_waveform(SAMPLE_RATE, signal)
    probe.decode_stream(stream)
    values = [LOWEST + STEP * int(token[1:]) for token in stream.result.tokens[::TOKENS_A_FRAME]]
    return np.array(values).reshape(-1, FEATURES)


def nemo_features(signal, highfreq):
    """[S] -> [T, F], with the settings that the export asks for."""
    settings = {"window_size": 0.025, "window_stride": 0.01, "n_fft": 512, "dither": 0.0, "pad_to": 0}
    front_end = AudioToMelSpectrogramPreprocessor(
        sample_rate=SAMPLE_RATE, features=FEATURES, highfreq=highfreq, normalize="per_feature", **settings
    ).eval()
    signal = torch.from_numpy(signal)[None]
    features, length = front_end(input_signal=signal, length=torch.tensor([signal.shape[1]]))
    return features[0, :, : int(length[0])].T.numpy()


def test_features_agree_to_what_the_documentation_says(probe):
    generator = np.random.default_rng(0)
    signal = np.pad(tone(0.4, seed=1), 1600)
    signal = (signal + 0.01 * generator.standard_normal(len(signal))).astype(np.float32)
    lead = np.zeros(SAMPLE_RATE // 200, dtype=np.float32)  # 5 ms
    found = {}
    for highfreq in (7600, None):
        expected = nemo_features(signal, highfreq)
        for name, heard in (("as it is", signal), ("after 5 ms of silence", np.concatenate([lead, signal]))):
            features = sherpa_features(probe, heard)[: len(expected)]
            assert len(features) == len(expected)
            found[highfreq, name] = np.abs(features - expected).mean()
            print(f"highfreq {highfreq}, {name}: mean difference {found[highfreq, name]:.3f} standard deviations")
    # sherpa-onnx: another window and pre-emphasis frame by frame; filters up to 7600 Hz; frames 5 ms later
    assert found[7600, "after 5 ms of silence"] < 0.1
    assert found[7600, "as it is"] < 0.4 and found[None, "after 5 ms of silence"] < 0.4
    assert found[7600, "after 5 ms of silence"] < 0.5 * min(found[7600, "as it is"], found[None, "as it is"])
