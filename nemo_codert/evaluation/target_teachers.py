"""Teachers whose targets are stored, and their mixture: NeMo encoders with an RNN-T or CTC head, or without one.

B batch, S samples, D channels, T frames, U target tokens, V vocabulary without blank, K teachers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nemo.collections.asr.modules import ConvASRDecoder, RNNTJoint
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from nemo_codert.config.model_kinds import is_pair
from nemo_codert.losses import group_frames
from nemo_codert.models.open_model import networks_of, open_model
from nemo_codert.modules.encoder_geometry import encoder_geometry
from nemo_codert.modules.encoder_logits import ctc_logits
from nemo_codert.modules.transducer import BranchOutput, Transducer


@dataclass(frozen=True)
class TargetTeacher:
    """A teacher that makes targets.

    Args:
        name: of its file, or its pretrained name.
        model: restored, in eval mode.
        encoder: its encoder.
        networks: its RNN-T networks; None where it has no joint.
        ctc_head: its CTC head; None where it has none.
        pieces: word pieces in the order of their ids; none of an encoder alone.
        stride: feature frames per encoder frame. width: channels D of its encoder.
    """

    name: str
    model: nn.Module
    encoder: nn.Module
    networks: Transducer | None
    ctc_head: ConvASRDecoder | None
    pieces: tuple[str, ...]
    stride: int
    width: int

    @property
    def sample_rate(self) -> int:
        """Hz of the audio that its features are made from."""
        return int(self.model.cfg.preprocessor.get("sample_rate", 16000))

    @property
    def feature_seconds(self) -> float:
        """Seconds of audio per feature frame."""
        return float(self.model.cfg.preprocessor.get("window_stride", 0.01))

    def encode(self, signal: torch.Tensor, signal_len: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return encoder output [B, D, T] and lengths [B] of a signal [B, S]."""
        features, features_len = self.model.preprocessor(input_signal=signal, length=signal_len)
        return self.encoder(audio_signal=features, length=features_len)[:2]

    def logits(self, encoded: torch.Tensor, encoded_len: torch.Tensor, place: str, texts: Sequence[str] | None) -> Any:
        """Return the logits [B, T, V+1] of encoder output.

        Args:
            encoded: [B, D, T]. encoded_len: [B].
            place: `encoder` or `ctc`.
            texts: transcripts whose mean prediction logits are added; None: no prior.
        """
        if place == "ctc":
            return ctc_logits(self.ctc_head, encoded)
        transcript, transcript_len = self.tokens(texts or [""] * len(encoded), encoded.device)
        output = BranchOutput(self.networks, encoded, encoded_len, transcript, transcript_len)
        return output.encoder_logits + output.mean_prediction if texts is not None else output.encoder_logits

    def tokens(self, texts: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids [B, U], at least one column, and their numbers [B]."""
        ids = [
            torch.tensor(self.model.tokenizer.text_to_ids(text) if text else [], dtype=torch.int64) for text in texts
        ]
        lengths = torch.tensor([len(each) for each in ids], device=device)
        padded = pad_sequence([nn.functional.pad(each, (0, int(not len(each)))) for each in ids], batch_first=True)
        return padded.to(device), lengths

    def texts(self, encoded: torch.Tensor, encoded_len: torch.Tensor, place: str) -> list[str]:
        """Transcribe encoder output: greedily at the CTC head, or by the model's own RNN-T decoding."""
        if place == "ctc":
            return list(self._ctc_texts(ctc_logits(self.ctc_head, encoded).argmax(-1), encoded_len))
        hypotheses = self.model.decoding.rnnt_decoder_predictions_tensor(
            encoder_output=encoded, encoded_lengths=encoded_len, return_hypotheses=True
        )
        return [(each[0] if isinstance(each, list) else each).text for each in hypotheses]

    def _ctc_texts(self, classes: torch.Tensor, lengths: torch.Tensor) -> Iterator[str]:
        blank = len(self.pieces)
        for row, length in zip(classes.tolist(), lengths.tolist(), strict=True):
            found = [c for c, before in zip(row[:length], [None, *row], strict=False) if c != before and c != blank]
            yield self.model.tokenizer.ids_to_text(found)


def open_teacher(source: str) -> TargetTeacher:
    """Open a model file or pretrained name as a teacher; of a pair, its teacher.

    Raises:
        ValueError: see `open_model`; also a model without an encoder of features.

    Example:
        >>> open_teacher("teacher.nemo")  # no such file here
        Traceback (most recent call last):
        ...
        ValueError: teacher.nemo is not a file. Give the path of a .nemo or .ckpt file, or a pretrained name
    """
    model = open_model(source, kinds=None)
    if not all(hasattr(model, part) for part in ("encoder", "preprocessor")):
        raise ValueError(f"{source} has no encoder of features: {type(model).__name__}")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return as_teacher(model, source.replace("\\", "/").rsplit("/", 1)[-1])


def as_teacher(model: nn.Module, name: str) -> TargetTeacher:
    """Return a restored model as a teacher; of a pair, its teacher."""
    networks, head = None, getattr(model, "ctc_decoder", None)
    if isinstance(getattr(model, "joint", None), RNNTJoint):
        networks = networks_of(model, "teacher" if is_pair(model.cfg) else "student")
        networks = Transducer(networks.encoder, networks.decoder, networks.joint)
        pieces = tuple(model.joint.vocabulary)
    else:
        own = getattr(model, "decoder", None)
        head = own if isinstance(own, ConvASRDecoder) and getattr(own, "vocabulary", None) else None
        pieces = tuple(head.vocabulary) if head is not None else ()
    encoder = networks.encoder if networks else model.encoder
    geometry = encoder_geometry(encoder, int(model.cfg.preprocessor.features))
    return TargetTeacher(name, model, encoder, networks, head, pieces, geometry.stride, geometry.width)


def mixture_weights(error_rates: Sequence[float], combine: str) -> np.ndarray:
    """Return the weights of K teachers for one utterance; they sum to 1.

    SpeechBrain's rules of arXiv:2005.09310, applied to each utterance instead of to a batch, so that neither the order
    nor the batch size changes a target.

    Args:
        error_rates: word error rate of each teacher on the utterance, 1 is 100%; not read for `mean`.
        combine: `mean` (equal weights), `wer` (softmax of 100 minus the rate in percent), `best` (the lowest rate, the
            first of equal ones).

    Example:
        >>> mixture_weights([0.0, 0.0, 0.25], "wer").round(3).tolist(), mixture_weights([0.5, 0.2], "best").tolist()
        ([0.5, 0.5, 0.0], [0.0, 1.0])
    """
    count = len(error_rates)
    if combine == "mean":
        return np.full(count, 1 / count)
    rates = 100 * np.asarray(error_rates, dtype=np.float64)
    if combine == "best":
        return np.eye(count)[int(rates.argmin())]
    exponentials = np.exp(rates.min() - rates)
    return exponentials / exponentials.sum()


def mixture(
    logits: Sequence[torch.Tensor],
    lengths: Sequence[torch.Tensor],
    groups: Sequence[int],
    weights: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted mean of K teachers' distributions, which has the gradient of their weighted divergences.

    Args:
        logits: of each teacher [B, T_k, V+1]. lengths: [B] each.
        groups: frames of each teacher that make one target frame, see `group_frames`.
        weights: [B, K], rows that sum to 1.
        temperature: divides the logits.

    Returns:
        Probabilities [B, T, V+1] and lengths [B]: those of the teacher with the fewest frames.

    Example:
        >>> logits, length = torch.zeros(1, 2, 2), torch.tensor([2])
        >>> mixture([logits, logits], [length, length], [1, 1], torch.tensor([[0.5, 0.5]]), 1.0)[0].tolist()
        [[[0.5, 0.5], [0.5, 0.5]]]
    """
    grouped = []
    for each, length, factor in zip(logits, lengths, groups, strict=True):
        scaled = each.to(torch.promote_types(each.dtype, torch.float32)) / temperature
        grouped.append(group_frames(scaled, length, factor))
    frames = min(each.shape[1] for each, _ in grouped)
    length = torch.stack([length for _, length in grouped]).amin(0)
    if len(grouped) == 1:
        return grouped[0][0].softmax(-1), length
    total = sum(
        weights[:, k, None, None].to(each.dtype) * each[:, :frames].softmax(-1) for k, (each, _) in enumerate(grouped)
    )
    return total, length
