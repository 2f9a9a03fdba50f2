"""Teachers whose networks run beside the student: trained in the same run, or frozen."""

from collections.abc import Sequence

import torch
from omegaconf import DictConfig

from nemo_codert.modules.transducer import Batch, BranchOutput, Transducer


class CoTrained:
    """A teacher trained in the same run (arXiv:2106.07734): its output has a graph, for its own RNN-T loss."""

    def __init__(self, networks: Transducer, codert: DictConfig) -> None:
        self.networks, self.shares_decoder = networks, codert.share_decoder

    def output(
        self,
        features: torch.Tensor,
        features_len: torch.Tensor,
        batch: Batch,
        student: BranchOutput,
        layers: Sequence[int] = (),
    ) -> BranchOutput:
        """Return the teacher's output for the features that the student got; see `Teacher.output`."""
        shared = student if self.shares_decoder else None
        given = features, features_len, batch.transcript, batch.transcript_len
        return self.networks.run(*given, prediction_of=shared, layers=layers)


class Frozen(CoTrained):
    """A teacher that nothing trains: its encoder runs without a graph."""

    def output(
        self,
        features: torch.Tensor,
        features_len: torch.Tensor,
        batch: Batch,
        student: BranchOutput,
        layers: Sequence[int] = (),
    ) -> BranchOutput:
        # Overrides CoTrained.output.
        with torch.no_grad():
            return super().output(features, features_len, batch, student, layers)
