"""NeMo's ONNX export of students under onnxruntime, at sizes other than the traced ones."""

import numpy as np
import pytest
import torch

from nemo_codert.export.stock_file import export_onnx, stock_of
from nemo_codert.modules.encoder_logits import joint_logits

ADDITIVE = "nemo_codert.modules.AdditiveRNNTJoint"
LSTM = {
    "_target_": "nemo.collections.asr.modules.RNNEncoder",
    "feat_in": 32,
    "n_layers": 2,
    "d_model": 24,
    "proj_size": 16,
    "rnn_type": "lstm",
    "bidirectional": False,
    "subsampling": "striding",
    "subsampling_factor": 4,
    "subsampling_conv_channels": 8,
    "dropout": 0.0,
}

onnxruntime = pytest.importorskip("onnxruntime")


def run(path, **inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {port.name for port in session.get_inputs()}
    assert wanted == set(inputs)
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


@pytest.mark.parametrize("student, form", [(None, "narrow"), (LSTM, "auto")], ids=["conformer", "lstm"])
def test_encoder_and_joint_equal_torch_at_other_lengths_and_batch_sizes(shared_pair, tmp_path, student, form):
    stock = stock_of(shared_pair("shared_kd", ADDITIVE, student=student), joint=form)
    assert stock.joint.joint_hidden == {"auto": 2 * 33, "narrow": 16 + 20}[form]
    before = {name: value.clone() for name, value in stock.state_dict().items()}
    encoder_path, joint_path = export_onnx(stock, tmp_path / "student.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decoder_joint-student.onnx", "encoder-student.onnx"]
    assert (encoder_path.name, joint_path.name) == ("encoder-student.onnx", "decoder_joint-student.onnx")

    for batch, frames in ((1, 83), (3, 161)):
        features, lengths = torch.randn(batch, 32, frames), torch.arange(frames, frames - 20 * batch, -20)
        with torch.no_grad():
            encoded, encoded_len = stock.encoder(audio_signal=features, length=lengths)[:2]
        found, found_len = run(encoder_path, audio_signal=features, length=lengths)
        assert found_len.tolist() == encoded_len.tolist()
        for i, length in enumerate(encoded_len.tolist()):
            # float32 through two layers and layer norms; 1.1e-6 seen
            np.testing.assert_allclose(found[i, :, :length], encoded[i, :, :length].numpy(), atol=1e-5, rtol=1e-5)

        tokens = torch.randint(0, 32, (batch, 3), dtype=torch.int32)
        states = [torch.randn(1, batch, 20) for _ in range(2)]
        with torch.no_grad():
            decoded, new_states = stock.decoder.predict(tokens.long(), state=states, add_sos=False)
            logits = joint_logits(stock.joint, encoded, decoded.transpose(1, 2))
        inputs = {"encoder_outputs": encoded, "targets": tokens, "target_length": torch.full((batch,), 3).int()}
        outputs = run(joint_path, **inputs, input_states_1=states[0], input_states_2=states[1])
        # one LSTM step and two matrix products in float32; 1.2e-7 seen
        np.testing.assert_allclose(outputs[0], logits.numpy(), atol=1e-5, rtol=1e-5)
        for state, expected in zip(outputs[2:], new_states, strict=True):
            np.testing.assert_allclose(state, expected.numpy(), atol=1e-5, rtol=1e-5)

    assert all(parameter.requires_grad for parameter in stock.parameters())  # NeMo's export would have frozen them
    assert not stock.decoder._rnnt_export
    after = stock.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_a_pair_still_trains_after_its_student_was_exported(shared_pair, batch, tmp_path):
    pair = shared_pair("shared_kd", ADDITIVE, student=LSTM)
    random_state = torch.random.get_rng_state()
    export_onnx(pair, tmp_path / "student.onnx")
    assert torch.equal(torch.random.get_rng_state(), random_state)
    loss = pair.training_step(batch, 0)["loss"]
    loss.backward()
    assert pair.student_encoder.layers[0].weight_hr_l0.grad.abs().sum() > 0


def test_the_suffix_must_be_onnx(shared_pair, tmp_path):
    with pytest.raises(ValueError, match=r"student\.ts does not end in \.onnx"):
        export_onnx(shared_pair(), tmp_path / "student.ts")


def test_a_failed_export_leaves_nothing(shared_pair, tmp_path, monkeypatch):
    def fail(self, output, **kwargs):
        open(output, "w").write("half")
        raise RuntimeError("disk full")

    monkeypatch.setattr("nemo.collections.asr.models.EncDecRNNTBPEModel.export", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        export_onnx(shared_pair().student_model(), tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []
