"""The CTC head of a hybrid RNN-T/CTC model: a linear layer over the encoder's frames, with the joint's classes."""

import copy

from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.collections.asr.modules import ConvASRDecoder, RNNTJoint
from omegaconf import DictConfig, open_dict


def build_ctc_head(block: DictConfig, joint: RNNTJoint) -> ConvASRDecoder:
    """Build the head that `aux_ctc.decoder` describes, as NeMo's hybrid models build it beside `joint`."""
    block = copy.deepcopy(block)
    with open_dict(block):
        block.feat_in, block.num_classes = joint.encoder_hidden, len(joint.vocabulary)
        block.vocabulary = list(joint.vocabulary)
    return EncDecRNNTBPEModel.from_config_dict(block)
