"""Gradients of the distillation terms before training: a term without one teaches nothing, and no loss shows it.

Two models that give one class all of the probability, by a constant that their joints leave open, agree to 1e-31:
the KL divergence of their encoder logits is 0, and stays so.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from nemo_codert.models import EncDecCoDERTBPEModel
from nemo_codert.modules.transducer import Batch, BranchOutput

NO_GRADIENT = 1e-12  # elements below count as 0: terms that teach have some above 1e-6, rounding leaves 1e-9
UTTERANCES = 2  # more of a batch would cost time and show the same
NOISE_SEED = 0


class TermGradient(NamedTuple):
    """A term's gradient with respect to what the student's encoder gives it.

    largest: its largest element by size. silent: whether there is none, for a student of other features neither. A
    student that equals its teacher has no gradient, but gets one as soon as it moves.
    """

    largest: float
    silent: bool


@torch.enable_grad()
def term_gradients(model: EncDecCoDERTBPEModel, batch: Batch) -> dict[str, TermGradient]:
    """Measure the gradient of each distillation term, without its weight and as if it had begun.

    Nothing of the model changes, its gradients and the global random numbers included.

    Args:
        model: a pair in evaluation mode, whose teacher can be run on the batch.
        batch: the utterances; the first ones with text are taken.

    Returns:
        Name -> gradient. A term that needs text is left out where there is none.
    """
    labelled = batch.labelled()
    has_text = labelled is None or len(labelled) > 0
    rows = torch.arange(len(batch.signal_len)) if labelled is None or not has_text else labelled
    batch = batch.rows(rows[:UTTERANCES].to(batch.signal.device))
    terms = [term for term in model.criteria.values() if term.spec.is_distillation and term.spec.needs_teacher]
    of_student, of_teacher = (
        sorted({number for term in terms for number in getattr(term.spec, layers)})
        for layers in ("student_layers", "teacher_layers")
    )
    with torch.no_grad():
        features = model.extract_features(batch.signal, batch.signal_len)
        student = model.student_transducer.run(*features, batch.transcript, batch.transcript_len, layers=of_student)
        teacher = model.teacher.output(*features, batch, student, of_teacher)
    found = {}
    for term in terms:
        if has_text or not term.spec.needs_text:
            largest = _largest_gradient(term, student, teacher, batch)
            silent = largest < NO_GRADIENT and _largest_gradient(term, _noisy(student), teacher, batch) < NO_GRADIENT
            found[term.spec.name] = TermGradient(largest, silent)
    return found


def _largest_gradient(term: nn.Module, student: BranchOutput, teacher: BranchOutput, batch: Batch) -> float:
    # Leaves are the encoder's output and layers: cuDNN's LSTMs have no backward pass in evaluation mode.
    student = _changed(student, lambda features: features.detach().requires_grad_())
    value = term(student, teacher, batch)
    if not value.requires_grad:
        return 0.0
    read = torch.autograd.grad(value, [student.encoded, *student.layers.values()], allow_unused=True)
    return max((float(gradient.abs().max()) for gradient in read if gradient is not None), default=0.0)


def _noisy(student: BranchOutput) -> BranchOutput:
    """Return an output with noise as large as its features; no global generator moves."""
    generator = torch.Generator().manual_seed(NOISE_SEED)

    def noisy(features: torch.Tensor) -> torch.Tensor:
        return features + features.std() * torch.randn(features.shape, generator=generator).to(features)

    return _changed(student, noisy)


def _changed(output: BranchOutput, change: Callable[[torch.Tensor], torch.Tensor]) -> BranchOutput:
    """Return an output with other features [B, D, T] of its encoder and its layers."""
    layers = {number: change(layer) for number, layer in output.layers.items()}
    given = output.encoded_len, output.transcript, output.transcript_len, output.prediction_of
    return BranchOutput(output.networks, change(output.encoded), *given, layers)
