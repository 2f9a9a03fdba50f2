"""Cost of the TDT loss of an additive joint: ours, the RNN-T loss of its tokens, and NeMo's on the expanded lattice.

NeMo has `tdt` for a GPU alone; on a CPU its `tdt_pytorch` is measured, whose loops run over nodes and durations. Each
of its steps back allocates the gradient of a whole lattice: at larger shapes its value alone can be measured. Imports
torch and `losses`; NeMo when its loss is measured.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank, N durations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace

import torch

from nemo_codert.benchmark.additive_loss import GPU_SHAPE, SPEED_SHAPE, LossShape, make_loss_batch
from nemo_codert.benchmark.measure import Measured, MeasureSettings, measure, paired_ratio
from nemo_codert.benchmark.table import CostRow, Finding
from nemo_codert.losses import additive_rnnt_loss, additive_tdt_loss

OURS, OUR_VALUE, RNNT = "additive_tdt_loss", "additive_tdt_loss, value alone", "additive_rnnt_loss of the tokens"
NEMO, NEMO_VALUE, NEMO_ON_GPU = "NeMo tdt_pytorch", "NeMo tdt_pytorch, value alone", "NeMo tdt"
DURATIONS, SIGMA = (0, 1, 2, 3, 4), 0.05
SMALL_SHAPE = (2, 20, 5, 1024)  # NeMo's gradient takes seconds on a CPU
MOST_GRADIENT_BYTES = 1e12  # bytes that the steps of NeMo's gradient write, one lattice each: some minutes
LEAST_OF_NEMO, LEAST_MEMORY = 100.0, 30.0  # targets, stated for the CPU at SPEED_SHAPE


@dataclass(frozen=True)
class TDTCase:
    """One row, by name. See `measure.Case`."""

    name: str
    shape: LossShape
    device: str = "cpu"

    @property
    def slow(self) -> bool:
        """True for NeMo's loss on the CPU."""
        return self.name in (NEMO, NEMO_VALUE)

    def prepare(self) -> Callable[[], torch.Tensor]:
        """Draw the logits; the returned call computes the summed loss, and its gradients unless its value alone."""
        classes = replace(self.shape, vocabulary=self.shape.vocabulary + len(DURATIONS))
        batch = make_loss_batch(classes, self.device)
        logits = batch.encoder_logits, batch.prediction_logits
        targets = batch.targets % self.shape.vocabulary
        rest = targets, batch.encoded_lengths, batch.target_lengths
        blank, is_value = self.shape.vocabulary, self.name in (OUR_VALUE, NEMO_VALUE)
        if self.name == RNNT:
            logits = tuple(each.detach()[..., : -len(DURATIONS)].contiguous().requires_grad_() for each in logits)
            loss_of = _our_rnnt(blank)
        else:
            loss_of = _our_tdt(blank) if self.name in (OURS, OUR_VALUE) else _nemos(self.name, blank)

        def run() -> torch.Tensor:
            with torch.set_grad_enabled(not is_value):
                loss = loss_of(*logits, *rest)
            if not is_value:
                torch.autograd.grad(loss, logits)
            return loss.detach()

        return run


def _our_rnnt(blank: int) -> Callable[..., torch.Tensor]:
    return lambda *arguments: additive_rnnt_loss(*arguments, blank=blank, reduction="sum")


def _our_tdt(blank: int) -> Callable[..., torch.Tensor]:
    options = {"durations": DURATIONS, "sigma": SIGMA, "blank": blank, "reduction": "sum"}
    return lambda *arguments: additive_tdt_loss(*arguments, **options)


def _nemos(name: str, blank: int) -> Callable[..., torch.Tensor]:
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    kwargs = {"durations": DURATIONS, "sigma": SIGMA}
    loss_name = "tdt" if name == NEMO_ON_GPU else "tdt_pytorch"
    loss = RNNTLoss(num_classes=blank, loss_name=loss_name, loss_kwargs=kwargs, reduction="sum")

    def loss_of(
        encoder: torch.Tensor,
        prediction: torch.Tensor,
        targets: torch.Tensor,
        frames: torch.Tensor,
        tokens: torch.Tensor,
    ) -> torch.Tensor:
        lattice = encoder[:, :, None] + prediction[:, None]
        with _variables_stay(encoder.device.type):
            return loss(log_probs=lattice, targets=targets, input_lengths=frames, target_lengths=tokens)

    return loss_of


@contextmanager
def _variables_stay(device_type: str) -> Iterator[None]:
    """Keep tensors on a CPU in this block: NeMo's `tdt_pytorch` moves its variables to a GPU, wherever it runs."""
    moved = torch.Tensor.cuda
    if device_type == "cpu":
        torch.Tensor.cuda = lambda tensor: tensor
    try:
        yield
    finally:
        torch.Tensor.cuda = moved


def tdt_cases(shape: LossShape, device: str, largest_lattice: float) -> list[TDTCase]:
    """Return what is measured at a shape: NeMo's where one lattice has at most `largest_lattice` bytes."""
    names, lattice_bytes = [OURS, OUR_VALUE, RNNT], _lattice_bytes(shape)
    if lattice_bytes <= largest_lattice and device == "cuda":
        names.append(NEMO_ON_GPU)
    elif lattice_bytes <= largest_lattice:
        steps = 4 * len(DURATIONS) * shape.batch * shape.frames * (shape.tokens + 1)
        names += [NEMO_VALUE, *([NEMO] if steps * lattice_bytes <= MOST_GRADIENT_BYTES else [])]
    return [TDTCase(name, shape, device) for name in names]


def _lattice_bytes(shape: LossShape) -> int:
    return replace(shape, vocabulary=shape.vocabulary + len(DURATIONS)).lattice_bytes


def named_shapes(device: str) -> list[LossShape]:
    """Return the shapes that have targets on the device, and on a CPU one of which NeMo has the gradient."""
    return [LossShape(*shape) for shape in (SPEED_SHAPE, GPU_SHAPE if device == "cuda" else SMALL_SHAPE)]


def tdt_rows(
    shapes: Sequence[LossShape], device: str, largest_lattice: float, settings: MeasureSettings
) -> tuple[list[CostRow], list[Finding]]:
    """Measure all cases at every shape: rows with ratios to the RNN-T loss, and findings against NeMo's."""
    rows, findings = [], []
    for shape in shapes:
        measured = measure(tdt_cases(shape, device, largest_lattice), settings, f"TDT loss {shape}")
        held = replace(shape, vocabulary=shape.vocabulary + len(DURATIONS)).logits_bytes
        rows += [
            CostRow(
                part="tdt",
                setting=f"{shape}, N = {len(DURATIONS)}",
                name=name,
                sizes={**asdict(shape), "durations": len(DURATIONS)},
                seconds=result.seconds,
                ratio=paired_ratio([result.seconds], [measured[RNNT].seconds]),
                ratio_to=RNNT,
                memory=result.memory,
                held_bytes=held,
            )
            for name, result in measured.items()
        ]
        findings += tdt_findings(shape, measured, device)
    return rows, findings


def tdt_findings(shape: LossShape, measured: dict[str, Measured], device: str) -> list[Finding]:
    """Return the ratios of NeMo's loss to ours, with targets at SPEED_SHAPE on the CPU.

    Peak memory is that of our value and gradients, also beside NeMo's value alone.
    """
    findings, has_targets = [], device == "cpu" and astuple(shape) == SPEED_SHAPE
    for nemo, ours, what in ((NEMO_VALUE, OUR_VALUE, "value alone"), (NEMO, OURS, "value and gradients"),
                             (NEMO_ON_GPU, OURS, "value and gradients")):  # fmt: skip
        if nemo not in measured:
            continue
        times = paired_ratio([measured[nemo].seconds], [measured[ours].seconds])
        text = f"times faster than {nemo.partition(',')[0]}, {what}, at {shape}"
        findings.append(Finding(text, times, at_least=LEAST_OF_NEMO if has_targets else None))
        peaks = [result.memory.peak if result.memory else None for result in (measured[nemo], measured[OURS])]
        if None not in peaks:
            text = f"times less peak memory (ours with gradients) than {nemo} at {shape}"
            findings.append(Finding(text, peaks[0] / peaks[1], at_least=LEAST_MEMORY if has_targets else None))
    return findings
