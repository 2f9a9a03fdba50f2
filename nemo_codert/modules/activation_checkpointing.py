"""Activation checkpointing of a Conformer: a layer's activations are computed again in its backward pass.

Between the two passes a layer keeps only its input. Losses, gradients, names of weights and batch-norm statistics are
those of the plain encoder. Chen et al., arXiv:1604.06174. B batch, T encoder frames, D channels.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from nemo.collections.asr.modules import ConformerEncoder
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_layers(*encoders: ConformerEncoder) -> None:
    """From now on compute every layer of them twice, where it is in training mode and gradients are wanted."""
    for encoder in encoders:
        for layer in encoder.layers:
            layer.forward = RecomputedForward(layer)


class RecomputedForward:
    """`forward` of one layer, as an attribute of that layer: the layer keeps its class, which NeMo compares.

    An object and neither a closure nor a bound method: it goes with its layer through `copy.deepcopy` and `pickle`.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor, **inputs: Any) -> Any:
        forward = type(self.layer).forward
        if not (self.layer.training and torch.is_grad_enabled()):
            return forward(self.layer, x, **inputs)
        # x [B, T, D] by position: `checkpoint` takes the device, whose generator dropout draws from, from there only.
        return checkpoint(forward, self.layer, x, use_reentrant=False, context_fn=self._contexts, **inputs)

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _CopiedBuffers(self.layer)


class _CopiedBuffers:
    """While entered, a layer has copies of its buffers, so batch-norm statistics do not move a second time.

    Batch norm cannot be told to track none: it would save fewer tensors than in the first pass, which `checkpoint`
    refuses. May be entered again, as a second backward pass over one graph does.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.kept: list[tuple[nn.Module, str, torch.Tensor]] = []

    def __enter__(self) -> None:
        modules = self.layer.modules()
        self.kept = [(module, name, kept) for module in modules for name, kept in module.named_buffers(recurse=False)]
        for (module, name, _), copy in zip(self.kept, [kept.clone() for _, _, kept in self.kept], strict=True):
            setattr(module, name, copy)

    def __exit__(self, *error: object) -> None:
        for module, name, kept in self.kept:
            setattr(module, name, kept)
