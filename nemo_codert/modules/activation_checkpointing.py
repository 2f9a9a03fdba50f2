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
    """Make every layer of the encoders compute its activations twice, in training mode with gradients enabled."""
    for encoder in encoders:
        for layer in encoder.layers:
            layer.forward = RecomputedForward(layer)


class RecomputedForward:
    """Replacement of `forward` of one layer, set as an attribute: the layer keeps its class, which NeMo compares.

    An object, not a closure or a bound method: `copy.deepcopy` and `pickle` copy it together with its layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor, **inputs: Any) -> Any:
        forward = type(self.layer).forward
        if not (self.layer.training and torch.is_grad_enabled()):
            return forward(self.layer, x, **inputs)
        # x [B, T, D] by position: `checkpoint` restores dropout's generator for devices of positional arguments only.
        return checkpoint(forward, self.layer, x, use_reentrant=False, context_fn=self._contexts, **inputs)

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _CopiedBuffers(self.layer)


class _CopiedBuffers:
    """Context in which a layer has copies of its buffers, so that batch-norm statistics do not move a second time.

    Batch norm without tracked statistics is no alternative: it saves fewer tensors than in the first pass, which
    `checkpoint` refuses. The context may be entered again, as in a second backward pass over one graph.
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
