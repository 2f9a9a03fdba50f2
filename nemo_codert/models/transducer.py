"""One branch of a pair as one object: an encoder, a prediction network and a joint, with their outputs and loss.

B batch, F mel bins, T_in feature frames, T encoder frames, D channels, U target tokens, V vocabulary without blank.
"""

from dataclasses import dataclass

import torch
from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.modules import RNNTJoint
from torch import nn

from nemo_codert.losses import additive_rnnt_loss, joint_rnnt_loss
from nemo_codert.losses.lattice import reduce_losses
from nemo_codert.modules import AdditiveRNNTJoint, encoder_logits, prediction_logits
from nemo_codert.modules.encoder_logits import joint_logits
from nemo_codert.nemo_compat import fastemit_lambda


@dataclass(frozen=True)
class Transducer:
    """The three networks of an RNN-T. Holds references: the modules belong to the model."""

    encoder: nn.Module
    decoder: nn.Module
    joint: RNNTJoint

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter of the branch once, in the order a stock model registers them."""
        modules = (self.encoder, self.decoder, self.joint)
        return list({id(p): p for module in modules for p in module.parameters()}.values())


@dataclass(frozen=True)
class Encoded:
    """Encoder output of one branch: `encoded` [B, D, T], `encoded_len` [B] int64."""

    encoded: torch.Tensor
    encoded_len: torch.Tensor


def encode(transducer: Transducer, features: torch.Tensor, features_len: torch.Tensor) -> Encoded:
    """[B, F, T_in] -> [B, D, T]."""
    encoded, encoded_len = transducer.encoder(audio_signal=features, length=features_len)[:2]
    return Encoded(encoded, encoded_len)


def predict(transducer: Transducer, transcript: torch.Tensor, transcript_len: torch.Tensor) -> torch.Tensor:
    """Prediction network over the transcript: [B, U] -> [B, D, U+1]."""
    decoded, _, _ = transducer.decoder(targets=transcript, target_length=transcript_len)
    return decoded


class TransducerLoss:
    """The RNN-T loss of a branch: the seam behind `model.codert.rnnt_loss`.

    Args:
        choice: `exact` (float64 recursion of our own), `nemo` (NeMo's kernel on the expanded lattice) or `auto`:
            exact for the additive joint and for any joint on CPU, NeMo's Numba-CUDA kernel for a stock joint on a GPU.
        nemo_loss: NeMo's loss of the model; its kernel, blank, FastEmit and reduction are honoured by both.
    """

    def __init__(self, choice: str, nemo_loss: RNNTLoss) -> None:
        self.choice = choice
        self.nemo_loss = nemo_loss

    def implementation(self, joint: RNNTJoint, device: torch.device) -> str:
        """`exact` or `nemo`, as it will be used for this joint on this device."""
        if self.choice != "auto":
            return self.choice
        return "exact" if isinstance(joint, AdditiveRNNTJoint) or device.type == "cpu" else "nemo"

    def __call__(
        self,
        joint: RNNTJoint,
        branch: Encoded,
        decoded: torch.Tensor,
        transcript: torch.Tensor,
        transcript_len: torch.Tensor,
    ) -> torch.Tensor:
        """Scalar loss of a batch: `decoded` [B, D, U+1], `transcript` [B, U], `transcript_len` [B]."""
        exact = self.implementation(joint, decoded.device) == "exact"
        if exact and isinstance(joint, AdditiveRNNTJoint):
            return additive_rnnt_loss(
                encoder_logits(joint, branch.encoded),
                prediction_logits(joint, decoded),
                transcript,
                branch.encoded_len,
                transcript_len,
                **self._settings(joint, self.nemo_loss.reduction),
            )
        losses = [
            self._lattice_loss(joint, exact, branch, decoded, transcript, transcript_len, rows)
            for rows in _sub_batches(joint, len(transcript_len))
        ]
        return reduce_losses(torch.cat(losses), transcript_len, self.nemo_loss.reduction)

    def _settings(self, joint: RNNTJoint, reduction: str) -> dict[str, object]:
        return {
            "blank": joint.num_classes_with_blank - 1,
            "reduction": reduction,
            "fastemit_lambda": fastemit_lambda(self.nemo_loss),
        }

    def _lattice_loss(
        self,
        joint: RNNTJoint,
        exact: bool,
        branch: Encoded,
        decoded: torch.Tensor,
        transcript: torch.Tensor,
        transcript_len: torch.Tensor,
        rows: slice,
    ) -> torch.Tensor:
        """Losses [rows] of some utterances over their own lattice [rows, T, U+1, V+1]."""
        lengths, target_lengths = branch.encoded_len[rows].contiguous(), transcript_len[rows].contiguous()
        frames, tokens = int(lengths.max()), int(target_lengths.max())
        targets = transcript[rows, :tokens].contiguous()
        logits = joint_logits(joint, branch.encoded[rows, :, :frames], decoded[rows, :, : tokens + 1])
        if exact:
            return joint_rnnt_loss(logits, targets, lengths, target_lengths, **self._settings(joint, "none"))
        reduction, self.nemo_loss.reduction = self.nemo_loss.reduction, None
        try:
            return self.nemo_loss(
                log_probs=logits.contiguous(),
                targets=targets,
                input_lengths=lengths,
                target_lengths=target_lengths,
            )
        finally:
            self.nemo_loss.reduction = reduction


def _sub_batches(joint: RNNTJoint, batch_size: int) -> list[slice]:
    """Rows that share one lattice: all of them, or `fused_batch_size` where the joint asks for a fused step."""
    step = joint.fused_batch_size if joint.fuse_loss_wer else batch_size
    return [slice(start, min(start + step, batch_size)) for start in range(0, batch_size, step)]
