"""What a joiner that only adds saves in greedy decoding under onnxruntime; docs/deployment.md has these figures."""

import copy
import time

import numpy as np
import onnx
import pytest
import torch
from nemo.collections.asr.modules import RNNTDecoder, RNNTJoint

from nemo_codert.export.sherpa_onnx import PredictionGraph, export_prediction, sum_joiner
from nemo_codert.modules import AdditiveRNNTJoint, to_stock_joint

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.deploy, pytest.mark.slow]

# The student of conf/librispeech_conformer.yaml, with 1024 word pieces
WIDTH, PREDICTION, JOINT, PIECES = 176, 640, 640, 1024
FRAMES, EVERY, ROUNDS = 60, 4, 5  # a token in every fourth frame, as in read speech at 40 ms a frame


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def files(folder, joint: RNNTJoint, decoder: RNNTDecoder):
    """The prediction network and the joint of a sherpa-onnx folder beside that of the decoder alone."""
    additive = isinstance(joint, AdditiveRNNTJoint)
    folder.mkdir()
    alone = folder.parent / "decoder.onnx"
    if additive:
        export_prediction(PredictionGraph(decoder, joint.pred), folder / "decoder.onnx")
    elif not alone.is_file():
        export_prediction(PredictionGraph(decoder, torch.nn.Identity()), alone)
    if additive:
        onnx.save(sum_joiner(joint.num_classes_with_blank), folder / "joiner.onnx")
    else:
        joint.export(str(folder / "joiner.onnx"), onnx_opset_version=17)
    return session(folder / "decoder.onnx" if additive else alone), session(folder / "joiner.onnx")


def decode(decoder, joiner, encoded: np.ndarray) -> None:
    """[1, D, T], a joint step a frame and, where a token comes, one of the prediction network and one more."""
    names = [port.name for port in decoder.get_inputs()]
    joint_names = [port.name for port in joiner.get_inputs()]
    states = [np.zeros((1, 1, PREDICTION), dtype=np.float32)] * 2
    last, length = np.array([[PIECES]], dtype=np.int32), np.ones(1, dtype=np.int32)
    predicted, _, *states = decoder.run(None, dict(zip(names, (last, length, *states), strict=True)))
    for t in range(encoded.shape[2]):
        frame = encoded[:, :, t : t + 1]
        (logits,) = joiner.run(None, dict(zip(joint_names, (frame, predicted), strict=True)))
        if t % EVERY == 0:
            last = np.array([[int(logits.argmax()) % PIECES]], dtype=np.int32)
            predicted, _, *states = decoder.run(None, dict(zip(names, (last, length, *states), strict=True)))
            (logits,) = joiner.run(None, dict(zip(joint_names, (frame, predicted), strict=True)))
        logits.argmax()


@torch.no_grad()
def test_a_sum_is_the_fastest_joiner(tmp_path):
    jointnet = {"encoder_hidden": WIDTH, "pred_hidden": PREDICTION, "joint_hidden": JOINT, "activation": "relu"}
    additive = AdditiveRNNTJoint(jointnet=dict(jointnet), num_classes=PIECES).eval()
    decoder = RNNTDecoder(prednet={"pred_hidden": PREDICTION, "pred_rnn_layers": 1}, vocab_size=PIECES).eval()
    joints = {
        "sum": additive,
        "compact": to_stock_joint(additive, "compact").eval(),
        "exact": to_stock_joint(additive, "exact").eval(),
        f"stock, {JOINT} hidden units": RNNTJoint(jointnet=jointnet, num_classes=PIECES).eval(),
    }
    sessions = {
        name: files(tmp_path / str(i), copy.deepcopy(joint), decoder) for i, (name, joint) in enumerate(joints.items())
    }
    encoded = torch.randn(1, WIDTH, FRAMES)
    seconds = {name: [] for name in joints}
    for _ in range(ROUNDS + 1):  # in turns; the first round is a warm-up
        for name, parts in sessions.items():
            start = time.perf_counter()
            if name == "sum":  # the projection of all frames is part of its encoder
                decode(*parts, additive.enc(encoded.transpose(1, 2)).transpose(1, 2).numpy())
            else:
                decode(*parts, encoded.numpy())
            seconds[name].append(time.perf_counter() - start)
    median = {name: float(np.median(values[1:])) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name}: {1e6 * value / FRAMES:.0f} microseconds a frame, {value / median['sum']:.1f} times the sum")
    assert median["sum"] < min(median["compact"], median["exact"])
