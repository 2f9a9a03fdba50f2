"""Rewriting of an additive joint as a stock NeMo `RNNTJoint` that computes the same function.

B batch, T encoder frames, U target tokens, D channels, H hidden units, V vocabulary without blank.
"""

import torch
from nemo.collections.asr.modules import RNNTJoint
from torch import nn

from nemo_codert.modules.additive_joint import AdditiveRNNTJoint

FORMS = ("auto", "exact", "compact", "narrow")  # forms of `to_stock_joint`


def to_stock_joint(
    joint: RNNTJoint,
    form: str = "auto",
    *,
    encoder_range: torch.Tensor | None = None,
    prediction_range: torch.Tensor | None = None,
) -> RNNTJoint:
    """Return a stock `RNNTJoint` that computes the same function; a stock joint is copied unchanged.

    A hidden unit of a stock joint passes through a ReLU, and x = relu(x) - relu(-x) = relu(x + c) - c for x >= -c:

    * `exact`: `joint_hidden = 2(V+1)`, projections [W; -W], output weight [I, -I]. Every output is the sum of the
      same two numbers: bit-equal wherever BLAS rounds a product with W and one with [W; -W] alike (seen on CPU
      for all frames of real utterances), else equal to rounding.
    * `compact`: `joint_hidden = 2(D_enc + D_pred)`, output weight [W_enc, -W_enc, W_pred, -W_pred]. Equal to
      rounding, smaller when V is large.
    * `narrow`: `joint_hidden = D_enc + D_pred`, one unit relu(x + c) for a channel, where the ranges c of both sides
      are given; a side without a range takes two units for a channel, as in `compact`. Equal to rounding, which is
      that of numbers of size c. For inference in float32: further training may lead a channel out of its range.
    * `auto`: `exact` while V+1 <= D_enc + D_pred, else `compact`.

    Args:
        joint: additive or stock joint.
        form: one of the forms above.
        encoder_range: bound c on the absolute value of each channel of the encoder's output, [D_enc], as
            `output_range` reads it from the encoder. Only `narrow` uses it.
        prediction_range: bound on each channel of the prediction network's output, [D_pred].

    Returns:
        A new joint, on the device and of the type of `joint`.

    Raises:
        ValueError: unknown form, or another form than `auto` for a joint that is a stock joint already.

    Example:
        >>> import torch
        >>> from nemo_codert.modules import AdditiveRNNTJoint, to_stock_joint
        >>> jointnet = {"encoder_hidden": 4, "pred_hidden": 3}
        >>> joint = AdditiveRNNTJoint(jointnet, num_classes=2, vocabulary=["a", "b"], log_softmax=False)
        >>> stock = to_stock_joint(joint)
        >>> type(stock).__name__, stock.joint_hidden  # 2(V+1), the form `exact`
        ('RNNTJoint', 6)
        >>> outputs = {"encoder_outputs": torch.randn(1, 4, 5), "decoder_outputs": torch.randn(1, 3, 2)}
        >>> torch.allclose(stock(**outputs), joint(**outputs), atol=1e-5)
        True
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
    """Return an untrained stock joint with the inputs, classes, switches, device and dtype of `joint`."""
    with torch.random.fork_rng(devices=[]):  # drawing initial weights, which are replaced, must not move the generator
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
    """Return the joint's weights under stock names, also where its prediction projection is another joint's."""
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
    """Return weights of hidden units that hold the channels of both sides, one or two each, and of the output."""
    enc_units, enc_offset, enc_output = _channel_units(enc, encoder_range)
    pred_units, pred_offset, pred_output = _channel_units(pred, prediction_range)
    offset = torch.cat([enc_offset, pred_offset])  # [H]
    output = torch.cat([enc_output, pred_output], dim=1)  # [V+1, H]
    bias = enc.bias.double() + pred.bias.double() - output.double() @ offset.double()
    return {
        "enc.weight": torch.cat([enc_units, enc_units.new_zeros(len(pred_units), enc.in_features)]),
        # The encoder side has all offsets: `encoder_logits` zeroes the prediction side, and so stays unchanged.
        "enc.bias": offset,
        "pred.weight": torch.cat([pred_units.new_zeros(len(enc_units), pred.in_features), pred_units]),
        "pred.bias": torch.zeros_like(offset),
        "joint_net.1.weight": output,
        "joint_net.1.bias": bias.to(enc.bias),
    }


def _channel_units(
    layer: nn.Linear, channel_range: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return one side's H hidden units: weight [H, D], offset [H], output weight [V+1, H]."""
    weight = layer.weight
    identity = torch.eye(layer.in_features, dtype=weight.dtype, device=weight.device)
    if channel_range is None:
        return _mirrored(identity), weight.new_zeros(2 * layer.in_features), torch.cat([weight, -weight], dim=1)
    return identity, channel_range.to(weight), weight
