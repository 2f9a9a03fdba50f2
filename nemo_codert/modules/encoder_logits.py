"""Logits over the V+1 classes of each side of a joint alone: encoder logits and prediction logits.

For the additive joint these are its two projections. For a stock joint they are its output with the other
projection zeroed, bias included. Dropout is left out, so no random numbers are drawn. A TDT joint's outputs for
durations, which come last, are left out too; `projected_durations` returns them.
B batch, T encoder frames, U target tokens, D channels, V vocabulary without blank, N durations.
"""

import torch
from nemo.collections.asr.modules import ConvASRDecoder, RNNTJoint
from torch import nn
from torch.nn.functional import linear

from nemo_codert.modules.additive_joint import AdditiveRNNTJoint


def encoder_logits(joint: RNNTJoint, encoded: torch.Tensor) -> torch.Tensor:
    """Return the logits of the encoder side alone (E in arXiv:2106.07734, section 2.1).

    Args:
        joint: additive or stock joint.
        encoded: [B, D, T] float, output of the encoder.

    Returns:
        [B, T, V+1], not normalised.

    Example:
        The encoder logits of a stock joint are its output where the prediction side is zero:

        >>> import torch
        >>> from nemo.collections.asr.modules import RNNTJoint
        >>> from nemo_codert.modules import encoder_logits
        >>> jointnet = {"encoder_hidden": 4, "pred_hidden": 3, "joint_hidden": 6, "activation": "relu"}
        >>> joint = RNNTJoint(jointnet, num_classes=2, vocabulary=["a", "b"], log_softmax=False)
        >>> encoded, decoded = torch.randn(1, 4, 5), torch.zeros(1, 3, 1)
        >>> joint.pred.bias.data.zero_()
        tensor([0., 0., 0., 0., 0., 0.])
        >>> whole = joint(encoder_outputs=encoded, decoder_outputs=decoded)  # [B, T, 1, V+1]
        >>> torch.allclose(encoder_logits(joint, encoded), whole[:, :, 0])
        True
    """
    return projected_logits(joint, joint.project_encoder(encoded.transpose(1, 2)))


def prediction_logits(joint: RNNTJoint, decoded: torch.Tensor) -> torch.Tensor:
    """Return the logits of the prediction side alone (G in arXiv:2106.07734, section 2.1).

    Args:
        joint: additive or stock joint.
        decoded: [B, D, U+1] float, output of the prediction network.

    Returns:
        [B, U+1, V+1], not normalised.

    Example:
        >>> import torch
        >>> from nemo_codert.modules import AdditiveRNNTJoint, encoder_logits, prediction_logits
        >>> jointnet = {"encoder_hidden": 4, "pred_hidden": 3}
        >>> joint = AdditiveRNNTJoint(jointnet, num_classes=2, vocabulary=["a", "b"], log_softmax=False)
        >>> encoded, decoded = torch.randn(1, 4, 5), torch.randn(1, 3, 2)
        >>> sides = encoder_logits(joint, encoded)[:, :, None], prediction_logits(joint, decoded)[:, None]
        >>> torch.allclose(joint(encoder_outputs=encoded, decoder_outputs=decoded), sides[0] + sides[1])
        True
    """
    return projected_logits(joint, joint.project_prednet(decoded.transpose(1, 2)))


def joint_logits(joint: RNNTJoint, encoded: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Return raw logits of the whole lattice, dropout included: [B, D, T] and [B, D, U+1] -> [B, T, U+1, V+1].

    NeMo's own `forward` returns log-probabilities on CPU and raw logits on CUDA; these logits are raw on both.
    """
    encoder_part = joint.enc(encoded.transpose(1, 2)).unsqueeze(2)  # [B, T, 1, H]
    prediction_part = joint.pred(decoded.transpose(1, 2)).unsqueeze(1)  # [B, 1, U+1, H]
    return token_logits(joint, joint.joint_net(encoder_part + prediction_part))  # [B, T, U+1, V+1]


def projected_logits(joint: RNNTJoint, projected: torch.Tensor) -> torch.Tensor:
    """Return the logits of one projection: [B, T, H] -> [B, T, V+1], `projected` itself for an additive joint."""
    if isinstance(joint, AdditiveRNNTJoint):
        return token_logits(joint, projected)
    hidden, output = _hidden(joint, projected)
    return token_logits(joint, output(hidden))


def projected_durations(joint: RNNTJoint, projected: torch.Tensor) -> torch.Tensor:
    """Return the logits of a TDT joint's durations of one projection: [B, T, H] -> [B, T, N]."""
    if isinstance(joint, AdditiveRNNTJoint):
        return projected[..., -joint.num_extra_outputs :]
    hidden, output = _hidden(joint, projected)
    return linear(hidden, output.weight[-joint.num_extra_outputs :], output.bias[-joint.num_extra_outputs :])


def _hidden(joint: RNNTJoint, projected: torch.Tensor) -> tuple[torch.Tensor, nn.Linear]:
    """Return a stock joint's hidden units without dropout, and its output layer."""
    projected = projected.clone()  # NeMo's activation works in place, and the loss needs the projection too
    *layers, output = joint.joint_net
    for layer in layers:
        projected = projected if isinstance(layer, nn.Dropout) else layer(projected)
    return projected, output


def token_logits(joint: RNNTJoint, outputs: torch.Tensor) -> torch.Tensor:
    """Return the outputs [..., V+1] for tokens and blank of [..., V+1+N]; a TDT joint has N more for durations."""
    return outputs[..., : -joint.num_extra_outputs] if joint.num_extra_outputs else outputs


def num_token_classes(joint: RNNTJoint) -> int:
    """Return V+1, the classes of a joint without a TDT joint's durations; the blank is the last of them."""
    return joint.num_classes_with_blank - joint.num_extra_outputs


def ctc_logits(head: ConvASRDecoder, encoded: torch.Tensor) -> torch.Tensor:
    """Return raw logits of a CTC head, whose classes are the joint's: [B, D, T] -> [B, T, V+1], blank last."""
    return head.decoder_layers(encoded).transpose(1, 2)
