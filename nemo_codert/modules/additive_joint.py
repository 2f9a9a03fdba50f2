"""CoDERT's joint, z[b,t,u] = E[b,t] + G[b,u].

The encoder and the prediction network each project to logits over the vocabulary; the joint adds them
(arXiv:2106.07734, section 2.1). B batch, T encoder frames, U target tokens, D channels, V vocabulary without blank,
N durations of a TDT model (`num_extra_outputs`), whose logits come last.
"""

import logging
from typing import Any

import torch
from nemo.collections.asr.modules import RNNTJoint
from nemo.core.classes.common import typecheck
from torch import nn

from nemo_codert.losses import additive_rnnt_loss, additive_tdt_loss
from nemo_codert.nemo_compat import fastemit_lambda

logger = logging.getLogger(__name__)


class AdditiveRNNTJoint(RNNTJoint):
    """Joint network whose output is the sum of encoder logits and prediction logits, [B, T, U+1, V+1].

    With `fuse_loss_wer` NeMo's own model trains with the exact additive loss, which allocates no [B, T, U+1, V+1]
    tensor.

    Args:
        jointnet: the block of `RNNTJoint`, of which only `encoder_hidden` (D_enc) and `pred_hidden` (D_pred) are used.
            There is no hidden layer for `joint_hidden`, `activation` and `dropout`; a `dropout` above 0 is warned
            about.
        num_classes: V.
        kwargs: other arguments of `RNNTJoint`.

    Example:
        >>> import torch
        >>> from nemo_codert.modules import AdditiveRNNTJoint
        >>> jointnet = {"encoder_hidden": 4, "pred_hidden": 3}
        >>> joint = AdditiveRNNTJoint(jointnet, num_classes=2, vocabulary=["a", "b"], log_softmax=False)
        >>> encoded, decoded = torch.randn(1, 4, 5), torch.randn(1, 3, 2)  # [B, D_enc, T] and [B, D_pred, U+1]
        >>> logits = joint(encoder_outputs=encoded, decoder_outputs=decoded)
        >>> logits.shape
        torch.Size([1, 5, 2, 3])
        >>> encoder_side, prediction_side = joint.enc(encoded.transpose(1, 2)), joint.pred(decoded.transpose(1, 2))
        >>> torch.equal(logits, encoder_side[:, :, None] + prediction_side[:, None])
        True
    """

    def __init__(self, jointnet: dict[str, Any], num_classes: int, **kwargs: Any) -> None:
        if jointnet.get("dropout"):
            logger.warning("joint.jointnet.dropout has no effect: an additive joint has no hidden layer.")
        width = num_classes + 1 + kwargs.get("num_extra_outputs", 0)
        jointnet = {**jointnet, "joint_hidden": width, "activation": "identity", "dropout": 0.0}
        super().__init__(jointnet=jointnet, num_classes=num_classes, **kwargs)

    def _joint_net_modules(
        self,
        num_classes: int,
        pred_n_hidden: int,
        enc_n_hidden: int,
        joint_n_hidden: int,
        activation: str,
        dropout: float,
    ) -> tuple[nn.Linear, nn.Linear, nn.Identity]:
        # Overrides RNNTJoint._joint_net_modules: both projections go straight to the V+1 classes.
        return nn.Linear(pred_n_hidden, num_classes), nn.Linear(enc_n_hidden, num_classes), nn.Identity()

    @typecheck()
    def forward(
        self,
        encoder_outputs: torch.Tensor,
        decoder_outputs: torch.Tensor | None,
        encoder_lengths: torch.Tensor | None = None,
        transcripts: torch.Tensor | None = None,
        transcript_lengths: torch.Tensor | None = None,
        compute_wer: bool = False,
        keep_hypotheses: bool = False,
    ) -> torch.Tensor | list[torch.Tensor | None]:
        # Overrides RNNTJoint.forward: the fused loss is the exact additive one, over the whole batch at once.
        batch = dict(encoder_outputs=encoder_outputs, encoder_lengths=encoder_lengths, transcripts=transcripts)
        batch.update(transcript_lengths=transcript_lengths, compute_wer=compute_wer, keep_hypotheses=keep_hypotheses)
        if not self.fuse_loss_wer or decoder_outputs is None:
            return super().forward(decoder_outputs=decoder_outputs, **batch)
        loss = self._exact_loss(
            self.enc(encoder_outputs.transpose(1, 2)),  # [B, T, V+1], of a TDT model [B, T, V+1+N]
            self.pred(decoder_outputs.transpose(1, 2)),  # [B, U+1, V+1], of a TDT model [B, U+1, V+1+N]
            transcripts,
            encoder_lengths,
            transcript_lengths,
            blank=self.num_classes_with_blank - 1 - self.num_extra_outputs,
            reduction=self.loss.reduction,
            fastemit_lambda=fastemit_lambda(self.loss),
        )
        _, *word_errors = super().forward(decoder_outputs=None, **batch)
        return loss, *word_errors

    def _exact_loss(self, *given: torch.Tensor, **settings: Any) -> torch.Tensor:
        if not self.num_extra_outputs:
            return additive_rnnt_loss(*given, **settings)
        nemo_loss = self.loss._loss  # holds the settings of the TDT loss; validation draws no RNN-T loss
        omega = nemo_loss.omega if torch.is_grad_enabled() else 0.0
        settings |= {"durations": nemo_loss.durations, "sigma": nemo_loss.sigma, "omega": omega}
        return additive_tdt_loss(*given, **settings)
