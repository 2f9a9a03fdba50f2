"""One branch of a pair as one object: an encoder, a prediction network and a joint, with their outputs and loss.

B batch, F mel bins, T_in feature frames, T encoder frames, D channels, U target tokens, V vocabulary without blank.
"""

from dataclasses import dataclass

import torch
from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.modules import ConvASRDecoder, RNNTJoint
from torch import nn

from nemo_codert.losses import additive_rnnt_loss, chunked_joint_rnnt_loss
from nemo_codert.losses.batch_checks import reduce_losses
from nemo_codert.modules import AdditiveRNNTJoint
from nemo_codert.modules.encoder_logits import ctc_logits, projected_logits
from nemo_codert.nemo_compat import fastemit_lambda, utterance_losses


@dataclass(frozen=True)
class Transducer:
    """The three networks of an RNN-T. Holds references: the modules belong to the model.

    ctc_head: of a hybrid model, where the encoder logits are to be the head's and not the joint's.
    """

    encoder: nn.Module
    decoder: nn.Module
    joint: RNNTJoint
    ctc_head: ConvASRDecoder | None = None

    def networks(self) -> list[nn.Module]:
        """Encoder, prediction network, joint and, where there is one, the CTC head."""
        return [network for network in (self.encoder, self.decoder, self.joint, self.ctc_head) if network is not None]

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter of the branch once, in the order a stock model registers them."""
        return list({id(p): p for network in self.networks() for p in network.parameters()}.values())


@dataclass(frozen=True)
class Encoded:
    """Encoder output of one branch: `encoded` [B, D, T], `encoded_len` [B] int64."""

    encoded: torch.Tensor
    encoded_len: torch.Tensor


@dataclass(frozen=True)
class Projected:
    """Both sides of a joint before they meet, computed once for all losses of a step.

    `encoder` [B, T, H], `encoded_len` [B] and `prediction` [B, U+1, H]; an additive joint's H is V+1, and these are
    its encoder and prediction logits.
    """

    encoder: torch.Tensor
    encoded_len: torch.Tensor
    prediction: torch.Tensor


def encode(transducer: Transducer, features: torch.Tensor, features_len: torch.Tensor) -> Encoded:
    """[B, F, T_in] -> [B, D, T]."""
    encoded, encoded_len = transducer.encoder(audio_signal=features, length=features_len)[:2]
    return Encoded(encoded, encoded_len)


def predict(transducer: Transducer, transcript: torch.Tensor, transcript_len: torch.Tensor) -> torch.Tensor:
    """Prediction network over the transcript: [B, U] -> [B, D, U+1]."""
    decoded, _, _ = transducer.decoder(targets=transcript, target_length=transcript_len)
    return decoded


def project_prediction(joint: RNNTJoint, decoded: torch.Tensor) -> torch.Tensor:
    """The joint's projection of the prediction network: [B, D, U+1] -> [B, U+1, H]."""
    return joint.project_prednet(decoded.transpose(1, 2))


def project(joint: RNNTJoint, branch: Encoded, prediction: torch.Tensor) -> Projected:
    """The joint's projection of the encoder, beside that of the prediction network [B, U+1, H]."""
    return Projected(joint.project_encoder(branch.encoded.transpose(1, 2)), branch.encoded_len, prediction)


def encoder_logits_of(transducer: Transducer, branch: Encoded, projected: Projected) -> torch.Tensor:
    """Raw encoder logits [B, T, V+1] of a branch: of its joint, or of its CTC head where it has one."""
    if transducer.ctc_head is not None:
        return ctc_logits(transducer.ctc_head, branch.encoded)
    return projected_logits(transducer.joint, projected.encoder)


class TransducerLoss:
    """The RNN-T loss of a branch: the seam behind `model.codert.rnnt_loss`.

    Args:
        choice: `exact` (our own), `nemo` (NeMo's kernel on the expanded lattice) or `auto`: exact for the additive
            joint and for any joint on CPU, NeMo's Numba-CUDA kernel for a stock joint on a GPU.
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
        self, joint: RNNTJoint, projected: Projected, transcript: torch.Tensor, transcript_len: torch.Tensor
    ) -> torch.Tensor:
        """Scalar loss of a batch: `transcript` [B, U], `transcript_len` [B]."""
        batch = projected.encoder, projected.prediction, transcript, projected.encoded_len, transcript_len
        if self.implementation(joint, transcript.device) == "nemo":
            losses = [self._lattice_losses(joint, *batch, rows) for rows in _sub_batches(joint, len(transcript_len))]
            # Without gradients NeMo's kernel leaves FastEmit's factor out: a validation loss has it as the others do.
            scale = 1.0 if torch.is_grad_enabled() else 1.0 + fastemit_lambda(self.nemo_loss)
            return reduce_losses(scale * torch.cat(losses), transcript_len, self.nemo_loss.reduction)
        settings = {
            "blank": joint.num_classes_with_blank - 1,
            "reduction": self.nemo_loss.reduction,
            "fastemit_lambda": fastemit_lambda(self.nemo_loss),
        }
        if isinstance(joint, AdditiveRNNTJoint):
            return additive_rnnt_loss(*batch, **settings)
        return chunked_joint_rnnt_loss(
            lambda encoder, prediction: joint.joint_net(encoder + prediction),
            *batch,
            num_classes=joint.num_classes_with_blank,
            **settings,
        )

    def _lattice_losses(
        self,
        joint: RNNTJoint,
        encoder: torch.Tensor,
        prediction: torch.Tensor,
        transcript: torch.Tensor,
        encoded_len: torch.Tensor,
        transcript_len: torch.Tensor,
        rows: slice,
    ) -> torch.Tensor:
        """Losses [rows] of some utterances by NeMo's kernel over their own lattice [rows, T, U+1, V+1]."""
        lengths, target_lengths = encoded_len[rows], transcript_len[rows]
        frames, tokens = int(lengths.max()), int(target_lengths.max())
        logits = joint.joint_net(encoder[rows, :frames, None] + prediction[rows, None, : tokens + 1])
        return utterance_losses(self.nemo_loss, logits, transcript[rows, :tokens], lengths, target_lengths)


def keep_losses(model: nn.Module, losses: dict[str, torch.Tensor], step: int) -> None:
    """Leave the parts of a training loss at `model.step_losses`; refuse them where nothing else would.

    Raises:
        FloatingPointError: names every part of a `train_loss` that is not finite, where the trainer has no
            `FiniteGuard` (nemo_codert.training) and NeMo's skip_nan_grad is off.
    """
    model.step_losses = {name: value.detach() for name, value in losses.items()}
    if model.has_finite_guard or model._skip_nan_grad or torch.isfinite(losses["train_loss"]):
        return
    parts = {name: float(value) for name, value in losses.items()}
    raise FloatingPointError(
        f"step {step}: the training loss is not finite ({parts}). Lower the learning rate, look for broken audio, "
        "or skip such steps: give the trainer the callback nemo_codert.training.finite_guard.FiniteGuard('skip')"
    )


def refuse_unready(model: nn.Module) -> None:
    """Refuse to train a pair that lacks something.

    Raises:
        ValueError: a frozen teacher without weights; steps that are to be skipped under a trainer without the callback
            that does it.
    """
    if model.teacher_is_frozen and not model._teacher_has_weights:
        raise ValueError(
            "model.codert.teacher is frozen but model.codert.teacher_checkpoint is null: nothing to learn from. "
            "Give the .nemo or pretrained name of a trained RNN-T"
        )
    if model.cfg.codert.non_finite.action == "skip" and not model.has_finite_guard:
        raise ValueError(
            "model.codert.non_finite.action is skip but the trainer has no FiniteGuard: give it the callback "
            "nemo_codert.training.finite_guard.FiniteGuard('skip'), as scripts/train.py does, or set action to stop"
        )


def _sub_batches(joint: RNNTJoint, batch_size: int) -> list[slice]:
    """Rows that share one lattice: all of them, or `fused_batch_size` where the joint asks for a fused step."""
    step = joint.fused_batch_size if joint.fuse_loss_wer else batch_size
    return [slice(start, min(start + step, batch_size)) for start in range(0, batch_size, step)]
