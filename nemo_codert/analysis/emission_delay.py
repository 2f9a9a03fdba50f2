"""Delay of a student's word pieces against its teacher's: a streaming student needs more audio before it emits.

Each branch has, by its own lattice, a frame in which it most likely emits a reference token, given the whole reference
(see `alignment`); the delay is the student's frame minus the teacher's, both in milliseconds. A stream's frames come
chunk by chunk, which adds up to a chunk's duration that is not part of the delay.
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


@dataclass(frozen=True)
class DelaySummary:
    """Delays of `tokens` reference tokens in milliseconds, negative where the student emits earlier.

    Without a token the figures are nan. p90: at least 90% of the tokens are delayed by this or less.
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
    """Return the delay of every token in milliseconds, [N] float64.

    student_frames, teacher_frames: for each utterance the frames [U] that emit its tokens. The seconds are those of
    one frame of each side; a token's time is the start of its frame.
    Raises ValueError if the sides have different utterances or numbers of tokens.
    """
    if [len(frames) for frames in student_frames] != [len(frames) for frames in teacher_frames]:
        raise ValueError("student and teacher must have been aligned with the same tokens of the same utterances")
    if not student_frames:
        return np.zeros(0)
    student, teacher = (np.concatenate(frames).astype(np.float64) for frames in (student_frames, teacher_frames))
    return 1000 * (student * student_seconds - teacher * teacher_seconds)


def summarise(delays: np.ndarray) -> DelaySummary:
    """Compute mean, median and 90th percentile (linear between two tokens) of delays [N]."""
    if not len(delays):
        return DelaySummary(0, *3 * [float("nan")])
    return DelaySummary(len(delays), *map(float, (delays.mean(), np.median(delays), np.percentile(delays, 90))))


@torch.no_grad()
def emission_frames(branch: Branch, batch: Sequence[ManifestUtterance]) -> list[np.ndarray]:
    """Return for each utterance the frames [U] in which a branch most likely emits the tokens of the transcript.

    Raises:
        ValueError: audio that breaks off, an utterance without an encoder frame.
    """
    output = encoded_utterances(branch, batch)
    frames = align(output).frames.cpu().numpy()
    return [own[:length] for own, length in zip(frames, output.transcript_len.tolist(), strict=True)]


def emission_delays(
    student: Branch,
    teacher: Branch,
    found: Sequence[ManifestUtterance],
    *,
    batch_size: int = 8,
    title: str = "Aligning",
) -> np.ndarray:
    """Measure the delays of all reference tokens in milliseconds, [N], in eval mode.

    Args:
        title: text of the progress bar.

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
