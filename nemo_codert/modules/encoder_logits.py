"""The encoder-logit head: what each half of a joint says on its own, as logits over the V+1 classes.

For the additive joint these are its two projections. For a stock joint they are its output with the other
projection zeroed, bias included. Dropout is left out, so the head draws no random numbers. A TDT joint's outputs for
durations, which come last, are left out too.
B batch, T encoder frames, U target tokens, D channels, V vocabulary without blank.
"""

import torch
from nemo.collections.asr.modules import ConvASRDecoder, RNNTJoint
from torch import nn

from nemo_codert.modules.additive_joint import AdditiveRNNTJoint


def encoder_logits(joint: RNNTJoint, encoded: torch.Tensor) -> torch.Tensor:
    """Raw logits of the encoder alone: `encoded` [B, D, T] -> [B, T, V+1] (E in arXiv:2106.07734, section 2.1)."""
    return projected_logits(joint, joint.project_encoder(encoded.transpose(1, 2)))


def prediction_logits(joint: RNNTJoint, decoded: torch.Tensor) -> torch.Tensor:
    """Raw logits of the prediction network alone: `decoded` [B, D, U+1] -> [B, U+1, V+1]."""
    return projected_logits(joint, joint.project_prednet(decoded.transpose(1, 2)))


def joint_logits(joint: RNNTJoint, encoded: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Raw logits of the whole lattice, dropout included: [B, D, T] and [B, D, U+1] -> [B, T, U+1, V+1].

    NeMo's own `forward` returns log-probabilities on CPU and raw logits on CUDA; this is the same on both.
    """
    encoder_part = joint.enc(encoded.transpose(1, 2)).unsqueeze(2)  # [B, T, 1, H]
    prediction_part = joint.pred(decoded.transpose(1, 2)).unsqueeze(1)  # [B, 1, U+1, H]
    return token_logits(joint, joint.joint_net(encoder_part + prediction_part))  # [B, T, U+1, V+1]


def projected_logits(joint: RNNTJoint, projected: torch.Tensor) -> torch.Tensor:
    """The logits of one projection alone: [B, T, H] -> [B, T, V+1], `projected` itself for an additive joint."""
    if isinstance(joint, AdditiveRNNTJoint):
        return projected
    projected = projected.clone()  # NeMo's activation is in place, and the loss wants the projection too
    for layer in joint.joint_net:
        projected = projected if isinstance(layer, nn.Dropout) else layer(projected)
    return token_logits(joint, projected)


def token_logits(joint: RNNTJoint, outputs: torch.Tensor) -> torch.Tensor:
    """What a joint's outputs [..., V+1+N] say about tokens and blank [..., V+1]: a TDT joint has N for durations."""
    return outputs[..., : -joint.num_extra_outputs] if joint.num_extra_outputs else outputs


def ctc_logits(head: ConvASRDecoder, encoded: torch.Tensor) -> torch.Tensor:
    """Raw logits of a CTC head, whose classes are the joint's: [B, D, T] -> [B, T, V+1], blank last."""
    return head.decoder_layers(encoded).transpose(1, 2)
