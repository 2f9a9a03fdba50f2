"""The protocol of a source of the teacher's output, and the way from `model.codert.teacher` to one."""

import importlib
from collections.abc import Sequence
from typing import Protocol

import torch
from omegaconf import DictConfig

from nemo_codert.config.teachers import TEACHERS
from nemo_codert.modules.transducer import Batch, BranchOutput, Transducer


class Teacher(Protocol):
    """Source of the teacher's output in a training step.

    Args:
        networks: the pair's teacher.
        codert: the block `model.codert`.

    Example:
        `nemo_codert.teachers.live.CoTrained` is one:

        >>> from nemo_codert.teachers.live import CoTrained
        >>> hasattr(CoTrained, "output")
        True
    """

    def __init__(self, networks: Transducer, codert: DictConfig) -> None: ...

    def output(
        self,
        features: torch.Tensor,
        features_len: torch.Tensor,
        batch: Batch,
        student: BranchOutput,
        layers: Sequence[int] = (),
    ) -> BranchOutput:
        """Return the teacher's output for a batch.

        Args:
            features: [B, F, T_in]. features_len: [B] int64.
            batch: the batch that they were computed from, with the utterance ids where the loader gives them.
            student: the student's output for it, whose prediction network may be shared.
            layers: encoder layers whose outputs a criterion reads; 1 is the first.
        """
        ...


def build_teacher(networks: Transducer, codert: DictConfig) -> Teacher:
    """Return the source that `codert.teacher` names.

    Args:
        networks: the pair's teacher.
        codert: the checked block `model.codert`.

    Returns:
        The source.

    Example:
        >>> from omegaconf import OmegaConf
        >>> codert = OmegaConf.create({"teacher": "frozen", "share_decoder": False})
        >>> type(build_teacher(None, codert)).__name__
        'Frozen'
    """
    target = TEACHERS[codert.teacher]
    if isinstance(target, str):
        module, name = target.rsplit(".", 1)
        target = getattr(importlib.import_module(module), name)
    return target(networks, codert)
