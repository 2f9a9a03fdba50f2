"""The encoder-logit head: the joint's output with the other projection silenced."""

import copy

import pytest
import torch
from nemo.collections.asr.modules import RNNTJoint
from torch import nn

from nemo_codert.modules import AdditiveRNNTJoint, encoder_logits, prediction_logits

D_ENC, D_PRED, V = 6, 5, 9


def make_joint(joint_class: type, dropout: float = 0.0, activation: str = "relu") -> RNNTJoint:
    jointnet = {"encoder_hidden": D_ENC, "pred_hidden": D_PRED, "joint_hidden": 7}
    jointnet.update(activation=activation, dropout=dropout)
    return joint_class(jointnet=jointnet, num_classes=V, vocabulary=list("abcdefghi"), log_softmax=False)


def without(projection: str, joint: RNNTJoint) -> RNNTJoint:
    joint = copy.deepcopy(joint)
    for parameter in getattr(joint, projection).parameters():
        nn.init.zeros_(parameter)
    return joint


def test_the_heads_of_an_additive_joint_are_its_projections():
    joint = make_joint(AdditiveRNNTJoint)
    encoded, decoded = torch.randn(2, D_ENC, 4), torch.randn(2, D_PRED, 3)
    assert torch.equal(encoder_logits(joint, encoded), joint.enc(encoded.transpose(1, 2)))
    assert torch.equal(prediction_logits(joint, decoded), joint.pred(decoded.transpose(1, 2)))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("joint_class", [AdditiveRNNTJoint, RNNTJoint])
def test_a_head_is_the_joint_output_with_the_other_projection_zeroed(joint_class, activation):
    joint = make_joint(joint_class, activation=activation)
    encoded, decoded = torch.randn(2, D_ENC, 4), torch.randn(2, D_PRED, 3)
    encoder_only = without("pred", joint)(encoder_outputs=encoded, decoder_outputs=decoded)
    prediction_only = without("enc", joint)(encoder_outputs=encoded, decoder_outputs=decoded)
    # Adding an exact 0 changes nothing; the rows are multiplied in other groups: one float32 rounding of size 1.
    tolerance = dict(rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder_logits(joint, encoded), encoder_only[:, :, 0], **tolerance)
    torch.testing.assert_close(prediction_logits(joint, decoded), prediction_only[:, 0], **tolerance)


def test_the_head_draws_no_random_numbers_whatever_the_dropout():
    joint = make_joint(RNNTJoint, dropout=0.5).train()
    encoded = torch.randn(2, D_ENC, 4)
    before = torch.random.get_rng_state()
    logits = encoder_logits(joint, encoded)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(logits, encoder_logits(joint.eval(), encoded))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_the_head_of_a_stock_joint_has_the_right_gradient(activation):
    joint = make_joint(RNNTJoint, activation=activation).double()
    encoded = torch.randn(2, D_ENC, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: encoder_logits(joint, x), encoded)
