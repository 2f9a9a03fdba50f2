"""The `narrow` stock joint: its width, and what it computes on what real encoders and prediction networks put out."""

import copy

import pytest
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.collections.asr.modules import RNNTDecoder, RNNTJoint
from torch import nn

from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.modules import AdditiveRNNTJoint, encoder_logits, to_stock_joint
from nemo_codert.modules.encoder_logits import joint_logits
from nemo_codert.modules.output_range import output_range
from tests.conftest import conformer, lstm

ENCODERS = {"conformer": conformer(), "lstm": lstm()}
PREDICTIONS = {"lstm": {}, "projected": {"rnn_hidden_size": 30}}


def stretch(encoder: nn.Module) -> None:
    """Wide layer norms, as training may leave them: gains up to 3 of either sign, and biases."""
    for layer in encoder.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.uniform_(layer.weight, -3.0, 3.0), nn.init.normal_(layer.bias)


@torch.no_grad()
def term_size(narrow: RNNTJoint) -> float:
    """The largest sum of absolute values that an output of the joint may be made of, each unit half open."""
    return float((narrow.joint_net[-1].weight.abs() @ narrow.enc.bias + narrow.joint_net[-1].bias.abs()).max())


def make_joint(enc_hidden: int, pred_hidden: int, V: int) -> AdditiveRNNTJoint:
    jointnet = {"encoder_hidden": enc_hidden, "pred_hidden": pred_hidden, "joint_hidden": 8, "activation": "relu"}
    return AdditiveRNNTJoint(jointnet=jointnet, num_classes=V, vocabulary=[str(v) for v in range(V)])


@pytest.mark.parametrize("stretched", [False, True])
@pytest.mark.parametrize("encoder, prediction", [("conformer", "projected"), ("lstm", "lstm")])
@torch.no_grad()
def test_outputs_equal_the_additive_joints_on_real_frames(shared_pair, batch, encoder, prediction, stretched):
    pair = shared_pair(student=ENCODERS[encoder], decoder={"prednet": PREDICTIONS[prediction]}).eval()
    if stretched:
        stretch(pair.student_encoder)
    branch, narrow = pair.student_transducer, pair.student_model("narrow").joint
    signal, signal_len, transcript, transcript_len = batch
    features, features_len = pair.extract_features(signal, signal_len)
    encoded, _ = branch.encoder(audio_signal=features, length=features_len)
    decoded, _, _ = branch.decoder(targets=transcript, target_length=transcript_len)
    assert type(narrow) is RNNTJoint and narrow.joint_hidden == 16 + 20
    found, expected = joint_logits(narrow, encoded, decoded), joint_logits(branch.joint, encoded, decoded)
    # Float32 sums of 36 terms; their sizes, not the logits', set the rounding.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * term_size(narrow))
    assert expected.std() > 0.1


@torch.no_grad()
def test_in_float64_nothing_but_rounding_is_lost(make_model, batch):
    pair = make_model().eval()
    stretch(pair.student_encoder)
    features, features_len = pair.extract_features(*batch[:2])
    branch = pair.double().student_transducer
    encoded, _ = branch.encoder(audio_signal=features.double(), length=features_len)
    decoded, _, _ = branch.decoder(targets=batch[2], target_length=batch[3])
    ranges = {"encoder_range": output_range(branch.encoder), "prediction_range": output_range(branch.decoder)}
    narrow = to_stock_joint(branch.joint, "narrow", **ranges)
    found, expected = joint_logits(narrow, encoded, decoded), joint_logits(branch.joint, encoded, decoded)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15 * term_size(narrow))


@pytest.mark.parametrize("encoder_known", [False, True])
@pytest.mark.parametrize("prediction_known", [False, True])
@torch.no_grad()
def test_a_side_of_unknown_range_takes_two_units_for_a_channel(encoder_known, prediction_known):
    joint = make_joint(6, 5, 9)
    encoded, decoded = 40 * torch.randn(2, 6, 7), 40 * torch.randn(2, 5, 4)
    ranges = {"encoder_range": encoded.abs().amax((0, 2)) if encoder_known else None}
    ranges["prediction_range"] = decoded.abs().amax((0, 2)) if prediction_known else None
    narrow = to_stock_joint(joint, "narrow", **ranges)
    assert narrow.joint_hidden == (6 if encoder_known else 12) + (5 if prediction_known else 10)
    expected = joint_logits(joint, encoded, decoded)
    # Float32 sums of 11 terms of size 40.
    torch.testing.assert_close(joint_logits(narrow, encoded, decoded), expected, rtol=0, atol=1e-4)


def test_a_stateless_prediction_network_takes_two_units_for_a_channel(make_config):
    cfg = make_config()
    cfg.decoder = {
        "_target_": "nemo.collections.asr.modules.StatelessTransducerDecoder",
        "prednet": {"pred_hidden": 20, "context_size": 2, "dropout": 0.0},
        "context_size": 2,
    }
    assert EncDecCoDERTBPEModel(cfg).student_model("narrow").joint.joint_hidden == 16 + 2 * 20


@torch.no_grad()
def test_the_encoder_logits_of_a_narrow_joint_are_the_additive_ones(shared_pair, batch):
    # An exported model may become the teacher of another pair: its prediction bias is a constant of the logits.
    pair = shared_pair().eval()
    features, features_len = pair.extract_features(*batch[:2])
    encoded, _ = pair.student_encoder(audio_signal=features, length=features_len)
    joint, narrow = pair.student_joint, pair.student_model("narrow").joint
    expected = encoder_logits(joint, encoded) + joint.pred.bias
    torch.testing.assert_close(encoder_logits(narrow, encoded), expected, rtol=0, atol=1e-6 * term_size(narrow))


# ---- the rounding that docs/decisions.md states --------------------------------------------------------------------


def full_size(stretched: bool) -> tuple[AdditiveRNNTJoint, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Additive joint with 50 frames and 20 steps of an untrained 144-channel Conformer and a 640-channel LSTM, V 1024.

    The ranges c of the encoder's channels are 12.1, or up to 36 + 3 where its layer norms are stretched.
    """
    encoder = EncDecRNNTBPEModel.from_config_dict({**conformer(layers=2, channels=144), "n_heads": 4}).eval()
    if stretched:
        stretch(encoder)
    prednet = {"pred_hidden": 640, "pred_rnn_layers": 1, "t_max": None, "dropout": 0.0}
    decoder = RNNTDecoder(prednet=prednet, vocab_size=1024).eval()
    encoded, _ = encoder(audio_signal=torch.randn(1, 32, 200), length=torch.tensor([200]))
    decoded, _, _ = decoder(targets=torch.randint(0, 1024, (1, 20)), target_length=torch.tensor([20]))
    ranges = {"encoder_range": output_range(encoder), "prediction_range": output_range(decoder)}
    return make_joint(144, 640, 1024), encoded, decoded, ranges


def errors(joint: RNNTJoint, encoded: torch.Tensor, decoded: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Largest distance from `expected`: in float32, in autocast bfloat16, and with int8 linear layers on the CPU."""
    found = {"float32": joint_logits(joint, encoded, decoded)}
    with torch.autocast("cpu", torch.bfloat16):
        found["bfloat16"] = joint_logits(joint, encoded, decoded)
    int8 = torch.ao.quantization.quantize_dynamic(joint, {nn.Linear}, dtype=torch.qint8)
    found["int8"] = joint_logits(int8, encoded, decoded)
    return {name: float((logits.double() - expected).abs().max()) for name, logits in found.items()}


@pytest.mark.parametrize("stretched", [False, True])
@torch.no_grad()
def test_the_rounding_of_each_form_is_what_the_documentation_says(stretched):
    joint, encoded, decoded, ranges = full_size(stretched)
    expected = joint_logits(copy.deepcopy(joint).double(), encoded.double(), decoded.double())
    forms = {form: to_stock_joint(joint, form, **ranges) for form in ("exact", "compact", "narrow")}
    assert forms["narrow"].joint_hidden == 784
    found = {name: errors(form, encoded, decoded, expected) for name, form in {"additive": joint, **forms}.items()}
    print(f"\nc up to {ranges['encoder_range'].max():.0f}, logits up to {expected.abs().max():.1f}; largest errors:")
    for name, own in found.items():
        print(f"  {name:8}", *[f" {precision} {error:.1e}" for precision, error in own.items()])
    assert max(found[form]["float32"] for form in ("additive", "exact", "compact")) < 1e-5
    assert found["narrow"]["float32"] < 1e-4
    for precision in ("bfloat16", "int8"):  # why `narrow` is not for these
        assert found["narrow"][precision] > 3 * found["compact"][precision]
