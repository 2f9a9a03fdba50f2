"""Cost of the RNN-T loss of a stock joint: in chunks that are computed again, against NeMo's on the whole lattice.

Loss and gradient with respect to both projections and the joint's output layer (relu, H -> V+1). Imports torch and
`losses`; NeMo when its loss is measured.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, H joint channels

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from nemo_codert.benchmark.additive_loss import LossShape
from nemo_codert.benchmark.measure import MeasureSettings, measure, paired_ratio
from nemo_codert.benchmark.table import CostRow, Finding
from nemo_codert.losses import chunked_joint_rnnt_loss

CHUNKED, NEMO = "chunked_joint_rnnt_loss", "NeMo warprnnt_numba, whole lattice"
MEMORY_SHAPE, MEMORY_TARGET = LossShape(4, 400, 100, 4096), 300e6  # bytes


@dataclass(frozen=True)
class JointCase:
    """One row, by name. hidden: H. See `measure.Case`."""

    name: str
    shape: LossShape
    hidden: int
    device: str = "cpu"

    @property
    def slow(self) -> bool:
        """True for NeMo's loss on the CPU."""
        return self.device == "cpu" and self.name == NEMO

    def prepare(self) -> Callable[[], torch.Tensor]:
        """Make projections, output layer and targets; the returned call computes the loss and all gradients."""
        generator = torch.Generator().manual_seed(0)
        batch, frames, tokens, vocabulary = (getattr(self.shape, name) for name in asdict(self.shape))
        encoder, prediction = (
            torch.randn(batch, length, self.hidden, generator=generator).to(self.device).requires_grad_()
            for length in (frames, tokens + 1)
        )
        joint = torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Linear(self.hidden, vocabulary + 1))
        joint[1].weight.data.normal_(0.0, self.hidden**-0.5, generator=generator)
        joint[1].bias.data.zero_()
        joint.to(self.device)
        targets = torch.randint(0, vocabulary, (batch, tokens), generator=generator).to(self.device)
        lengths = [torch.full((batch,), length, device=self.device) for length in (frames, tokens)]
        loss_of = {CHUNKED: _chunked, NEMO: _nemo}[self.name](joint, encoder, prediction, targets, lengths)

        def run() -> torch.Tensor:
            loss = loss_of()
            torch.autograd.grad(loss, [encoder, prediction, *joint.parameters()])
            return loss.detach()

        return run


def _chunked(
    joint: torch.nn.Module,
    encoder: torch.Tensor,
    prediction: torch.Tensor,
    targets: torch.Tensor,
    lengths: list[torch.Tensor],
) -> Callable[[], torch.Tensor]:
    classes = joint[1].out_features
    return lambda: chunked_joint_rnnt_loss(
        lambda frames, states: joint(frames + states),
        *(encoder, prediction, targets, *lengths),
        num_classes=classes,
        blank=classes - 1,
        reduction="sum",
    )


def _nemo(
    joint: torch.nn.Module,
    encoder: torch.Tensor,
    prediction: torch.Tensor,
    targets: torch.Tensor,
    lengths: list[torch.Tensor],
) -> Callable[[], torch.Tensor]:
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    kwargs = {"fastemit_lambda": 0.0, "clamp": -1.0}
    loss = RNNTLoss(joint[1].out_features - 1, loss_name="warprnnt_numba", loss_kwargs=kwargs, reduction="sum")
    return lambda: loss(
        log_probs=joint(encoder[:, :, None] + prediction[:, None]),
        targets=targets,
        input_lengths=lengths[0],
        target_lengths=lengths[1],
    )


def joint_rows(
    shapes: Sequence[LossShape], hidden: int, device: str, largest_lattice: float, settings: MeasureSettings
) -> tuple[list[CostRow], list[Finding]]:
    """Measure both losses at every shape (NeMo's where a lattice has at most `largest_lattice` bytes).

    On the CPU all cases get `slow_rounds`: a call takes seconds, at the largest shape a minute.
    """
    rows, findings = [], []
    settings = replace(settings, rounds=settings.slow_rounds) if device == "cpu" else settings
    for shape in shapes:
        names = [CHUNKED] if shape.lattice_bytes > largest_lattice else [CHUNKED, NEMO]
        cases = [JointCase(name, shape, hidden, device) for name in names]
        measured = measure(cases, settings, f"stock joint {shape}")
        rows += [
            CostRow(
                part="joint",
                setting=f"{shape}, H = {hidden}",
                name=name,
                sizes={**asdict(shape), "hidden": hidden},
                seconds=result.seconds,
                ratio=paired_ratio([result.seconds], [measured[NEMO].seconds]) if NEMO in measured else None,
                ratio_to=NEMO if NEMO in measured else None,
                memory=result.memory,
                held_bytes=4 * shape.batch * (shape.frames + shape.tokens + 1) * hidden,
            )
            for name, result in measured.items()
        ]
        memory = measured[CHUNKED].memory
        if memory and memory.peak is not None:
            target = MEMORY_TARGET / 1e6 if shape == MEMORY_SHAPE else None
            text = (
                f"MB of peak memory of the chunked loss, a lattice having {shape.lattice_bytes / 1e6:.0f}, at {shape}"
            )
            findings.append(Finding(text, memory.peak / 1e6, at_most=target))
    return rows, findings
