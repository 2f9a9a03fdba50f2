"""Outputs of an encoder's layers, captured by NeMo's own seam for losses in the middle of an encoder (`AccessMixin`).

The seam lies outside the layers, so a layer that activation checkpointing computes twice is captured once.
B batch, T encoder frames, D channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from nemo_codert.modules.cached_encoder import CachedEncoder
from nemo_codert.nemo_compat import access_to_layers, has_layer_access


def num_layers(encoder: nn.Module) -> int:
    """Return the number of layers whose outputs can be captured.

    Raises:
        ValueError: an encoder without NeMo's access to its layers.
    """
    if not has_layer_access(encoder):
        raise ValueError(
            f"the layers of {type(encoder).__name__} cannot be captured: a term at: hidden, or at: ctc with layers, "
            "needs a ConformerEncoder"
        )
    return len(encoder.layers)


def layer_width(encoder: nn.Module) -> int:
    """Return the channels of a layer's captured output: of its projection where the encoder has `feat_out`.

    Raises:
        ValueError: see `num_layers`.
    """
    if isinstance(encoder, CachedEncoder):
        return encoder.d_model
    num_layers(encoder)
    return encoder._feat_out


@contextmanager
def captured_layers(encoder: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Fill the yielded mapping, on leaving the context, with the outputs [B, D, T] of layers; 1 is the first.

    Raises:
        ValueError: an encoder without access to its layers, or without such a layer.
    """
    kept: dict[int, torch.Tensor] = {}
    if not layers:
        yield kept
        return
    last = num_layers(encoder)
    for number in layers:
        if not 1 <= number <= last:
            raise ValueError(f"layer {number} of an encoder of {last} layers: wanted 1 to {last}")
    with access_to_layers(encoder, [number - 1 for number in layers]) as outputs:
        yield kept
    kept.update((number, outputs[number - 1]) for number in layers)
