"""Diagnosis of a step that is not finite: the loss part, the network whose gradient is bad, the utterances at fault.

Everything here runs after a fault was found and costs a good step nothing.
B batch, S samples, F mel bins, D channels, T frames, U target tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from nemo_codert.config.model_kinds import is_pair
from nemo_codert.models.open_model import branches
from nemo_codert.modules.cached_encoder import CachedEncoder
from nemo_codert.modules.transducer import Batch

NAMED_PARAMETERS = 3
NAMED_UTTERANCES = 20


@dataclass
class SeenBatch:
    """One batch of an optimizer step. parts: parts of the loss, once computed. utterances: [] if unknown."""

    index: int
    batch: Any
    utterances: list[str] = field(default_factory=list)
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Fault:
    """Values that were not finite in one optimizer step on one rank.

    losses: part -> value. networks: network -> "bad of all" tensors of its gradient. parameters: the first of them.
    weights: parameters that are themselves not finite. utterances: all of the step. suspects: utterance -> why.
    """

    step: int
    rank: int = 0
    batches: list[int] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    utterances: list[str] = field(default_factory=list)
    suspects: dict[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        """Plain dict for a file; numbers that JSON lacks become text."""
        return {**asdict(self), "losses": {name: str(value) for name, value in self.losses.items()}}

    def text(self, model: LightningModule) -> str:
        """Format losses, gradients and utterances in one line."""
        said = []
        if self.losses:
            losses = [f"{name} = {value}{_branch(name, model)}" for name, value in self.losses.items()]
            said.append(f"the training loss is not finite: {', '.join(losses)}")
        if self.networks:
            networks = [f"{name}{_branch(name, model)} {count}" for name, count in self.networks.items()]
            first = ", ".join(self.parameters)
            said.append(f"the gradient is not finite: {', '.join(networks)} tensors, first {first}")
        if not said:
            said.append("the norm of the gradient is too large for float32")
        if self.weights:
            said.append(f"weights were not finite before the step: {', '.join(self.weights)}")
        return "; ".join([*said, self._utterances_text()])

    def _utterances_text(self) -> str:
        batches = f"batch {', '.join(map(str, self.batches))}"
        suspects = [f"{name} ({why})" for name, why in self.suspects.items()]
        others = [name for name in self.utterances if name not in self.suspects]
        more = f" and {len(others) - NAMED_UTTERANCES} more" if len(others) > NAMED_UTTERANCES else ""
        named = ", ".join(others[:NAMED_UTTERANCES]) + more
        if suspects:
            rest = f"; with {named}" if named else ""
            return f"at fault in {batches}: {', '.join(suspects)}{rest}"
        return f"utterances of {batches}: {named}" if named else f"utterances unknown, {batches}"


def find_fault(model: LightningModule, seen: list[SeenBatch], step: int, rank: int) -> Fault:
    """Diagnose a step that is not finite. seen: the step's batches; gradients must still be in place."""
    fault = Fault(step, rank, batches=[each.index for each in seen])
    fault.losses = _non_finite_losses(seen)
    fault.networks, fault.parameters = _non_finite_gradients(model)
    fault.weights = [name for name, weight in model.named_parameters() if not _is_finite(weight)][:NAMED_PARAMETERS]
    fault.utterances = [name for each in seen for name in each.utterances]
    if not fault.weights:  # every utterance would be at fault if weights were bad
        for each in seen:
            fault.suspects |= _suspects(model, each, step)
    return fault


def _non_finite_losses(seen: list[SeenBatch]) -> dict[str, float]:
    """Return the parts of the losses that are not finite; of several batches the first value of each."""
    losses: dict[str, float] = {}
    for each in seen:
        values = {name: float(value) for name, value in each.parts.items() if not _is_finite(value)}
        losses = {**values, **losses}
    return losses


def _non_finite_gradients(model: nn.Module) -> tuple[dict[str, str], list[str]]:
    """Return the networks with "bad of all" tensors of their gradients, and the first bad parameters."""
    bad: dict[str, int] = {}
    all_of: dict[str, int] = {}
    parameters = []
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        network = name.split(".")[0] if not name.startswith("criteria.") else ".".join(name.split(".")[:2])
        all_of[network] = all_of.get(network, 0) + 1
        if not _is_finite(parameter.grad):
            bad[network] = bad.get(network, 0) + 1
            parameters.append(name)
    return {name: f"{count} of {all_of[name]}" for name, count in bad.items()}, parameters[:NAMED_PARAMETERS]


def _suspects(model: LightningModule, seen: SeenBatch, step: int) -> dict[str, str]:
    """Return utterance -> the value that is not finite for it alone; empty if unknown or if the diagnosis fails."""
    try:
        with _looking_again(model):
            rows = _faulty_rows(model, seen, step)
    except Exception:  # noqa: BLE001  an error of the diagnosis must not hide the fault
        return {}
    # Names are those of requested utterances; where some could not be read, the rows do not match.
    names = seen.utterances if len(seen.utterances) == len(seen.batch[0]) else []
    return {(names[row] if names else f"row {row} of batch {seen.index}"): why for row, why in rows.items()}


@contextmanager
def _looking_again(model: LightningModule) -> Iterator[None]:
    """Disable gradients, dropout, dither and updates of statistics; model and generators are restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad(), model.trainer.precision_plugin.forward_context():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _faulty_rows(model: LightningModule, seen: SeenBatch, step: int) -> dict[int, str]:
    """Return row of the batch -> the first value on the way to the loss that is not finite."""
    batch, found = Batch.of(seen.batch), branches(model)
    rows: dict[int, str] = {}

    def note(values: torch.Tensor, lengths: torch.Tensor, what: str) -> None:
        within = torch.arange(values.shape[-1], device=values.device)[None] < lengths[:, None]
        finite = values.isfinite() if values.dim() == 2 else values.isfinite().all(dim=1)
        for row in (~finite & within).any(dim=1).nonzero().flatten().tolist():
            rows.setdefault(row, f"its {what} is not finite")

    note(batch.signal, batch.signal_len, "signal")
    if "model" in found:
        features = heard = model.preprocessor(input_signal=batch.signal, length=batch.signal_len)
    else:
        features, heard = model.branch_features(batch, step, seen.index)
    note(*features, "spectrogram")
    note(*heard, "spectrogram with the student's noise")
    layers = {} if "model" in found else dict(zip(("student", "teacher"), model.criteria.layers(step), strict=True))
    outputs = {
        name: networks.run(
            *(heard if name == "student" else features),
            *(batch.transcript, batch.transcript_len),
            layers=layers.get(name, ()),
        )
        for name, networks in found.items()
        if not isinstance(networks.encoder, CachedEncoder)
    }
    if len(outputs) < len(found):
        outputs["teacher"] = model.teacher.output(*features, batch, outputs["student"], layers["teacher"])
    for name, output in outputs.items():
        note(output.encoded, output.encoded_len, "encoder output" if name == "model" else f"{name} encoder output")
    if "model" in outputs:
        return rows
    for row in range(len(batch.signal)):
        alone = [output.row(row) for output in outputs.values()]
        for name, value in model.codert_losses(*alone, batch.row(row), step).items():
            if not _is_finite(value):
                rows.setdefault(row, f"its {name} is not finite")
    return rows


def _branch(name: str, model: nn.Module) -> str:
    """Return the branch of a loss part or network for a message, such as ` (student)`, or "" outside a pair."""
    if not is_pair(model.cfg) or name == "train_loss":
        return ""
    trains = {term.spec.log_name: term.spec.trains for term in model.criteria.values()}
    trains |= {f"criteria.{name}": term.spec.trains for name, term in model.criteria.items()}
    if name.startswith("student_") or trains.get(name) == "student":
        return " (student)"
    shared = name == "decoder" and model.cfg.codert.share_decoder
    return " (teacher and student)" if shared else " (teacher)"


def _is_finite(values: torch.Tensor) -> bool:
    return bool(torch.isfinite(values).all())
