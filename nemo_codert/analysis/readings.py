"""The paper's analysis of one model on the utterances of a manifest: encoder, prediction and joint logits, measured.

CoDERT, arXiv:2106.07734: encoder logits have a higher entropy than the joint's. Four sources, each in two views:

            all frames                                        non-blank frames: those that emit a token, once each
encoder     every frame t (prediction projection masked)      the frame t in which token u + 1 is most likely emitted
prediction  every state u = 0..U, once (encoder's masked)     the state u that the frame's first token is emitted from
joint       every node the alignment passes: each frame's,    the node (t, u) of the frame's first token
            from which it is left by a blank, and each
            token's, T + U of them
encoder+    the encoder's rows plus the utterance's mean of the prediction logits, as a term at the encoder with
prior       `prior: mean_prediction` compares them: no c in `E + c, G - c` moves them. Not of a CTC head

The alignment is that of the reference (see `alignment`). A frame may emit several tokens: after the first one the
encoder's logits stay the same and the prediction network decides, so only the first counts.
May import models; nothing but scripts and analysis imports this.
"""

# B batch, S audio samples, T encoder frames, U target tokens, V vocabulary without blank (blank is class V)

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from nemo.collections.asr.parts.preprocessing.segment import AudioSegment
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from nemo_codert.analysis.alignment import Alignment, align, node_logits, passed_logits
from nemo_codert.analysis.branches import Branch
from nemo_codert.analysis.measures import Agreement, Confusions, Readings, Shift, agreement, readings, shift
from nemo_codert.config.model_kinds import is_pair
from nemo_codert.data.audio_files import channel_selector
from nemo_codert.data.screening import DURATION_TOLERANCE, text_fault
from nemo_codert.evaluation.transcribe import transcribed_texts
from nemo_codert.losses import valid_frames
from nemo_codert.modules.transducer import BranchOutput

FRAME_SOURCES = ("encoder", "prediction", "joint")  # shown frame by frame
WITH_PRIOR = "encoder+prior"
SOURCES = (*FRAME_SOURCES, WITH_PRIOR)
VIEWS = ("all", "non-blank")
UNKNOWN_TEXT = "characters unknown to the tokenizer"


# ---- utterances ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ManifestUtterance:
    """One line of a manifest.

    id: name of the audio file without folder and suffix, `@offset` added where given. channel: see `channel_selector`.
    """

    id: str
    path: str
    text: str
    duration: float
    offset: float
    channel: int | str = "average"

    def signal(self, sample_rate: int) -> np.ndarray:
        """Load samples [S] float32 at `sample_rate` Hz of one channel, or of all averaged.

        Raises:
            ValueError: audio that cannot be read to its end.
        """
        cut = {"offset": self.offset, "duration": self.duration, "channel_selector": self.channel}
        try:
            signal = AudioSegment.from_file(self.path, target_sr=sample_rate, **cut).samples
        except (soundfile.SoundFileError, OSError, RuntimeError) as error:
            raise ValueError(f"{self.path}: audio breaks off. Mend or remove this line") from error
        if len(signal) < (self.duration - DURATION_TOLERANCE) * sample_rate:
            raise ValueError(
                f"{self.path}: audio breaks off after {len(signal) / sample_rate:.2f} s. Mend or remove it"
            )
        return np.asarray(signal, dtype=np.float32)


def utterances(entries: Sequence[dict[str, Any]]) -> list[ManifestUtterance]:
    """Return the utterances of a manifest's entries, whose audio paths are resolved."""
    return [
        ManifestUtterance(
            id=Path(entry["audio_filepath"]).stem + (f"@{entry['offset']:g}" if entry.get("offset") else ""),
            path=entry["audio_filepath"],
            text=entry["text"],
            duration=entry["duration"],
            offset=entry.get("offset") or 0.0,
            channel=channel_selector(entry),
        )
        for entry in entries
    ]


def transcripts(branch: Branch, found: Sequence[ManifestUtterance]) -> list[str]:
    """Transcribe utterances by a branch, with the decoding of its model."""
    if not found:
        return []
    model = branch.model
    if is_pair(model.cfg):
        model = model.teacher_model() if branch.name == "teacher" else model.student_model()
    lines = [
        {"audio_filepath": one.path, "duration": one.duration, "offset": one.offset}
        | ({"channel": one.channel} if isinstance(one.channel, int) else {})
        for one in found
    ]
    return transcribed_texts(model, lines, batch_size=1)


def chosen(found: Sequence[ManifestUtterance], wanted: Sequence[str]) -> list[int]:
    """Return the places of the wanted utterances: one whole number n means the first n, else ids or file names.

    Raises:
        ValueError: a name that no utterance has.
    """
    if len(wanted) == 1 and wanted[0].isdecimal():
        return list(range(min(int(wanted[0]), len(found))))
    places: dict[str, list[int]] = {}
    for place, utterance in enumerate(found):
        for name in (utterance.id, Path(utterance.path).name):
            places.setdefault(name, []).append(place)
    if absent := [name for name in wanted if name not in places]:
        raise ValueError(
            f"no utterance is called {', '.join(absent)}: the {len(found)} utterances at hand run from "
            f"{found[0].id} to {found[-1].id}. An id is the name of the audio file"
        )
    return sorted({place for name in wanted for place in places[name]})


def transcript_faults(branches: Sequence[Branch], found: Sequence[ManifestUtterance]) -> dict[str, int]:
    """Count the transcripts whose alignments mean little, by reason, the most frequent first.

    Reasons: empty, more tokens than frames of the coarsest encoder, characters that the tokenizer lacks.
    """
    branch = max(branches, key=lambda branch: branch.seconds_per_frame)  # the tokenizers are equal
    tokenizer = branch.model.tokenizer

    def fault(utterance: ManifestUtterance) -> str | None:
        reason = text_fault(utterance.text, utterance.duration, tokenizer.text_to_ids, branch.seconds_per_frame)
        return reason or (UNKNOWN_TEXT if tokenizer.unk_id in tokenizer.text_to_ids(utterance.text) else None)

    faults = Counter(filter(None, map(fault, found)))
    return dict(faults.most_common())


# ---- measured ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameReadings:
    """One utterance of one branch, frame by frame.

    readings: source -> arrays [T]; the joint's and the prediction's are those of the state each frame is left from.
    classes and probabilities [T, k]: the encoder's likeliest ones, blank included. states [T] and frames [U]: see
    `alignment`. tokens [U]: ids. first [U]: False where the frame has emitted a token already. emitting: entropy in
    nats of the joint at each first token.
    """

    readings: dict[str, Readings]
    classes: np.ndarray
    probabilities: np.ndarray
    states: np.ndarray
    frames: np.ndarray
    tokens: np.ndarray
    first: np.ndarray
    emitting: np.ndarray


@dataclass
class BranchReadings:
    """All utterances of one branch.

    readings: (source, view) -> arrays [N] float64. shown: place of an utterance -> its frames.
    """

    pieces: list[str]
    seconds_per_frame: float
    readings: dict[tuple[str, str], Readings] = field(default_factory=dict)
    confusions: Confusions = field(default_factory=Confusions)
    shown: dict[int, FrameReadings] = field(default_factory=dict)


@dataclass
class Analysis:
    """Measurements of one model: by branch, and between the two branches where there are two.

    agreement: of the encoder logits. agreement_with_prior, shift: of those with the prior, and between the priors;
    None where a branch has none.
    """

    branches: dict[str, BranchReadings]
    agreement: Agreement | None = None
    agreement_with_prior: Agreement | None = None
    shift: Shift | None = None


@torch.no_grad()
def analyze(
    branches: Sequence[Branch],
    found: Sequence[ManifestUtterance],
    *,
    batch_size: int = 8,
    top_k: int = 5,
    shown: Sequence[int] = (),
    title: str = "Measuring",
) -> Analysis:
    """Measure branches of one model, or a student and a teacher, in eval mode, on one utterance or more.

    Args:
        top_k: classes per frame of the utterances `shown` (places in `found`).
        title: text of the progress bar.

    Raises:
        ValueError: audio that breaks off, an utterance without an encoder frame, logits that are not finite.
    """
    measured = {branch.name: _Collector(branch, top_k) for branch in branches}
    total, with_prior, priors = Agreement(), Agreement(), [0.0, 0.0]
    with tqdm(total=len(found), desc=title, unit="utt", mininterval=1.0) as bar:
        for start in range(0, len(found), batch_size):
            batch = found[start : start + batch_size]
            heads = [measured[branch.name].add(batch, start, shown) for branch in branches]
            if len(branches) == 2:
                total += _agreement(branches, [logits.encoder for logits in heads], heads)
                if all(logits.prior is not None for logits in heads):
                    with_prior += _agreement(branches, [logits.with_prior for logits in heads], heads)
                    priors = [
                        sums + logits.prior.double().sum((0, 1)) for sums, logits in zip(priors, heads, strict=True)
                    ]
            bar.update(len(batch))
    result = Analysis({name: one.result() for name, one in measured.items()})
    if len(branches) == 2:
        result.agreement = total
        if with_prior.frames:
            student, teacher = (sums / len(found) for sums in priors)
            result.agreement_with_prior, result.shift = with_prior, shift(teacher, student)
    return result


@dataclass(frozen=True)
class BranchLogits:
    """Raw logits of one branch on a batch, read along `alignment`.

    encoder and joint: [B, T, V+1]. prediction: [B, U+1, V+1]. prior: [B, 1, V+1], the mean prediction of each
    utterance, None of a CTC head. emitting: [B, U, V+1], the joint where each token is emitted.
    """

    encoder: torch.Tensor
    prediction: torch.Tensor
    prior: torch.Tensor | None
    joint: torch.Tensor
    emitting: torch.Tensor
    alignment: Alignment
    encoded_len: torch.Tensor
    tokens: torch.Tensor
    tokens_len: torch.Tensor

    def views(self) -> Iterator[tuple[tuple[str, str], torch.Tensor, torch.Tensor]]:
        """Yield (source, view), logits [B, N, V+1] and the valid rows [B, N], in the order of the module's table."""
        frames = valid_frames(self.encoded_len, self.encoder.shape[1])
        states = valid_frames(self.tokens_len + 1, self.prediction.shape[1])
        first = self.alignment.first() & self.emitted()
        yield ("encoder", "all"), self.encoder, frames
        yield ("encoder", "non-blank"), self.encoder_at_emissions(), first
        yield ("prediction", "all"), self.prediction, states
        yield ("prediction", "non-blank"), self.prediction[:, :-1], first
        passed = torch.cat([self.joint, self.emitting], 1), torch.cat([frames, self.emitted()], 1)
        yield ("joint", "all"), *passed
        yield ("joint", "non-blank"), self.emitting, first
        prior, has_prior = (0.0, False) if self.prior is None else (self.prior, True)
        yield (WITH_PRIOR, "all"), self.encoder + prior, frames & has_prior
        yield (WITH_PRIOR, "non-blank"), self.encoder_at_emissions() + prior, first & has_prior

    @property
    def with_prior(self) -> torch.Tensor:
        """The encoder logits with the prior, [B, T, V+1]."""
        return self.encoder + self.prior

    def emitted(self) -> torch.Tensor:
        """Return [B, U] bool, True where a token is a reference token, not padding."""
        return valid_frames(self.tokens_len, self.tokens.shape[1])

    def encoder_at_emissions(self) -> torch.Tensor:
        """Return the encoder logits of the frame in which each token is emitted, [B, U, V+1]."""
        rows = torch.arange(len(self.encoder), device=self.encoder.device)[:, None]
        return self.encoder[rows, self.alignment.frames]


def encoded_utterances(branch: Branch, batch: Sequence[ManifestUtterance]) -> BranchOutput:
    """Run a branch on some utterances and their transcripts.

    Raises:
        ValueError: audio that breaks off, an utterance without an encoder frame.
    """
    model = branch.model
    signals = [torch.from_numpy(utterance.signal(branch.sample_rate)) for utterance in batch]
    texts = [torch.tensor(model.tokenizer.text_to_ids(utterance.text), dtype=torch.int64) for utterance in batch]
    signal, signal_len = _padded(signals, model.device)
    tokens, tokens_len = _padded(texts, model.device)
    features, features_len = model.preprocessor(input_signal=signal, length=signal_len)
    output = branch.transducer.run(features, features_len, tokens, tokens_len)
    if short := [u.id for u, frames in zip(batch, output.encoded_len.tolist(), strict=True) if frames < 1]:
        raise ValueError(f"{', '.join(short)}: shorter than one encoder frame. Remove these lines")
    return output


def branch_logits(output: BranchOutput) -> BranchLogits:
    """Return all logits of a branch along the alignment of its transcript with its encoder frames, 1 or more each."""
    tokens, alignment = output.transcript, align(output)
    states = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return BranchLogits(
        encoder=output.encoder_logits,
        prediction=output.prediction_logits,
        prior=output.mean_prediction if output.networks.ctc_head is None else None,
        joint=passed_logits(output, alignment),
        emitting=node_logits(output, alignment.frames, states),
        alignment=alignment,
        encoded_len=output.encoded_len,
        tokens=tokens,
        tokens_len=output.transcript_len,
    )


class _Collector:
    """Collector of one branch's readings, batch by batch."""

    def __init__(self, branch: Branch, top_k: int) -> None:
        self._branch, self._top_k = branch, top_k
        self._readings: dict[tuple[str, str], list[Readings]] = {
            (source, view): [] for source in SOURCES for view in VIEWS
        }
        self._result = BranchReadings(branch.pieces, branch.seconds_per_frame)

    def add(self, batch: Sequence[ManifestUtterance], start: int, shown: Sequence[int]) -> BranchLogits:
        """Measure the utterances from place `start` on and return their logits."""
        logits = branch_logits(encoded_utterances(self._branch, batch))
        kept = {}
        for key, rows, valid in logits.views():
            kept[key] = readings(rows, valid)
            self._readings[key] += kept[key]
            self._refuse_non_finite(batch, kept[key])
        emitted = logits.emitted()
        self._result.confusions.add(
            logits.encoder_at_emissions()[emitted], logits.tokens[emitted], logits.alignment.first()[emitted]
        )
        for i, place in enumerate(range(start, start + len(batch))):
            if place in shown:
                own = {key: values[i] for key, values in kept.items()}
                self._result.shown[place] = self._frames(logits, i, own)
        return logits

    def _refuse_non_finite(self, batch: Sequence[ManifestUtterance], of_batch: list[Readings]) -> None:
        for utterance, values in zip(batch, of_batch, strict=True):
            if not torch.isfinite(values.entropy).all():
                raise ValueError(
                    f"{self._branch.name}: the logits on {utterance.id} are not finite. Look for broken audio, or "
                    "take an earlier checkpoint: this model may have diverged"
                )

    def _frames(self, logits: BranchLogits, i: int, own: dict[tuple[str, str], Readings]) -> FrameReadings:
        frames, tokens = int(logits.encoded_len[i]), int(logits.tokens_len[i])
        states = logits.alignment.states[i, :frames]
        whole = {source: own[source, "all"] for source in FRAME_SOURCES}
        whole["joint"] = Readings(*(values[:frames] for values in whole["joint"]))
        whole["prediction"] = Readings(*(values[states] for values in whole["prediction"]))
        likeliest = logits.encoder[i, :frames].double().softmax(-1).topk(min(self._top_k, logits.encoder.shape[-1]))
        return FrameReadings(
            readings={source: _arrays(values) for source, values in whole.items()},
            classes=likeliest.indices.cpu().numpy(),
            probabilities=likeliest.values.cpu().numpy(),
            states=states.cpu().numpy(),
            frames=logits.alignment.frames[i, :tokens].cpu().numpy(),
            tokens=logits.tokens[i, :tokens].cpu().numpy(),
            first=logits.alignment.first()[i, :tokens].cpu().numpy(),
            emitting=own["joint", "non-blank"].entropy.cpu().numpy(),
        )

    def result(self) -> BranchReadings:
        """Return all readings added so far."""
        for key, parts in self._readings.items():
            self._result.readings[key] = _arrays(Readings(*map(torch.cat, zip(*parts, strict=True))))
        return self._result


def _arrays(values: Readings) -> Readings:
    return Readings(*(value.cpu().numpy() for value in values))


def _padded(rows: list[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return pad_sequence(rows, batch_first=True).to(device), lengths


def _agreement(
    branches: Sequence[Branch], compared: Sequence[torch.Tensor], heads: Sequence[BranchLogits]
) -> Agreement:
    """Measure the agreement of logits [B, T, V+1] of a student and of its teacher, in this order."""
    student, teacher = branches
    return agreement(
        student_logits=compared[0],
        teacher_logits=compared[1],
        student_len=heads[0].encoded_len,
        teacher_len=heads[1].encoded_len,
        teacher_frames_per_student_frame=round(student.seconds_per_frame / teacher.seconds_per_frame),
    )
