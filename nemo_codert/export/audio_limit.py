"""Longest audio that an exported encoder takes: its table of positions is fixed in the file, NeMo's grows.

B batch, T encoder frames.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemo.collections.asr.models import ASRModel
from nemo.collections.asr.parts.submodules.multi_head_attention import (
    LocalAttRelPositionalEncoding,
    PositionalEncoding,
)
from torch import nn

from nemo_codert.modules.encoder_geometry import encoder_geometry

NAMED_UTTERANCES = 10
EXAMPLE_FRAMES = 256  # feature frames that NeMo's export runs through an encoder


def seconds_per_frame(model: ASRModel, encoder: nn.Module | None = None) -> float:
    """Return the seconds of one encoder frame.

    Args:
        model: gives the features. encoder: of a branch of a pair; None: the model's own.
    """
    stride = encoder_geometry(model.encoder if encoder is None else encoder, model.cfg.preprocessor.features).stride
    return stride * model.cfg.preprocessor.get("window_stride", 0.01)


def longest_seconds(encoder: nn.Module, frame_seconds: float) -> float | None:
    """Return the longest audio in seconds that an export of an encoder takes at once, None where nothing limits it.

    Args:
        encoder: of a model that was opened from its file: NeMo's table of positions grows with what it transcribes.
        frame_seconds: of one encoder frame.

    Example:
        >>> longest_seconds(nn.Identity(), 0.08) is None
        True
    """
    table = getattr(encoder, "pos_enc", None)
    if not isinstance(table, PositionalEncoding) or isinstance(table, LocalAttRelPositionalEncoding):
        return None
    return encoder.max_audio_length * frame_seconds


def check_positions(encoder: nn.Module) -> None:
    """Check that an encoder's table of positions is long enough to be exported at all.

    Args:
        encoder: see `longest_seconds`.

    Raises:
        ValueError: fewer positions than NeMo's export needs.
    """
    if longest_seconds(encoder, 1.0) is None:
        return
    wanted = math.ceil(EXAMPLE_FRAMES / encoder.subsampling_factor)
    if encoder.max_audio_length < wanted:
        raise ValueError(
            f"encoder.pos_emb_max_len is {encoder.max_audio_length}, wanted {wanted} or more: NeMo's export to ONNX "
            f"runs {EXAMPLE_FRAMES} feature frames through the encoder. Train with a larger one"
        )


def limit_in_words(encoder: nn.Module, frame_seconds: float) -> str:
    """Return the limit for a description of exported files, with a comma before it; empty without a limit.

    Args:
        encoder, frame_seconds: see `longest_seconds`.
    """
    if (seconds := longest_seconds(encoder, frame_seconds)) is None:
        return ""
    return f", audio of at most {seconds:g} seconds at a time ({_table(encoder, frame_seconds)})"


def _table(encoder: nn.Module, frame_seconds: float) -> str:
    return f"encoder.pos_emb_max_len is {encoder.max_audio_length} frames of {1000 * frame_seconds:g} ms"


def check_lengths(entries: Sequence[Mapping[str, Any]], encoder: nn.Module, frame_seconds: float) -> None:
    """Check that exported files can transcribe all utterances.

    Args:
        entries: of a manifest. encoder, frame_seconds: see `longest_seconds`.

    Raises:
        ValueError: utterances that are longer; names the first ten.
    """
    seconds = longest_seconds(encoder, frame_seconds)
    longer = [entry for entry in entries if seconds is not None and entry["duration"] > seconds]
    if not longer:
        return
    shown = [f"  - {entry['audio_filepath']}: {entry['duration']:g} s" for entry in longer[:NAMED_UTTERANCES]]
    shown += [f"  ... and {len(longer) - len(shown)} more"] if len(longer) > len(shown) else []
    raise ValueError(
        f"{len(longer)} utterances are longer than {seconds:g} seconds, for which an export has positions "
        f"({_table(encoder, frame_seconds)}). Leave them out, or train with a larger pos_emb_max_len:\n"
        + "\n".join(shown)
    )
