"""The CTC head of a hybrid RNN-T/CTC model: a linear layer over the encoder's frames, with the joint's classes."""

import copy

import torch
from nemo.collections.asr.losses.ctc import CTCLoss
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.collections.asr.modules import ConvASRDecoder, RNNTJoint
from omegaconf import DictConfig, open_dict

from nemo_codert.modules.transducer import Encoded


def build_ctc_head(block: DictConfig, joint: RNNTJoint) -> ConvASRDecoder:
    """The head that `aux_ctc.decoder` describes, as NeMo's hybrid models build it beside `joint`."""
    block = copy.deepcopy(block)
    with open_dict(block):
        block.feat_in, block.num_classes = joint.encoder_hidden, len(joint.vocabulary)
        block.vocabulary = list(joint.vocabulary)
    return EncDecRNNTBPEModel.from_config_dict(block)


def ctc_loss(
    head: ConvASRDecoder, block: DictConfig, branch: Encoded, transcript: torch.Tensor, transcript_len: torch.Tensor
) -> torch.Tensor:
    """Scalar CTC loss of a head, as in NeMo's hybrid models: `transcript` [B, U], `transcript_len` [B]."""
    reduction = block.get("ctc_reduction", "mean_batch")
    loss = CTCLoss(num_classes=head.num_classes_with_blank - 1, zero_infinity=True, reduction=reduction)
    return loss(
        log_probs=head(encoder_output=branch.encoded),
        targets=transcript,
        input_lengths=branch.encoded_len,
        target_lengths=transcript_len,
    )


def mixed_loss(block: DictConfig, rnnt: torch.Tensor, ctc: torch.Tensor) -> torch.Tensor:
    """A hybrid's loss of its two: the CTC loss has the share `ctc_loss_weight`."""
    return (1 - block.ctc_loss_weight) * rnnt + block.ctc_loss_weight * ctc
