"""Measures of logits: entropy, blank mass, teacher-student agreement, word-piece confusions.

Pure maths in float64 for inputs of any precision. A class at -inf has probability 0 and adds 0 to every sum.
Imports torch and `losses.frames`. The analysis is that of CoDERT (arXiv:2106.07734), which finds that encoder logits
have a high entropy and hold acoustically plausible confusions.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank (blank is class V), N rows of any kind

from dataclasses import dataclass
from typing import NamedTuple

import torch

from nemo_codert.losses import group_frames, valid_frames


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Compute the entropy of softmax(logits) in nats, 0 to log C: [..., C] -> [...] float64."""
    return torch.special.entr(logits.double().softmax(-1)).sum(-1)


def blank_mass(logits: torch.Tensor) -> torch.Tensor:
    """Return the probability of blank, the last class: [..., V+1] -> [...] float64."""
    return logits.double().softmax(-1)[..., -1]


def piece_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return the probability of each word piece given that the class is not blank: [..., V+1] -> [..., V] float64.

    The sum is 1, or 0 where every piece is at -inf.
    """
    pieces = logits[..., :-1].double()
    silent = (pieces == -torch.inf).all(-1, keepdim=True)
    return pieces.masked_fill(silent, 0.0).softmax(-1).masked_fill(silent, 0.0)


def divergence(*, student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Compute KL(teacher || student) in nats at temperature 1: [..., C] twice -> [...] float64, 0 or more.

    inf where a class has probability 0 for the student and not for the teacher.
    """
    teacher, student = teacher_logits.double().log_softmax(-1), student_logits.double().log_softmax(-1)
    p = teacher.exp()
    # The clamp is for rows that differ by rounding alone, whose sums may fall below 0.
    return torch.where(p > 0, p * (teacher - student), 0.0).sum(-1).clamp(min=0.0)


def piece_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Compute the entropy among the word pieces, without blank, in nats: [..., V+1] -> [...] float64, 0 to log V.

    With b the blank mass, `entropy` is that of (b, 1 - b) plus 1 - b times this one: uncertainty about the moment of
    an emission is left out here, uncertainty about the piece remains.
    """
    return torch.special.entr(piece_probabilities(logits)).sum(-1)


class Readings(NamedTuple):
    """Entropy and entropy among word pieces in nats, and blank mass: [N] float64 each, N rows of one utterance."""

    entropy: torch.Tensor
    pieces: torch.Tensor
    blank: torch.Tensor


def readings(logits: torch.Tensor, valid: torch.Tensor) -> list[Readings]:
    """Read each utterance: logits [B, N, V+1], valid [B, N] bool. Other rows (padding) are never used."""
    rows, sizes = logits[valid], valid.sum(1).tolist()
    parts = (measure(rows).split(sizes) for measure in (entropy, piece_entropy, blank_mass))
    return [Readings(*own) for own in zip(*parts, strict=True)]


@dataclass(frozen=True)
class Agreement:
    """Agreement of a student's encoder logits with its teacher's, as sums over common frames; instances can be added.

    `same`: frames whose most likely class is the same. `total_divergence`: KL(teacher || student), nats.
    """

    frames: int = 0
    same: int = 0
    total_divergence: float = 0.0

    @property
    def top1(self) -> float:
        """Share of the frames whose most likely class is the same, 0 to 1."""
        return self.same / max(self.frames, 1)

    @property
    def divergence(self) -> float:
        """KL(teacher || student) in nats a frame."""
        return self.total_divergence / max(self.frames, 1)

    def __add__(self, other: "Agreement") -> "Agreement":
        total = self.total_divergence + other.total_divergence
        return Agreement(self.frames + other.frames, self.same + other.same, total)


def agreement(
    *,
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    student_len: torch.Tensor,
    teacher_len: torch.Tensor,
    teacher_frames_per_student_frame: int,
) -> Agreement:
    """Measure the agreement of encoder logits over the frames that the distillation loss compares.

    Teacher frames are averaged in groups. student_logits: [B, T', V+1]. teacher_logits: [B, T, V+1]. student_len,
    teacher_len: [B] int64 in frames of each.
    """
    factor = teacher_frames_per_student_frame
    teacher_logits, teacher_len = group_frames(teacher_logits.double(), teacher_len, factor)
    frames = min(student_logits.shape[1], teacher_logits.shape[1])
    common = valid_frames(torch.minimum(student_len, teacher_len).clamp(max=frames), frames)
    student, teacher = student_logits[:, :frames][common], teacher_logits[:, :frames][common]  # [N, V+1]
    same = student.argmax(-1) == teacher.argmax(-1)
    total = divergence(student_logits=student, teacher_logits=teacher).sum()
    return Agreement(len(same), int(same.sum()), float(total))


@dataclass(frozen=True)
class Shift:
    """Constants that the encoder logits of two models leave open: with `E + c, G - c` a model is the same for any c.

    c is the prior [V+1], the mean prediction logits of an utterance, averaged over utterances, less its mean over
    classes.

    Args:
        teacher, student: root mean square of c over classes, nats.
        apart: of the difference of the two, nats. 0: the encoder logits are comparable as they are.
    """

    teacher: float
    student: float
    apart: float


def shift(teacher: torch.Tensor, student: torch.Tensor) -> Shift:
    """Measure the shift between two models by their mean prediction logits [V+1].

    Example:
        >>> shift(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0]))
        Shift(teacher=1.0, student=1.0, apart=2.0)
    """
    sides = [logits.double() - logits.double().mean() for logits in (teacher, student)]
    return Shift(*(float(part.square().mean().sqrt()) for part in (*sides, sides[0] - sides[1])))


@dataclass(frozen=True)
class Confusion:
    """The encoder's distribution where one reference piece is emitted, averaged over its `count` emissions.

    `first`: share of the emissions that are the first of their frame; the encoder has one distribution for a frame and
    cannot favour several pieces. `blank`: mean blank mass. `own`: mean probability of the piece itself, and `pieces`:
    the likeliest pieces as (id, mean probability), both among word pieces alone (see `piece_probabilities`).
    """

    token: int
    count: int
    first: float
    blank: float
    own: float
    pieces: list[tuple[int, float]]


class Confusions:
    """Sums, per reference piece, of the encoder's distributions at the frames where the piece is emitted."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, logits: torch.Tensor, tokens: torch.Tensor, first: torch.Tensor) -> None:
        """Add encoder logits [N, V+1] at the frames that emit the reference pieces `tokens` [N] int64.

        first: [N] bool, False where the frame has emitted another token already.
        """
        counts = torch.stack([torch.ones_like(first), first], dim=1)
        rows = torch.cat(
            [counts.double(), blank_mass(logits)[:, None], piece_probabilities(logits)], dim=1
        )  # [N, 3+V]
        for token in tokens.unique().tolist():
            own = rows[tokens == token].sum(0).cpu()
            self._sums[token] = self._sums[token] + own if token in self._sums else own

    def most_frequent(self, k: int) -> list[Confusion]:
        """Return every reference piece seen, the most frequent first, with the `k` (or all) likeliest pieces."""
        found = []
        for token, row in sorted(self._sums.items(), key=lambda item: (-float(item[1][0]), item[0])):
            count, (first, blank), mean = int(row[0]), (row[1:3] / row[0]).tolist(), row[3:] / row[0]
            best, ids = mean.topk(min(k, len(mean)))
            pieces = list(zip(ids.tolist(), best.tolist(), strict=True))
            found.append(Confusion(token, count, first, blank, float(mean[token]), pieces))
        return found
