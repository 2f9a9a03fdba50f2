"""Cost of the KL divergence at the nodes of two additive joints: by products, and on the whole lattice by torch.

Value and gradient with respect to the student's two logit tensors, beside the RNN-T loss of the same logits. Imports
torch and `losses`.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass

import torch

from nemo_codert.benchmark.additive_loss import SPEED_SHAPE, LossShape, make_loss_batch
from nemo_codert.benchmark.measure import MeasureSettings, measure, paired_ratio
from nemo_codert.benchmark.table import CostRow, Finding
from nemo_codert.losses import additive_lattice_kl, additive_rnnt_loss

OURS, SHARED, WHOLE = "additive_lattice_kl", "the same, shared prediction network", "whole lattice, torch"
RNNT = "additive_rnnt_loss"
MOST_OF_RNNT, LEAST_OF_WHOLE, MOST_MEMORY = 3.0, 30.0, 3.0  # targets, stated for the CPU at SPEED_SHAPE


@dataclass(frozen=True)
class LatticeCase:
    """One row, by name. See `measure.Case`."""

    name: str
    shape: LossShape
    device: str = "cpu"

    @property
    def slow(self) -> bool:
        """True for the whole lattice on the CPU."""
        return self.device == "cpu" and self.name == WHOLE

    def prepare(self) -> Callable[[], torch.Tensor]:
        """Draw the logits of both sides; the returned call computes the value and the student's gradients."""
        student, noise = make_loss_batch(self.shape, self.device), make_loss_batch(self.shape, self.device)
        own = [student.encoder_logits, student.prediction_logits]
        teacher = [-noise.encoder_logits.detach(), noise.prediction_logits.detach().flip(2)]
        lengths = student.encoded_lengths, student.target_lengths
        if self.name == SHARED:
            own = [own[0], teacher[1]]

        def value() -> torch.Tensor:
            if self.name == RNNT:
                return additive_rnnt_loss(*own, student.targets, *lengths, blank=student.blank)
            if self.name == WHOLE:
                return whole_lattice_kl(*own, *teacher)
            return additive_lattice_kl(
                student_encoder_logits=own[0],
                student_prediction_logits=own[1],
                teacher_encoder_logits=teacher[0],
                teacher_prediction_logits=teacher[1],
                encoded_lengths=lengths[0],
                target_lengths=lengths[1],
            )

        def run() -> torch.Tensor:
            loss = value()
            torch.autograd.grad(loss, [logits for logits in own if logits.requires_grad])
            return loss.detach()

        return run


def whole_lattice_kl(
    student_encoder: torch.Tensor,
    student_prediction: torch.Tensor,
    teacher_encoder: torch.Tensor,
    teacher_prediction: torch.Tensor,
) -> torch.Tensor:
    """Return what `additive_lattice_kl` does for full lengths, through log-probabilities [B, T, U+1, V+1]."""
    p = (teacher_encoder[:, :, None] + teacher_prediction[:, None]).log_softmax(-1)
    q = (student_encoder[:, :, None] + student_prediction[:, None]).log_softmax(-1)
    nodes = (p.exp() * (p - q)).sum(-1)  # [B, T, U+1]
    frames, states = nodes.shape[1:]
    return nodes.mean(0).sum() * (frames + states - 1) / (frames * states)


def lattice_rows(
    shapes: Sequence[LossShape], device: str, largest_lattice: float, settings: MeasureSettings
) -> tuple[list[CostRow], list[Finding]]:
    """Measure all cases at every shape, the whole lattice where one has at most `largest_lattice` bytes."""
    rows, findings = [], []
    for shape in shapes:
        names = [OURS, SHARED, RNNT, *([WHOLE] if shape.lattice_bytes <= largest_lattice else [])]
        measured = measure([LatticeCase(name, shape, device) for name in names], settings, f"lattice {shape}")
        logits = 2 * shape.logits_bytes  # those of student and teacher
        seconds = {name: result.seconds for name, result in measured.items()}
        rows += [
            CostRow(
                part="lattice",
                setting=str(shape),
                name=name,
                sizes=asdict(shape),
                seconds=result.seconds,
                ratio=paired_ratio([result.seconds], [seconds[RNNT]]),
                ratio_to=RNNT,
                memory=result.memory,
                held_bytes=logits,
            )
            for name, result in measured.items()
        ]
        has_targets = device == "cpu" and astuple(shape) == SPEED_SHAPE
        of_rnnt = paired_ratio([seconds[OURS]], [seconds[RNNT]])
        findings.append(Finding(f"{OURS} / {RNNT} at {shape}", of_rnnt, at_most=MOST_OF_RNNT if has_targets else None))
        if WHOLE in seconds:
            times = paired_ratio([seconds[WHOLE]], [seconds[OURS]])
            text = f"times faster than the KL on the whole lattice at {shape}"
            findings.append(Finding(text, times, at_least=LEAST_OF_WHOLE if has_targets else None))
        memory = measured[OURS].memory
        if memory and memory.peak is not None:
            text = f"peak memory of {OURS} / logits of both sides at {shape}"
            findings.append(Finding(text, memory.peak / logits, at_most=MOST_MEMORY if has_targets else None))
    return rows, findings
