"""One branch of a pair as one object, and its output in one step: what every criterion of the training loss reads.

B batch, S audio samples, F mel bins, T_in feature frames, T encoder frames, D channels, H channels of the joint,
U target tokens, V vocabulary without blank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Optional

import torch
from nemo.collections.asr.modules import ConvASRDecoder, RNNTJoint
from torch import nn

from nemo_codert.data.utterance_ids import cut_id
from nemo_codert.losses import valid_frames
from nemo_codert.modules.encoder_layers import captured_layers, layer_width
from nemo_codert.modules.encoder_logits import ctc_logits, projected_durations, projected_logits


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of NeMo's loaders with names.

    Args:
        signal: [B, S]. signal_len: [B] int64, samples.
        transcript: [B, U] token ids. transcript_len: [B] int64, tokens; 0 for an utterance without text.
        sample_id: [B] utterance ids where the loader gives them, else None; see `Batch.of`.
    """

    signal: torch.Tensor
    signal_len: torch.Tensor
    transcript: torch.Tensor
    transcript_len: torch.Tensor
    sample_id: Sequence[str] | None = None

    @classmethod
    def of(cls, batch: Sequence[Any]) -> "Batch":
        """Name the parts of a loader's batch.

        Args:
            batch: signal, signal_len, transcript, transcript_len and, with `return_sample_id`, the utterances: the
                ids [B] that a pair's classic loader gives, or the cuts of lhotse's; both lead to the id of the
                manifest's line (`nemo_codert.data.utterance_ids`).

        Example:
            >>> import torch
            >>> batch = Batch.of([torch.zeros(1, 8), torch.tensor([8]), torch.ones(1, 2), torch.tensor([2]), [7]])
            >>> batch.sample_id
            ('7',)
        """
        signal, signal_len, transcript, transcript_len, *utterances = batch
        sample_id = None
        if utterances:
            sample_id = tuple(cut_id(each) if hasattr(each, "id") else str(each) for each in _plain(utterances[0]))
        # lhotse gives the token ids as floating-point numbers where the first utterance has none.
        return cls(signal, signal_len, transcript.long(), transcript_len, sample_id)

    def labelled(self) -> torch.Tensor | None:
        """Return the indices [N] int64 of the utterances with text; None where all have text."""
        tokens = self.transcript_len.tolist()
        if all(tokens):
            return None
        rows = [b for b, count in enumerate(tokens) if count]
        return torch.tensor(rows, dtype=torch.int64, device=self.transcript_len.device)

    def rows(self, index: torch.Tensor) -> "Batch":
        """Return the utterances `index` [N] int64, padded as before."""
        tensors = self.signal, self.signal_len, self.transcript, self.transcript_len
        names = self.sample_id and tuple(self.sample_id[b] for b in index.tolist())
        return Batch(*(tensor[index] for tensor in tensors), names)

    def row(self, b: int) -> "Batch":
        """Return utterance b alone, without padding."""
        samples, tokens = int(self.signal_len[b]), int(self.transcript_len[b])
        return Batch(
            self.signal[b : b + 1, :samples],
            self.signal_len[b : b + 1],
            self.transcript[b : b + 1, :tokens],
            self.transcript_len[b : b + 1],
            self.sample_id and self.sample_id[b : b + 1],
        )


def _plain(utterances: Any) -> Sequence[Any]:
    return utterances.tolist() if isinstance(utterances, torch.Tensor) else list(utterances)


@dataclass(frozen=True)
class Transducer:
    """The three networks of an RNN-T. Holds references: the modules belong to the model.

    Args:
        ctc_head: set where the encoder logits are those of a model's CTC head, not of its joint.
    """

    encoder: nn.Module
    decoder: nn.Module
    joint: RNNTJoint
    ctc_head: ConvASRDecoder | None = None

    def networks(self) -> list[nn.Module]:
        """Return encoder, prediction network, joint and, where there is one, the CTC head."""
        return [network for network in (self.encoder, self.decoder, self.joint, self.ctc_head) if network is not None]

    def parameters(self) -> list[nn.Parameter]:
        """Return every parameter of the branch once, in the order a stock model registers them."""
        return list({id(p): p for network in self.networks() for p in network.parameters()}.values())

    def size(self) -> int:
        """Return the number of parameters; those of shared networks and of a shared projection count too."""
        # A shared projection is not a submodule of the student's joint, but the student needs it.
        parts = self.encoder, self.decoder, self.joint, self.joint.pred
        return sum({id(p): p.numel() for part in parts for p in part.parameters()}.values())

    def run(
        self,
        features: torch.Tensor,
        features_len: torch.Tensor,
        transcript: torch.Tensor | None = None,
        transcript_len: torch.Tensor | None = None,
        *,
        prediction_of: Optional["BranchOutput"] = None,
        layers: Sequence[int] = (),
    ) -> "BranchOutput":
        """Run the encoder; the other parts of the output are computed when a criterion first reads them.

        Args:
            features: [B, F, T_in]. features_len: [B] int64, feature frames.
            transcript: [B, U] token ids, None where only the encoder is of interest. transcript_len: [B] int64.
            prediction_of: output of a branch whose prediction network and prediction projection are this one's.
            layers: encoder layers whose outputs are kept; 1 is the first.
        """
        # The average of a student in half precision is float32 itself (`teachers.ema`).
        features = features.to(next(self.encoder.parameters(), features).dtype)
        with captured_layers(self.encoder, layers) as kept:
            encoded, encoded_len = self.encoder(audio_signal=features, length=features_len)[:2]
        return BranchOutput(self, encoded, encoded_len, transcript, transcript_len, prediction_of, kept)

    def layer_width(self) -> int:
        """Return the channels of an encoder layer's output.

        Raises:
            ValueError: an encoder whose layers cannot be captured.
        """
        return layer_width(self.encoder)


@dataclass(frozen=True, eq=False)
class TopK:
    """The likeliest classes of each frame: ids [B, T, k] int64 and probabilities [B, T, k]; see `teachers.cached`."""

    ids: torch.Tensor
    probabilities: torch.Tensor


@dataclass(frozen=True, eq=False)
class BranchOutput:
    """Output of one branch in one step. Every part is computed at most once, when it is first read.

    Args:
        networks: the branch.
        encoded: [B, D, T]. encoded_len: [B] int64, encoder frames.
        transcript: [B, U] token ids, or None. transcript_len: [B] int64, tokens.
        prediction_of: output of the branch that shares this one's prediction network and prediction projection.
            layers: outputs [B, D, T] of the encoder layers that were requested, 1 is the first; see `Transducer.run`.
    """

    networks: Transducer
    encoded: torch.Tensor
    encoded_len: torch.Tensor
    transcript: torch.Tensor | None = None
    transcript_len: torch.Tensor | None = None
    prediction_of: Optional["BranchOutput"] = None
    layers: Mapping[int, torch.Tensor] = field(default_factory=dict)
    top_k: ClassVar[TopK | None] = None  # set in outputs of which nothing else is known
    _of_heads: dict[nn.Module, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def encoder_side(self) -> torch.Tensor:
        """The joint's projection of the encoder, [B, T, H]; of an additive joint its encoder logits, H = V+1."""
        return self.networks.joint.project_encoder(self.encoded.transpose(1, 2))

    @cached_property
    def prediction_side(self) -> torch.Tensor:
        """The joint's projection of the prediction network, [B, U+1, H]. Needs a transcript."""
        if self.prediction_of is not None:
            return self.prediction_of.prediction_side
        decoded, _, _ = self.networks.decoder(
            targets=self.transcript, target_length=self.transcript_len
        )  # [B, D, U+1]
        return self.networks.joint.project_prednet(decoded.transpose(1, 2))

    @cached_property
    def encoder_logits(self) -> torch.Tensor:
        """Raw logits of the encoder alone, [B, T, V+1]: of the joint, or of the CTC head where there is one."""
        if self.networks.ctc_head is not None:
            return self.head_logits(self.networks.ctc_head)
        return projected_logits(self.networks.joint, self.encoder_side)

    def head_logits(self, head: ConvASRDecoder, layer: int | None = None) -> torch.Tensor:
        """Return raw logits [B, T, V+1] of a CTC head over the output of an encoder layer, by default the encoder's.

        Args:
            head: it belongs to one layer, and its logits are computed once.
            layer: one of `layers`; None: the output of the encoder.
        """
        if head not in self._of_heads:
            self._of_heads[head] = ctc_logits(head, self.encoded if layer is None else self.layers[layer])
        return self._of_heads[head]

    @cached_property
    def prediction_logits(self) -> torch.Tensor:
        """Raw logits of the prediction network alone, [B, U+1, V+1]. Needs a transcript."""
        return projected_logits(self.networks.joint, self.prediction_side)

    @cached_property
    def mean_prediction(self) -> torch.Tensor:
        """Mean of `prediction_logits` over the states 0..U_b of an utterance, [B, 1, V+1]: of state 0 without text."""
        return self._mean_of_states(self.prediction_logits)

    @cached_property
    def encoder_durations(self) -> torch.Tensor:
        """Raw logits of a TDT joint's N durations, of the encoder alone, [B, T, N]."""
        return projected_durations(self.networks.joint, self.encoder_side)

    @cached_property
    def mean_prediction_durations(self) -> torch.Tensor:
        """Mean of the durations' logits of the prediction network alone over an utterance's states, [B, 1, N]."""
        return self._mean_of_states(projected_durations(self.networks.joint, self.prediction_side))

    def _mean_of_states(self, logits: torch.Tensor) -> torch.Tensor:
        states = valid_frames(self.transcript_len + 1, logits.shape[1])[:, :, None]  # [B, U+1, 1]
        return logits.masked_fill(~states, 0.0).sum(1, keepdim=True) / (self.transcript_len + 1)[:, None, None]

    def rows(self, index: torch.Tensor) -> "BranchOutput":
        """Return the utterances `index` [N] int64, padded as before; no part is computed a second time."""
        return _Rows(self, index)

    def row(self, b: int) -> "BranchOutput":
        """Return utterance b alone, without padding; computed from its encoder frames."""
        frames, tokens = int(self.encoded_len[b]), int(self.transcript_len[b])
        return BranchOutput(
            self.networks,
            self.encoded[b : b + 1, :, :frames],
            self.encoded_len[b : b + 1],
            self.transcript[b : b + 1, :tokens],
            self.transcript_len[b : b + 1],
            self.prediction_of and self.prediction_of.row(b),
            {number: layer[b : b + 1, :, :frames] for number, layer in self.layers.items()},
        )


class _Rows(BranchOutput):
    """Some utterances of an output: every part is gathered from that of the whole."""

    def __init__(self, whole: BranchOutput, index: torch.Tensor) -> None:
        layers = {number: layer[index] for number, layer in whole.layers.items()}
        gathered = (part[index] for part in (whole.encoded, whole.encoded_len, whole.transcript, whole.transcript_len))
        super().__init__(whole.networks, *gathered, None, layers)
        self.__dict__.update(whole=whole, index=index)

    def head_logits(self, head: ConvASRDecoder, layer: int | None = None) -> torch.Tensor:
        # Overrides BranchOutput.head_logits.
        return self.whole.head_logits(head, layer)[self.index]


def _gathered(name: str) -> cached_property:
    part = cached_property(lambda self: getattr(self.whole, name)[self.index])
    part.__set_name__(_Rows, name)
    return part


for _name, _part in vars(BranchOutput).items():
    if isinstance(_part, cached_property):
        setattr(_Rows, _name, _gathered(_name))
