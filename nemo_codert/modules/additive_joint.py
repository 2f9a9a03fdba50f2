"""CoDERT's joint, z[b,t,u] = E[b,t] + G[b,u], and its rewritings as a stock NeMo joint.

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

FORMS = ("auto", "exact", "compact", "narrow")  # of `to_stock_joint`


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


def to_stock_joint(
    joint: RNNTJoint,
    form: str = "auto",
    *,
    encoder_range: torch.Tensor | None = None,
    prediction_range: torch.Tensor | None = None,
) -> RNNTJoint:
    """A stock `RNNTJoint` that computes the same function; a stock joint is copied as it is.

    A hidden unit of a stock joint passes through a ReLU, and x = relu(x) - relu(-x) = relu(x + c) - c for x >= -c:

    * `exact`: `joint_hidden = 2(V+1)`, projections [W; -W], output weight [I, -I]. Every output is the sum of the
      same two numbers: bit-equal wherever BLAS rounds a product with W and one with [W; -W] alike (seen on CPU
      for all frames of real utterances), else equal to rounding.
    * `compact`: `joint_hidden = 2(D_enc + D_pred)`, output weight [W_enc, -W_enc, W_pred, -W_pred]. Equal to
      rounding, smaller when V is large.
    * `narrow`: `joint_hidden = D_enc + D_pred`, one unit relu(x + c) for a channel, where the ranges c of both sides
      are given; a side without a range takes two units for a channel, as in `compact`. Equal to rounding, which is
      that of numbers of size c. For inference in float32: training on may lead a channel out of its range.
    * `auto`: `exact` while V+1 <= D_enc + D_pred, else `compact`.

    Args:
        joint: additive or stock.
        form: one of the above.
        encoder_range: bound c on the absolute value of each channel of the encoder's output, [D_enc], as
            `output_range` reads it from the encoder. Only `narrow` uses it.
        prediction_range: the same of the prediction network, [D_pred].

    Raises:
        ValueError: unknown form, or a form asked for of a joint that is a stock one already.
    """
    if form not in FORMS:
        raise ValueError(f"joint form is {form!r}, wanted one of {', '.join(FORMS)}")
    if not isinstance(joint, AdditiveRNNTJoint):
        if form != "auto":
            raise ValueError(f"joint form is {form!r}, but this joint is a stock RNNTJoint already: use auto")
        stock = stock_joint_like(joint, joint.joint_hidden, joint.activation, _dropout_of(joint))
        stock.load_state_dict(_named_parameters(joint))
        return stock
    if form == "auto":
        form = "exact" if joint.num_classes_with_blank <= joint.encoder_hidden + joint.pred_hidden else "compact"
    if form == "exact":
        weights = _exact_weights(joint.enc, joint.pred)
    else:
        ranges = (encoder_range, prediction_range) if form == "narrow" else (None, None)
        weights = _channel_weights(joint.enc, joint.pred, *ranges)
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
            num_classes=joint.num_classes_with_blank - 1 - joint.num_extra_outputs,
            num_extra_outputs=joint.num_extra_outputs,
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
def _channel_weights(
    enc: nn.Linear, pred: nn.Linear, encoder_range: torch.Tensor | None, prediction_range: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Hidden units that hold the channels of both sides, one or two each, and an output layer that projects them."""
    enc_units, enc_offset, enc_output = _channel_units(enc, encoder_range)
    pred_units, pred_offset, pred_output = _channel_units(pred, prediction_range)
    offset = torch.cat([enc_offset, pred_offset])  # [H]
    output = torch.cat([enc_output, pred_output], dim=1)  # [V+1, H]
    bias = enc.bias.double() + pred.bias.double() - output.double() @ offset.double()
    return {
        "enc.weight": torch.cat([enc_units, enc_units.new_zeros(len(pred_units), enc.in_features)]),
        # The encoder's side has all offsets: `encoder_logits` zeroes the other one, and its logits stay what they are.
        "enc.bias": offset,
        "pred.weight": torch.cat([pred_units.new_zeros(len(enc_units), pred.in_features), pred_units]),
        "pred.bias": torch.zeros_like(offset),
        "joint_net.1.weight": output,
        "joint_net.1.bias": bias.to(enc.bias),
    }


def _channel_units(
    layer: nn.Linear, channel_range: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One side's H hidden units: weight [H, D], offset [H], output weight [V+1, H]."""
    weight = layer.weight
    identity = torch.eye(layer.in_features, dtype=weight.dtype, device=weight.device)
    if channel_range is None:
        return _mirrored(identity), weight.new_zeros(2 * layer.in_features), torch.cat([weight, -weight], dim=1)
    return identity, channel_range.to(weight), weight
