"""How much later than its teacher a student says each word piece: a streaming student waits to hear more.

For each reference token the frame in which a branch most likely emits it, given the whole reference (see `alignment`,
each branch by its own lattice); the delay is the student's frame minus the teacher's, both brought to milliseconds. A
stream's frames come chunk by chunk: up to a chunk's duration comes on top, and is no part of the delay.
May import models; nothing but scripts and analysis imports this.
"""

# B batch, T encoder frames, U target tokens

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from nemo_codert.analysis.alignment import align
from nemo_codert.analysis.branches import Branch
from nemo_codert.analysis.readings import ManifestUtterance, encoded_utterances
from nemo_codert.modules.transducer import predict, project, project_prediction


@dataclass(frozen=True)
class DelaySummary:
    """Delays of `tokens` reference tokens in milliseconds, negative where the student is the earlier one.

    Without a token the figures are nan. p90: 90 of 100 tokens are delayed by no more than this.
    """

    tokens: int
    mean: float
    median: float
    p90: float


def token_delays(
    student_frames: Sequence[np.ndarray],
    teacher_frames: Sequence[np.ndarray],
    student_seconds: float,
    teacher_seconds: float,
) -> np.ndarray:
    """Delay of every token in milliseconds, [N] float64.

    student_frames, teacher_frames: for each utterance the frames [U] that its tokens are emitted in. The seconds are
    those of one frame of each side: a frame is taken to be where it begins.
    Raises ValueError for sides with other utterances or tokens.
    """
    if [len(frames) for frames in student_frames] != [len(frames) for frames in teacher_frames]:
        raise ValueError("student and teacher must have been aligned with the same tokens of the same utterances")
    if not student_frames:
        return np.zeros(0)
    student, teacher = (np.concatenate(frames).astype(np.float64) for frames in (student_frames, teacher_frames))
    return 1000 * (student * student_seconds - teacher * teacher_seconds)


def summarise(delays: np.ndarray) -> DelaySummary:
    """Mean, median and 90th percentile (linear between two tokens) of delays [N]."""
    if not len(delays):
        return DelaySummary(0, *3 * [float("nan")])
    return DelaySummary(len(delays), *map(float, (delays.mean(), np.median(delays), np.percentile(delays, 90))))


@torch.no_grad()
def emission_frames(branch: Branch, batch: Sequence[ManifestUtterance]) -> list[np.ndarray]:
    """For each utterance the frames [U] in which a branch most likely emits the tokens of its transcript.

    Raises:
        ValueError: audio that breaks off, an utterance without an encoder frame.
    """
    encoded, tokens, tokens_len = encoded_utterances(branch, batch)
    joint = branch.transducer.joint
    prediction = project_prediction(joint, predict(branch.transducer, tokens, tokens_len))
    frames = align(joint, project(joint, encoded, prediction), tokens, tokens_len).frames
    return [own[:length] for own, length in zip(frames.cpu().numpy(), tokens_len.tolist(), strict=True)]


def emission_delays(
    student: Branch,
    teacher: Branch,
    found: Sequence[ManifestUtterance],
    *,
    batch_size: int = 8,
    title: str = "Aligning",
) -> np.ndarray:
    """Delays of all reference tokens in milliseconds, [N], in eval mode.

    Args:
        title: of the progress bar.

    Raises:
        ValueError: see `emission_frames`.
    """
    of_student: list[np.ndarray] = []
    of_teacher: list[np.ndarray] = []
    with tqdm(total=len(found), desc=title, unit="utt", mininterval=1.0) as bar:
        for start in range(0, len(found), batch_size):
            batch = found[start : start + batch_size]
            of_student += emission_frames(student, batch)
            of_teacher += emission_frames(teacher, batch)
            bar.update(len(batch))
    return token_delays(of_student, of_teacher, student.seconds_per_frame, teacher.seconds_per_frame)
