"""A smaller encoder of the kind of a given one: its layers and width scaled to a share of its parameters."""

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from typing import Any

import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import OmegaConf

TOLERANCE = 0.05  # share of the parameters within which the number of layers is kept in proportion to the width


def scaled_encoder(block: dict[str, Any], share: float | Fraction) -> dict[str, Any]:
    """Return the config of an encoder with about a share of the parameters of another.

    Layers and width shrink in like proportion. Other settings stay: subsampling factor, kernels, attention context.

    Args:
        block: config of a `ConformerEncoder` (a FastConformer is one) or an `RNNEncoder`.
        share: above 0, at most 1.

    Returns:
        Config of the smaller encoder. Its heads divide its width and have about as many channels as the heads of the
        given one.

    Raises:
        ValueError: an encoder of another kind, or a share of which no encoder of this kind comes near.
    """
    kind = str(block.get("_target_")).rsplit(".", 1)[-1]
    if kind not in RESIZED:
        raise ValueError(
            f"its encoder is of class {kind}: only a ConformerEncoder and an RNNEncoder can be made smaller by rule. "
            "Write model.student.encoder yourself"
        )
    resized = RESIZED[kind]
    count = cache(lambda layers, width: _parameters(resized, block, layers, width))
    target = float(share) * count(block["n_layers"], block["d_model"])
    scale = float(share) ** (1 / 3)  # parameters grow with layers * width^2
    layers = max(1, round(scale * block["n_layers"]))
    step = 8 if block["d_model"] >= 128 else 4
    widths = range(step, block["d_model"] + 1, step) or range(block["d_model"], block["d_model"] + 1)
    choices = []
    for each in {max(1, layers - 1), layers, min(block["n_layers"], layers + 1)}:
        choices += [(each, width) for width in _nearest_widths(partial(count, each), target, widths)]

    def misfit(choice: tuple[int, int]) -> tuple[bool, int, float]:
        difference = abs(math.log(count(*choice) / target))
        return difference > TOLERANCE, abs(choice[0] - layers) if difference <= TOLERANCE else 0, difference

    best = min(choices, key=misfit)
    if not 0.5 < count(*best) / target < 2:
        raise ValueError(
            f"an encoder of {target:,.0f} parameters is wanted, the nearest of its kind has {count(*best):,.0f}. "
            "Choose a larger share"
        )
    return resized(block, *best)


def _nearest_widths(count: Callable[[int], int], target: float, widths: range) -> list[int]:
    """Return the widths around the one at which the parameters reach the target."""
    low, high = 0, len(widths) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count(widths[middle]) >= target else (middle + 1, high)
    return [widths[i] for i in {max(0, low - 1), low}]


def _parameters(resized: Callable[..., dict], block: dict[str, Any], layers: int, width: int) -> int:
    """Count the parameters: layers are alike, so that two small encoders give the number for any depth."""
    one, two = (_built_parameters(resized(block, depth, width)) for depth in (1, 2))
    return one + (layers - 1) * (two - one)


def _built_parameters(block: dict[str, Any]) -> int:
    with torch.random.fork_rng(devices=[]):
        module = EncDecRNNTBPEModel.from_config_dict(OmegaConf.create(block))
    return sum(parameter.numel() for parameter in module.parameters())


def _conformer(block: dict[str, Any], layers: int, width: int) -> dict[str, Any]:
    block, teacher = copy.deepcopy(block), block
    heads = width * teacher.get("n_heads", 4) / teacher["d_model"]
    divisors = [number for number in range(1, width + 1) if width % number == 0]
    block.update(n_layers=layers, d_model=width, n_heads=min(divisors, key=lambda number: abs(number - heads)))
    block["feat_out"] = -1  # the width
    if block.get("subsampling_conv_channels", -1) > 0:
        block["subsampling_conv_channels"] = min(block["subsampling_conv_channels"], width)
    if block.get("reduction_position") is not None:
        block["reduction_position"] = round(block["reduction_position"] * layers / teacher["n_layers"])
    if "stochastic_depth_start_layer" in block:
        block["stochastic_depth_start_layer"] = min(block["stochastic_depth_start_layer"], layers)
    return block


def _lstm(block: dict[str, Any], layers: int, width: int) -> dict[str, Any]:
    projection = max(1, min(width - 1, round(width * block["proj_size"] / block["d_model"])))
    block = {**copy.deepcopy(block), "n_layers": layers, "d_model": width, "proj_size": projection}
    if block.get("subsampling_conv_channels", -1) > 0:
        block["subsampling_conv_channels"] = min(block["subsampling_conv_channels"], projection)
    return block


RESIZED = {"ConformerEncoder": _conformer, "RNNEncoder": _lstm}
