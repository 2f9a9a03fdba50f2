"""Cost of an RNN-T loss of an additive joint: ours, NeMo's, the products no exact one can avoid, others installed.

Every implementation gets the same two logit tensors of an additive joint and returns the summed loss and its gradient
with respect to both. Imports torch and `losses`; the package of another implementation when that one is measured.
"""

# B batch, T encoder frames, U target tokens, V vocabulary without blank

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass

import torch

from nemo_codert.benchmark.measure import Measured, MeasureSettings, measure, paired_ratio
from nemo_codert.benchmark.table import CostRow, Finding
from nemo_codert.losses import additive_rnnt_loss

logger = logging.getLogger(__name__)

OURS, NEMO, FLOOR = "additive_rnnt_loss", "NeMo warprnnt_numba", "three-matmul floor"
# Shapes for which targets are stated.
SPEED_SHAPE, MEMORY_SHAPE, GPU_SHAPE = (8, 150, 40, 1024), (8, 150, 40, 4096), (32, 400, 100, 1024)
FLOOR_VOCABULARY = 1024  # smallest V with a target: there the products outweigh the overhead of the calls
GPU_LATTICES = 4  # lattices that must fit into a GPU: the joint's, NeMo's gradient, a copy, and one for all else
MOST_LATTICE_BYTES = 4 * 2**31  # more numbers than this are too many for kernels that count in 32 bits
LOSSES_AGREE = 1e-4  # relative; float32 recursions over T + U = 190 steps differ by some 1e-6


@dataclass(frozen=True, order=True)
class LossShape:
    """B utterances, all of T frames and U tokens; V without blank."""

    batch: int
    frames: int
    tokens: int
    vocabulary: int

    def __str__(self) -> str:
        return f"(B, T, U, V) = ({self.batch}, {self.frames}, {self.tokens}, {self.vocabulary})"

    @property
    def logits_bytes(self) -> int:
        """Size of both float32 inputs, [B, T, V+1] and [B, U+1, V+1]."""
        return 4 * self.batch * (self.frames + self.tokens + 1) * (self.vocabulary + 1)

    @property
    def lattice_bytes(self) -> int:
        """Size of one float32 tensor [B, T, U+1, V+1]."""
        return 4 * self.batch * self.frames * (self.tokens + 1) * (self.vocabulary + 1)


def named_shapes(device: str) -> list[LossShape]:
    """Return the shapes that have targets on the device."""
    shapes = [SPEED_SHAPE, MEMORY_SHAPE, *([GPU_SHAPE] if device == "cuda" else [])]
    return [LossShape(*shape) for shape in shapes]


def largest_lattice(device: str) -> float:
    """Return the default limit of a lattice in bytes: on a GPU a part of its memory, on the CPU 1 GB.

    1 GB takes NeMo's loss half a minute on the CPU. On a GPU, lattices are small enough for the kernels' indices.
    """
    if device == "cuda":
        return min(torch.cuda.get_device_properties(0).total_memory / GPU_LATTICES, MOST_LATTICE_BYTES)
    return 1e9


@dataclass(frozen=True)
class LossBatch:
    """encoder_logits [B, T, V+1] and prediction_logits [B, U+1, V+1] float32, targets [B, U], lengths [B], int64."""

    encoder_logits: torch.Tensor
    prediction_logits: torch.Tensor
    targets: torch.Tensor
    encoded_lengths: torch.Tensor
    target_lengths: torch.Tensor

    @property
    def blank(self) -> int:
        """V: the last class."""
        return self.encoder_logits.shape[2] - 1

    def joint_logits(self) -> torch.Tensor:
        """Return the lattice [B, T, U+1, V+1], the input of a loss for any joint."""
        return self.encoder_logits[:, :, None] + self.prediction_logits[:, None]


def make_loss_batch(shape: LossShape, device: str) -> LossBatch:
    """Draw normal logits of standard deviation 1, equal for every implementation."""
    generator = torch.Generator().manual_seed(0)

    def logits(length: int) -> torch.Tensor:
        values = torch.randn(shape.batch, length, shape.vocabulary + 1, generator=generator)
        return values.to(device).requires_grad_()

    targets = torch.randint(0, shape.vocabulary, (shape.batch, shape.tokens), generator=generator)
    lengths = (torch.full((shape.batch,), length) for length in (shape.frames, shape.tokens))
    return LossBatch(
        logits(shape.frames), logits(shape.tokens + 1), *(each.to(device) for each in (targets, *lengths))
    )


# ---- implementations -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Implementation:
    """One implementation of the loss. To add one, write its adapter and put it into `IMPLEMENTATIONS`.

    name: label of the rows. make: adapter, from a batch to a call that returns the summed loss. needs:
    `module.function` of a package that may be absent; the implementation is then not listed. lattice: the
    implementation makes [B, T, U+1, V+1]. devices: supported ones. slow_on: devices on which a call takes seconds.
    """

    name: str
    make: Callable[[LossBatch], Callable[[], torch.Tensor]]
    needs: str | None = None
    lattice: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    slow_on: tuple[str, ...] = ()

    def is_installed(self) -> bool:
        """Return True if the needed package can be imported and has the function."""
        if self.needs is None:
            return True
        module, _, function = self.needs.rpartition(".")
        try:
            return callable(getattr(importlib.import_module(module), function, None))
        except Exception:  # noqa: BLE001  a broken installation may raise anything, and counts as none
            return False


def _ours(batch: LossBatch) -> Callable[[], torch.Tensor]:
    return lambda: additive_rnnt_loss(*_arguments(batch), blank=batch.blank, reduction="sum")


def _arguments(batch: LossBatch) -> tuple[torch.Tensor, ...]:
    logits = batch.encoder_logits, batch.prediction_logits
    return *logits, batch.targets, batch.encoded_lengths, batch.target_lengths


def _nemo(batch: LossBatch) -> Callable[[], torch.Tensor]:
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    kwargs = {"fastemit_lambda": 0.0, "clamp": -1.0}
    loss = RNNTLoss(num_classes=batch.blank, loss_name="warprnnt_numba", loss_kwargs=kwargs, reduction="sum")
    return lambda: loss(
        log_probs=batch.joint_logits(),
        targets=batch.targets,
        input_lengths=batch.encoded_lengths,
        target_lengths=batch.target_lengths,
    )


def _simple(module: str) -> Callable[[LossBatch], Callable[[], torch.Tensor]]:
    """Return an adapter of `rnnt_loss_simple` of k2 or fast_rnnt: an additive joint, with the recursion of ours."""

    def make(batch: LossBatch) -> Callable[[], torch.Tensor]:
        zeros = torch.zeros_like(batch.target_lengths)
        boundary = torch.stack([zeros, zeros, batch.target_lengths, batch.encoded_lengths], dim=1)  # [B, 4]
        rnnt_loss_simple = importlib.import_module(module).rnnt_loss_simple
        return lambda: rnnt_loss_simple(
            lm=batch.prediction_logits,
            am=batch.encoder_logits,
            symbols=batch.targets,
            termination_symbol=batch.blank,
            boundary=boundary,
            reduction="sum",
        )

    return make


def _torchaudio(batch: LossBatch) -> Callable[[], torch.Tensor]:
    rnnt_loss = importlib.import_module("torchaudio.functional").rnnt_loss
    targets, *lengths = (x.int() for x in (batch.targets, batch.encoded_lengths, batch.target_lengths))
    return lambda: rnnt_loss(batch.joint_logits(), targets, *lengths, blank=batch.blank, clamp=-1.0, reduction="sum")


def _warp_rnnt(batch: LossBatch) -> Callable[[], torch.Tensor]:
    rnnt_loss = importlib.import_module("warp_rnnt").rnnt_loss
    targets, *lengths = (x.int() for x in (batch.targets, batch.encoded_lengths, batch.target_lengths))
    return lambda: rnnt_loss(
        batch.joint_logits().log_softmax(-1), targets, *lengths, reduction="sum", blank=batch.blank, gather=True
    )


IMPLEMENTATIONS = (
    Implementation(OURS, _ours),
    Implementation(NEMO, _nemo, lattice=True, slow_on=("cpu",)),
    Implementation("k2 rnnt_loss_simple", _simple("k2"), needs="k2.rnnt_loss_simple"),
    Implementation("fast_rnnt rnnt_loss_simple", _simple("fast_rnnt"), needs="fast_rnnt.rnnt_loss_simple"),
    Implementation("torchaudio rnnt_loss", _torchaudio, needs="torchaudio.functional.rnnt_loss", lattice=True),
    Implementation("warp_rnnt", _warp_rnnt, needs="warp_rnnt.rnnt_loss", lattice=True, devices=("cuda",)),
)


def loss_and_gradient(implementation: Implementation, batch: LossBatch) -> Callable[[], torch.Tensor]:
    """Return a call that computes the loss and both gradients, drops the gradients and returns the loss."""
    loss_of = implementation.make(batch)

    def run() -> torch.Tensor:
        loss = loss_of()
        torch.autograd.grad(loss, [batch.encoder_logits, batch.prediction_logits])
        return loss.detach()

    return run


def floor(batch: LossBatch) -> Callable[[], None]:
    """Return a call that computes only the unavoidable part of the maths, on tensors of the batch's shapes.

    Two exponentials and three products: Z = exp(E) exp(G)^T, then W exp(G) and W^T exp(E) for a weight W [B, T, U+1].
    No normalisation against overflow, no recursion, no gather.
    """
    encoder_logits, prediction_logits = batch.encoder_logits.detach(), batch.prediction_logits.detach()
    weight = torch.rand(*encoder_logits.shape[:2], prediction_logits.shape[1], device=encoder_logits.device)

    def run() -> None:
        exp_encoder, exp_prediction = encoder_logits.exp(), prediction_logits.exp()
        normaliser = torch.bmm(exp_encoder, exp_prediction.transpose(1, 2))  # [B, T, U+1]
        gradients = torch.bmm(weight, exp_prediction), torch.bmm(weight.transpose(1, 2), exp_encoder)
        del normaliser, gradients

    return run


# ---- measured ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossCase:
    """An implementation (by name, or `FLOOR`) at one shape. See `measure.Case`."""

    name: str
    shape: LossShape
    device: str = "cpu"

    @property
    def slow(self) -> bool:
        """True where a call takes seconds."""
        return self.name != FLOOR and self.device in _implementation(self.name).slow_on

    def prepare(self) -> Callable[[], torch.Tensor | None]:
        """Make the batch and return the call to time; it returns the loss (the floor has none)."""
        batch = make_loss_batch(self.shape, self.device)
        return floor(batch) if self.name == FLOOR else loss_and_gradient(_implementation(self.name), batch)


def _implementation(name: str) -> Implementation:
    (found,) = [implementation for implementation in IMPLEMENTATIONS if implementation.name == name]
    return found


def loss_cases(shape: LossShape, device: str, largest_lattice: float) -> list[LossCase]:
    """Return every implementation that is installed and runs on the device, and the floor.

    Implementations whose lattice has more than `largest_lattice` bytes are left out and named in a warning.
    """
    names = []
    for implementation in IMPLEMENTATIONS:
        if device not in implementation.devices or not implementation.is_installed():
            continue
        if implementation.lattice and shape.lattice_bytes > largest_lattice:
            size = f"{shape.lattice_bytes / 1e9:.2g} GB"
            logger.warning("%s is left out at %s: one lattice has %s", implementation.name, shape, size)
        else:
            names.append(implementation.name)
    return [LossCase(name, shape, device) for name in (*names, FLOOR)]


def loss_rows(cases: Sequence[LossCase], settings: MeasureSettings) -> tuple[list[CostRow], list[Finding]]:
    """Measure the cases of one shape: rows with ratios to the floor, and findings where the shape has targets."""
    shape = cases[0].shape
    measured = measure(cases, settings, f"loss {shape}")
    rows = [
        CostRow(
            part="loss",
            setting=str(shape),
            name=name,
            sizes=asdict(shape),
            seconds=result.seconds,
            ratio=paired_ratio([result.seconds], [measured[FLOOR].seconds]),
            ratio_to=FLOOR,
            memory=result.memory,
            held_bytes=shape.logits_bytes,
        )
        for name, result in measured.items()
    ]
    return rows, loss_findings(shape, measured, cases[0].device)


def loss_findings(shape: LossShape, measured: dict[str, Measured], device: str) -> list[Finding]:
    """Return the figures of a shape that have targets.

    On the CPU: the ratio to the floor from V = 1024 on, and memory at MEMORY_SHAPE. On each device: the ratio to
    NeMo's loss, at SPEED_SHAPE or GPU_SHAPE.
    """
    ours, findings, on_gpu = measured[OURS], [], device == "cuda"
    if shape.vocabulary >= FLOOR_VOCABULARY:
        ratio = paired_ratio([ours.seconds], [measured[FLOOR].seconds])
        findings.append(Finding(f"ours / {FLOOR} at {shape}", ratio, at_most=None if on_gpu else 2.5))
    if NEMO in measured and astuple(shape) in (SPEED_SHAPE, GPU_SHAPE):
        findings += _against_nemo(shape, measured[NEMO], ours, on_gpu)
    if ours.memory and ours.memory.peak is not None and astuple(shape) == MEMORY_SHAPE:
        share, largest_share = ours.memory.peak / (2 * shape.logits_bytes), None if on_gpu else 1.5
        findings.append(
            Finding(f"peak memory of ours / (logits + gradients) at {shape}", share, at_most=largest_share)
        )
    losses = {name: float(result.first) for name, result in measured.items() if result.first is not None}
    worst = max(losses, key=lambda name: abs(losses[name] / losses[OURS] - 1))
    apart = abs(losses[worst] / losses[OURS] - 1)
    if apart > LOSSES_AGREE:
        findings.append(
            Finding(f"relative difference of {worst} from our loss at {shape}", apart, at_most=LOSSES_AGREE)
        )
    return findings


def _against_nemo(shape: LossShape, nemo: Measured, ours: Measured, on_gpu: bool) -> list[Finding]:
    """Return the speed-up against NeMo's loss, and on a GPU the saving of memory."""
    targets = {SPEED_SHAPE: None if on_gpu else 300, GPU_SHAPE: 10 if on_gpu else None}
    times = paired_ratio([nemo.seconds], [ours.seconds])
    findings = [Finding(f"times faster than NeMo's at {shape}", times, at_least=targets[astuple(shape)])]
    peaks = [measured.memory.peak if measured.memory else None for measured in (nemo, ours)]
    if astuple(shape) == GPU_SHAPE and None not in peaks:
        text = f"times less peak memory than NeMo's at {shape}"
        findings.append(Finding(text, peaks[0] / peaks[1], at_least=30 if on_gpu else None))
    return findings
