"""LSTMs under bfloat16 autocast on processors that cannot compute them so.

PyTorch hands a bfloat16 LSTM on the CPU to oneDNN, which refuses it where the processor lacks AVX-512 ("could not
create a primitive descriptor"): training and decoding with `trainer.precision=bf16-mixed` would stop there.
"""

import functools
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence


def cpu_computes_bfloat16_lstms() -> bool:
    """Whether oneDNN has bfloat16 kernels for this processor."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is None or bool(supported())


def let_lstms_run_under_bfloat16() -> None:
    """Where they would fail, and nowhere else: `torch.nn.LSTM` then leaves autocast on the CPU and runs in float32."""
    if cpu_computes_bfloat16_lstms() or hasattr(nn.LSTM.forward, "__wrapped__"):
        return
    original = nn.LSTM.forward

    @functools.wraps(original)
    def forward(self: nn.LSTM, input: Any, hx: tuple | None = None) -> Any:  # torch's own names
        device = (input.data if isinstance(input, PackedSequence) else input).device.type
        if device != "cpu" or not torch.is_autocast_enabled("cpu"):
            return original(self, input, hx)
        with torch.autocast("cpu", enabled=False):
            return original(self, input.float(), hx and tuple(state.float() for state in hx))

    nn.LSTM.forward = forward
