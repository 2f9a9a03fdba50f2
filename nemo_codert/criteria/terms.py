"""The terms of a pair's training loss together: which are active in a step, and what they train."""

import importlib
from collections.abc import Iterable

from torch import nn

from nemo_codert.config.criteria import CRITERIA, CriterionSpec
from nemo_codert.criteria.base import Criterion, PairParts


class Criteria(nn.ModuleDict):
    """Name -> `Criterion`, in the order in which the terms are computed and summed.

    Args:
        specs: the terms, see `nemo_codert.config.criteria.criteria_specs`.
        parts: what the terms are built from.

    Example:
        >>> Criteria([], parts=None).active(step=0)
        []
    """

    def __init__(self, specs: Iterable[CriterionSpec], parts: PairParts) -> None:
        super().__init__()
        self._specs = tuple(specs)
        for spec in self._specs:
            if spec.is_distillation and spec.weight == 0:
                continue  # left out altogether, with its parameters
            if hasattr(self, spec.name):
                raise ValueError(
                    f"model.codert.distillation.{spec.name}: torch's modules have an attribute of that name. Choose "
                    "another name"
                )
            self[spec.name] = _class_of(spec)(spec, parts)

    def active(self, step: int) -> list[Criterion]:
        """Return the terms that are computed at an optimizer step."""
        return [term for term in self.values() if term.spec.is_active(step)]

    def over(self, step: int) -> list[CriterionSpec]:
        """Return the terms that were computed before an optimizer step and are not any more."""
        specs = [term.spec for term in self.values()]
        return [spec for spec in specs if step >= spec.from_step and not spec.is_active(step)]

    def layers(self, step: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the encoder layers of student and teacher that the active terms read; 1 is the first."""
        specs = [term.spec for term in self.active(step)]
        student = {number for spec in specs for number in spec.student_layers}
        return tuple(sorted(student)), tuple(sorted({number for spec in specs for number in spec.teacher_layers}))

    def weights(self, step: int) -> dict[str, float]:
        """Return the weights of the scheduled terms at an optimizer step, under their log names."""
        scheduled = [spec for spec in self._specs if spec.is_distillation]
        return {spec.weight_log_name: float(spec.weight_at(step)) for spec in scheduled}

    def parameters_of(self, branch: str) -> list[nn.Parameter]:
        """Return the parameters of the terms that train a branch, `student` or `teacher`."""
        return [p for term in self.values() if term.spec.trains == branch for p in term.parameters()]


def _class_of(spec: CriterionSpec) -> type[Criterion]:
    target = CRITERIA[spec.kind].target
    if isinstance(target, type):
        return target
    module, name = target.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)
