"""Losses of transducers and their distillation (arXiv:2106.07734), in torch and Numba, without NeMo.

Importing this package imports torch only; compiled kernels are imported by the first loss that needs them.
"""

from nemo_codert.losses.additive_rnnt import additive_rnnt_loss
from nemo_codert.losses.class_scores import additive_class_log_probs, class_divergence
from nemo_codert.losses.ctc_divergence import softmax_l2_loss
from nemo_codert.losses.encoder_kl import EncoderDistillationLoss, encoder_distillation_loss
from nemo_codert.losses.features import feature_distance
from nemo_codert.losses.frames import group_features, group_frames, paired_frames, valid_frames
from nemo_codert.losses.joint_rnnt import chunked_joint_rnnt_loss, joint_rnnt_loss
from nemo_codert.losses.lattice_kl import additive_lattice_kl, lattice_temperatures
from nemo_codert.losses.node_kl import (
    JointSide,
    joint_class_log_probs,
    joint_lattice_kl,
    joint_node_logits,
    joint_temperatures,
)
from nemo_codert.losses.node_weights import node_weights
from nemo_codert.losses.sequence import full_sum_distillation_loss
from nemo_codert.losses.tdt import additive_tdt_loss, chunked_joint_tdt_loss, joint_tdt_loss
from nemo_codert.losses.tdt_lattice import tdt_node_occupancies
from nemo_codert.losses.tdt_paths import has_tdt_path
from nemo_codert.losses.temperature import frame_temperatures
from nemo_codert.losses.top_k_kl import top_k_distillation_loss

__all__ = [
    "EncoderDistillationLoss",
    "JointSide",
    "additive_class_log_probs",
    "additive_lattice_kl",
    "additive_rnnt_loss",
    "additive_tdt_loss",
    "chunked_joint_rnnt_loss",
    "chunked_joint_tdt_loss",
    "class_divergence",
    "encoder_distillation_loss",
    "feature_distance",
    "frame_temperatures",
    "full_sum_distillation_loss",
    "group_features",
    "group_frames",
    "has_tdt_path",
    "joint_class_log_probs",
    "joint_lattice_kl",
    "joint_node_logits",
    "joint_rnnt_loss",
    "joint_tdt_loss",
    "joint_temperatures",
    "lattice_temperatures",
    "node_weights",
    "paired_frames",
    "softmax_l2_loss",
    "tdt_node_occupancies",
    "top_k_distillation_loss",
    "valid_frames",
]
