"""A teacher whose targets are stored: they are read by utterance id, and its encoder is not there.

B batch, T frames of the teacher, k stored classes, D channels, V vocabulary without blank.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np
import torch
from omegaconf import DictConfig
from torch.nn.utils.rnn import pad_sequence

from nemo_codert.data.target_cache import TargetCache
from nemo_codert.data.target_header import TargetFault
from nemo_codert.modules.encoder_geometry import encoder_geometry
from nemo_codert.modules.transducer import Batch, BranchOutput, TopK, Transducer


@dataclass(frozen=True, eq=False)
class TopKOutput(BranchOutput):
    """Output of a teacher of which the likeliest classes of each frame are known, and nothing else.

    Args:
        top_k: the classes.

    Example:
        >>> top_k = TopK(torch.tensor([[[0, 2]]]), torch.tensor([[[0.5, 0.3]]]))
        >>> output = TopKOutput(None, torch.zeros(1, 0, 1), torch.tensor([1]), top_k=top_k)
        >>> output.rows(torch.tensor([0])).top_k.ids.tolist()
        [[[0, 2]]]
    """

    top_k: TopK | None = None

    @property
    def encoder_side(self) -> NoReturn:
        """Raise ValueError: only classes are known."""
        raise ValueError("the stored targets are top_k classes: this term of the loss needs targets of kind encoder")

    prediction_side = encoder_logits = encoder_side

    def rows(self, index: torch.Tensor) -> "TopKOutput":
        # Overrides BranchOutput.rows.
        parts = ("encoded", "encoded_len", "transcript", "transcript_len")
        gathered = {name: getattr(self, name)[index] for name in parts if getattr(self, name) is not None}
        return dataclasses.replace(
            self, top_k=TopK(self.top_k.ids[index], self.top_k.probabilities[index]), **gathered
        )

    def row(self, b: int) -> "TopKOutput":
        # Overrides BranchOutput.row.
        frames, alone = int(self.encoded_len[b]), self.rows(torch.tensor([b], device=self.encoded_len.device))
        top_k = TopK(alone.top_k.ids[:, :frames], alone.top_k.probabilities[:, :frames])
        tokens = int(self.transcript_len[b])
        return dataclasses.replace(
            alone, encoded=alone.encoded[:, :, :frames], transcript=alone.transcript[:, :tokens], top_k=top_k
        )


class Cached:
    """Source of stored targets; see `nemo_codert.teachers.Teacher`. The folder is opened with the first batch.

    Targets of kind `encoder` are the output of the teacher's encoder: its prediction network and joint, frozen, make
    logits of it. Those of kind `top_k` are classes with probabilities.
    """

    def __init__(self, networks: Transducer, codert: DictConfig) -> None:
        self.networks, self.codert = networks, codert
        self._student_stride: int | None = None

    @cached_property
    def cache(self) -> TargetCache:
        """The targets; raises TargetFault where they do not fit the pair."""
        cache = TargetCache(self.codert.teacher_cache)
        header, width = cache.header, self.networks.encoder.d_model
        if header.kind == "encoder" and header.width != width:
            raise TargetFault(
                f"{cache.folder} has encoder output of {header.width} channels, this pair was made for {width}"
            )
        if header.kind == "top_k" and header.classes != len(self.networks.joint.vocabulary) + 1:
            raise TargetFault(
                f"{cache.folder} has {header.classes} classes, the pair {len(self.networks.joint.vocabulary) + 1}"
            )
        return cache

    def output(
        self,
        features: torch.Tensor,
        features_len: torch.Tensor,
        batch: Batch,
        student: BranchOutput,
        layers: Sequence[int] = (),
    ) -> BranchOutput:
        """Return the targets of a batch's utterances; see `Teacher.output`.

        Raises:
            TargetFault: an utterance without targets, with damaged ones, or with another number of frames than the
                student's; names the utterance.
            ValueError: a batch without utterance ids.
        """
        if batch.sample_id is None:
            raise ValueError(
                "model.codert.teacher is cached but the batches have no ids: set return_sample_id to true"
            )
        found = [self.cache.read(name) for name in batch.sample_id]
        self._check_frames(batch.sample_id, found, features, student)
        device = student.encoded_len.device
        encoded_len = torch.tensor([len(rows) for rows in found]).to(device)
        given = batch.transcript, batch.transcript_len
        if self.cache.header.kind == "top_k":
            ids = _padded([rows["ids"].astype(np.int64) for rows in found], device)
            probabilities = _padded([rows["probabilities"].astype(np.float32) for rows in found], device)
            nothing = probabilities.new_empty(len(found), 0, ids.shape[1])
            return TopKOutput(self.networks, nothing, encoded_len, *given, top_k=TopK(ids, probabilities))
        encoded = _padded([rows.astype(np.float32) for rows in found], device).transpose(1, 2)  # [B, D, T]
        shared = student if self.codert.share_decoder else None
        return BranchOutput(self.networks, encoded, encoded_len, *given, shared, dict.fromkeys(layers, encoded))

    def _check_frames(
        self, names: Sequence[str], found: Sequence[np.ndarray], features: torch.Tensor, student: BranchOutput
    ) -> None:
        if self._student_stride is None:
            self._student_stride = encoder_geometry(student.networks.encoder, features.shape[1]).stride
        group = max(1, self._student_stride // self.networks.encoder.subsampling_factor)
        for name, rows, frames in zip(names, found, student.encoded_len.tolist(), strict=True):
            if abs(-(-len(rows) // group) - frames) > 1:
                raise TargetFault(
                    f"utterance {name!r} has {len(rows)} target frames in {self.cache.folder}, which are "
                    f"{-(-len(rows) // group)} of the student's, but the student has {frames}: its audio was changed, "
                    "cut or perturbed after the targets were made. Make them again, or switch the change off"
                )


def _padded(rows: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    return pad_sequence([torch.from_numpy(each) for each in rows], batch_first=True).to(device)
