"""The CTC head of a hybrid RNN-T/CTC model: a linear layer over the encoder's frames."""

import copy

from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.collections.asr.modules import ConvASRDecoder, RNNTJoint
from omegaconf import DictConfig, open_dict


def build_ctc_head(block: DictConfig, joint: RNNTJoint, *, own_classes: bool = False) -> ConvASRDecoder:
    """Build the head that `aux_ctc.decoder` describes, as NeMo's hybrid models build it beside `joint`.

    Args:
        own_classes: take the classes of the block's `vocabulary`, if it has any, in place of the joint's.
    """
    block = copy.deepcopy(block)
    classes = list(own_classes and block.get("vocabulary") or joint.vocabulary)
    with open_dict(block):
        block.feat_in, block.num_classes, block.vocabulary = joint.encoder_hidden, len(classes), classes
    return EncDecRNNTBPEModel.from_config_dict(block)
