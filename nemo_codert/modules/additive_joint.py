"""CoDERT's joint, z[b,t,u] = E[b,t] + G[b,u], and its exact rewriting as a stock NeMo joint.

The encoder and the prediction network each make logits over the vocabulary; the joint adds them (arXiv:2106.07734,
section 2.1). B batch, T encoder frames, U target tokens, D channels, V vocabulary without blank.
"""

import logging
from typing import Any

import torch
from nemo.collections.asr.modules import RNNTJoint
from nemo.core.classes.common import typecheck
from torch import nn

from nemo_codert.losses import additive_rnnt_loss
from nemo_codert.nemo_compat import fastemit_lambda

logger = logging.getLogger(__name__)


class AdditiveRNNTJoint(RNNTJoint):
    """Joint network whose output is the sum of encoder logits and prediction logits, [B, T, U, V+1].

    Takes the arguments of `RNNTJoint`. Of `jointnet` only `encoder_hidden` and `pred_hidden` are used; there is no
    hidden layer for `joint_hidden`, `activation` and `dropout` to act on, and a `dropout` above 0 is warned about.
    With `fuse_loss_wer` NeMo's own model trains with the exact additive loss, which makes no [B, T, U, V] tensor.
    """

    def __init__(self, jointnet: dict[str, Any], num_classes: int, **kwargs: Any) -> None:
        if jointnet.get("dropout"):
            logger.warning("joint.jointnet.dropout has no effect: an additive joint has no hidden layer.")
        jointnet = {**jointnet, "joint_hidden": num_classes + 1, "activation": "identity", "dropout": 0.0}
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
        loss = additive_rnnt_loss(
            self.enc(encoder_outputs.transpose(1, 2)),  # [B, T, V+1]
            self.pred(decoder_outputs.transpose(1, 2)),  # [B, U+1, V+1]
            transcripts,
            encoder_lengths,
            transcript_lengths,
            blank=self.num_classes_with_blank - 1,
            reduction=self.loss.reduction,
            fastemit_lambda=fastemit_lambda(self.loss),
        )
        _, *word_errors = super().forward(decoder_outputs=None, **batch)
        return loss, *word_errors


def to_stock_joint(joint: RNNTJoint, form: str = "auto") -> RNNTJoint:
    """A stock `RNNTJoint` that computes the same function; a stock joint is copied as it is.

    Since x = relu(x) - relu(-x), an additive joint is a stock one of twice the width:

    * `exact`: `joint_hidden = 2(V+1)`, projections [W; -W], output weight [I, -I]. Every output is the sum of the
      same two numbers: bit-equal wherever BLAS rounds a product with W and one with [W; -W] alike (seen on CPU
      for all frames of real utterances), else equal to rounding.
    * `compact`: `joint_hidden = 2(D_enc + D_pred)`, output weight [W_enc, W_pred, -W_enc, -W_pred]. Equal to
      rounding, smaller when V is large.
    * `auto`: `exact` while V+1 <= D_enc + D_pred.

    Raises:
        ValueError: unknown form, or a form asked for of a joint that is a stock one already.
    """
    if form not in ("auto", "exact", "compact"):
        raise ValueError(f"joint form is {form!r}, wanted one of auto, exact, compact")
    if not isinstance(joint, AdditiveRNNTJoint):
        if form != "auto":
            raise ValueError(f"joint form is {form!r}, but this joint is a stock RNNTJoint already: use auto")
        stock = stock_joint_like(joint, joint.joint_hidden, joint.activation, _dropout_of(joint))
        stock.load_state_dict(_named_parameters(joint))
        return stock
    if form == "auto":
        form = "exact" if joint.num_classes_with_blank <= joint.encoder_hidden + joint.pred_hidden else "compact"
    rewrite = _exact_weights if form == "exact" else _compact_weights
    weights = rewrite(joint.enc, joint.pred)
    stock = stock_joint_like(joint, weights["enc.weight"].shape[0], "relu", 0.0)
    stock.load_state_dict(weights)
    return stock


def stock_joint_like(joint: RNNTJoint, joint_hidden: int, activation: str, dropout: float) -> RNNTJoint:
    """An untrained stock joint with the inputs, classes and switches of `joint`, on its device and dtype."""
    with torch.random.fork_rng(devices=[]):  # its initial weights are replaced, so they cost the run no numbers
        stock = RNNTJoint(
            jointnet={
                "encoder_hidden": joint.encoder_hidden,
                "pred_hidden": joint.pred_hidden,
                "joint_hidden": joint_hidden,
                "activation": activation,
                "dropout": dropout,
            },
            num_classes=joint.num_classes_with_blank - 1,
            vocabulary=joint.vocabulary,
            log_softmax=joint.log_softmax,
        )
    return stock.to(joint.enc.weight)


def _named_parameters(joint: RNNTJoint) -> dict[str, torch.Tensor]:
    """The joint's weights under stock names, also where its prediction projection is another joint's."""
    weights = {name: value for name, value in joint.state_dict().items() if not name.startswith("pred.")}
    return {**weights, "pred.weight": joint.pred.weight, "pred.bias": joint.pred.bias}


def _dropout_of(joint: RNNTJoint) -> float:
    return next((layer.p for layer in joint.joint_net if isinstance(layer, nn.Dropout)), 0.0)


def _mirrored(weight: torch.Tensor) -> torch.Tensor:
    return torch.cat([weight, -weight])


@torch.no_grad()
def _exact_weights(enc: nn.Linear, pred: nn.Linear) -> dict[str, torch.Tensor]:
    identity = torch.eye(enc.out_features, dtype=enc.weight.dtype, device=enc.weight.device)
    return {
        "enc.weight": _mirrored(enc.weight),
        "enc.bias": _mirrored(enc.bias),
        "pred.weight": _mirrored(pred.weight),
        "pred.bias": _mirrored(pred.bias),
        "joint_net.1.weight": torch.cat([identity, -identity], dim=1),
        "joint_net.1.bias": torch.zeros_like(enc.bias),
    }


@torch.no_grad()
def _compact_weights(enc: nn.Linear, pred: nn.Linear) -> dict[str, torch.Tensor]:
    channels = enc.in_features + pred.in_features
    identity = torch.eye(channels, dtype=enc.weight.dtype, device=enc.weight.device)
    projection = torch.cat([enc.weight, pred.weight], dim=1)  # [V+1, D_enc + D_pred]
    return {
        "enc.weight": _mirrored(identity[:, : enc.in_features]),
        "enc.bias": enc.bias.new_zeros(2 * channels),
        "pred.weight": _mirrored(identity[:, enc.in_features :]),
        "pred.bias": pred.bias.new_zeros(2 * channels),
        "joint_net.1.weight": torch.cat([projection, -projection], dim=1),
        "joint_net.1.bias": enc.bias + pred.bias,
    }
