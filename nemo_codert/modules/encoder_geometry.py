"""Width and stride of an encoder's output, read from the built module, which may be any NeMo encoder.

B batch, F mel bins, T_in feature frames, T encoder frames, D channels.
"""

from dataclasses import dataclass

import torch
from torch import nn

from nemo_codert.modules.cached_encoder import CachedEncoder

# Long enough that a frame more or less (causal convolutions) rounds to the same stride up to 16x.
PROBE_FRAMES = 960


@dataclass(frozen=True)
class EncoderGeometry:
    """Shape of an encoder's output. `width`: channels D. `stride`: feature frames T_in per encoder frame T."""

    width: int
    stride: int


@torch.no_grad()
def encoder_geometry(encoder: nn.Module, features: int) -> EncoderGeometry:
    """Run a silent input through `encoder` and read its width and stride; mode, positions and random state are kept.

    Args:
        encoder: module called as `encoder(audio_signal=[B, F, T_in], length=[B])`.
        features: F.

    Returns:
        Width and stride.
    """
    if isinstance(encoder, CachedEncoder):
        return EncoderGeometry(encoder.d_model, encoder.subsampling_factor)
    parameter = next(encoder.parameters())
    signal = torch.zeros(1, features, PROBE_FRAMES, device=parameter.device, dtype=parameter.dtype)
    length = torch.full((1,), PROBE_FRAMES, device=parameter.device, dtype=torch.int64)
    was_training, positions = encoder.training, getattr(getattr(encoder, "pos_enc", None), "pe", None)
    longest = getattr(encoder, "max_audio_length", None)
    encoder.eval()
    try:
        encoded, encoded_len = encoder(audio_signal=signal, length=length)[:2]
    finally:
        encoder.train(was_training)
        if positions is not None:  # NeMo's table grows to the longest input, and an export would hold all of it
            encoder.pos_enc.pe, encoder.max_audio_length = positions, longest
    return EncoderGeometry(width=encoded.shape[1], stride=round(PROBE_FRAMES / int(encoded_len[0])))
