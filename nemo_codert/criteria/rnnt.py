"""The RNN-T loss of a branch, of a TDT branch its TDT loss: the seam behind `model.codert.rnnt_loss`."""

from dataclasses import asdict, replace

import torch
from nemo.collections.asr.modules import RNNTJoint

from nemo_codert.config.criteria import CriterionSpec
from nemo_codert.config.tdt import TDTSettings, tdt_settings
from nemo_codert.criteria.base import Criterion, PairParts
from nemo_codert.losses import (
    additive_rnnt_loss,
    additive_tdt_loss,
    chunked_joint_rnnt_loss,
    chunked_joint_tdt_loss,
)
from nemo_codert.losses.batch_checks import reduce_losses
from nemo_codert.modules import AdditiveRNNTJoint
from nemo_codert.modules.encoder_logits import num_token_classes
from nemo_codert.modules.transducer import Batch, BranchOutput
from nemo_codert.nemo_compat import fastemit_lambda, utterance_losses


class RNNT(Criterion):
    """RNN-T loss of the branch that `spec.trains` names, reduced as the model's NeMo loss is.

    `codert.rnnt_loss` chooses between `exact` (this package's losses), `nemo` (NeMo's kernel on the expanded lattice)
    and `auto`: exact for the additive joint and for any joint on a CPU, NeMo's kernel for a stock joint on a GPU. The
    TDT loss is always exact; in validation its omega is 0.
    """

    def __init__(self, spec: CriterionSpec, parts: PairParts) -> None:
        super().__init__(spec, parts)
        self.choice = parts.cfg.codert.rnnt_loss
        self.tdt = tdt_settings(parts.cfg)
        self.parts = parts  # not the loss itself: it belongs to the pair, under one name

    def implementation(self, joint: RNNTJoint, device: torch.device) -> str:
        """Return `exact` or `nemo`, as it is used for this joint on this device."""
        if self.choice != "auto":
            return self.choice
        if joint.num_extra_outputs:
            return "exact"
        return "exact" if isinstance(joint, AdditiveRNNTJoint) or device.type == "cpu" else "nemo"

    def forward(self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch) -> torch.Tensor:
        # Overrides Criterion.forward.
        branch = teacher if self.spec.trains == "teacher" else student
        joint, nemo_loss = branch.networks.joint, self.parts.nemo_loss
        # The prediction network draws its dropout before the losses do.
        prediction, encoder = branch.prediction_side, branch.encoder_side
        given = encoder, prediction, batch.transcript, branch.encoded_len, batch.transcript_len
        if self.implementation(joint, batch.transcript.device) == "nemo":
            losses = [self._lattice_losses(joint, *given, rows) for rows in _sub_batches(joint, len(encoder))]
            # NeMo's kernel leaves FastEmit's factor out without gradients; other kernels' validation losses have it.
            scale = 1.0 if torch.is_grad_enabled() else 1.0 + fastemit_lambda(nemo_loss)
            return reduce_losses(scale * torch.cat(losses), batch.transcript_len, nemo_loss.reduction)
        tdt = self.tdt if joint.num_extra_outputs else None
        settings = {"reduction": nemo_loss.reduction, "tdt": tdt}
        if tdt is None:
            settings["fastemit_lambda"] = fastemit_lambda(nemo_loss)
        elif not torch.is_grad_enabled():
            settings["tdt"] = replace(tdt, omega=0.0)
        return exact_loss(branch, batch, encoder, prediction, **settings)

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
        """Return losses [rows] of some utterances by NeMo's kernel over their own lattice [rows, T, U+1, V+1]."""
        lengths, target_lengths = encoded_len[rows], transcript_len[rows]
        frames, tokens = int(lengths.max()), int(target_lengths.max())
        logits = joint.joint_net(encoder[rows, :frames, None] + prediction[rows, None, : tokens + 1])
        return utterance_losses(self.parts.nemo_loss, logits, transcript[rows, :tokens], lengths, target_lengths)


def exact_loss(
    branch: BranchOutput,
    batch: Batch,
    encoder: torch.Tensor,
    prediction: torch.Tensor,
    *,
    reduction: str,
    fastemit_lambda: float = 0.0,
    tdt: TDTSettings | None = None,
) -> torch.Tensor:
    """Return the RNN-T loss of a branch by this package's losses, for any joint; of a TDT branch its TDT loss.

    Args:
        branch: the branch, whose joint and frames they are.
        batch: the transcripts.
        encoder: [B, T, H], the branch's `encoder_side`.
        prediction: [B, U+1, H], its `prediction_side`.
        reduction, fastemit_lambda: see `nemo_codert.losses.additive_rnnt_loss`.
        tdt: settings of a TDT branch, with a fastemit_lambda of its own; None: the RNN-T loss.
    """
    joint = branch.networks.joint
    given = encoder, prediction, batch.transcript, branch.encoded_len, batch.transcript_len
    settings = {"blank": num_token_classes(joint) - 1, "reduction": reduction, "fastemit_lambda": fastemit_lambda}
    of_additive, of_any = additive_rnnt_loss, chunked_joint_rnnt_loss
    if tdt is not None:
        of_additive, of_any = additive_tdt_loss, chunked_joint_tdt_loss
        settings |= asdict(tdt)
    if isinstance(joint, AdditiveRNNTJoint):
        return of_additive(*given, **settings)
    return of_any(
        lambda encoder, prediction: joint.joint_net(encoder + prediction),
        *given,
        num_classes=joint.num_classes_with_blank,
        **settings,
    )


def _sub_batches(joint: RNNTJoint, batch_size: int) -> list[slice]:
    """Return rows that share one lattice: all, or `fused_batch_size` where the joint is set to a fused step."""
    step = joint.fused_batch_size if joint.fuse_loss_wer else batch_size
    return [slice(start, min(start + step, batch_size)) for start in range(0, batch_size, step)]
