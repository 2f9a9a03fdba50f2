"""Alignment of a transcript: the nodes of the lattice that it passes, and the joint's logits there.

`states[b, t]` is the prediction state (tokens emitted so far) from which frame t is most likely left by its blank;
`frames[b, u]` the frame in which token u + 1 is most likely emitted. Both are the modes of posterior occupancies
(forward-backward over all alignments), not one best path. B batch, T encoder frames, U target tokens, H channels of
the joint, V vocabulary without blank.
"""

from typing import NamedTuple

import torch

from nemo_codert.losses.lattice import lattice_occupancies
from nemo_codert.modules.encoder_logits import token_logits
from nemo_codert.modules.transducer import BranchOutput

LATTICE_VALUES = 2**24  # logits held at once, 64 MB in float32


class Alignment(NamedTuple):
    """`states` [B, T] int64, 0..U; `frames` [B, U] int64, 0..T-1. 0 beyond the lengths."""

    states: torch.Tensor
    frames: torch.Tensor

    def first(self) -> torch.Tensor:
        """Return [B, U] bool, False where an earlier token of the utterance is emitted in the same frame."""
        same = self.frames[:, :, None] == self.frames[:, None, :]  # [B, U, U]
        return ~same.tril(-1).any(-1)


def most_likely_alignment(
    label_log_probs: torch.Tensor,
    blank_log_probs: torch.Tensor,
    encoded_len: torch.Tensor,
    target_len: torch.Tensor,
) -> Alignment:
    """Return the most likely alignment of the transcript, computed from its lattice.

    Args:
        label_log_probs: [B, T, U], log-probability of emitting token u + 1 in frame t with u tokens emitted.
        blank_log_probs: [B, T, U+1].
        encoded_len: [B] in frames, 1..T.
        target_len: [B] in tokens, 0..U.
    """
    _, label, blank = lattice_occupancies(label_log_probs, blank_log_probs, encoded_len, target_len)
    return Alignment(states=blank.argmax(-1), frames=label.argmax(1))  # every frame is left by exactly one blank


def align(branch: BranchOutput) -> Alignment:
    """Align a branch's transcript by its joint, whose lattice [B, T, U+1, V+1] is made some frames at a time."""
    joint, targets = branch.networks.joint, branch.transcript
    batch, num_frames, _ = branch.encoder_side.shape
    num_states = branch.prediction_side.shape[1]
    step = max(1, LATTICE_VALUES // (batch * num_states * joint.num_classes_with_blank))
    labels, blanks = [], []
    for start in range(0, num_frames, step):
        frames = branch.encoder_side[:, start : start + step, None]  # [B, step, 1, H]
        logits = token_logits(joint, joint.joint_net(frames + branch.prediction_side[:, None]))
        log_probs = logits.float().log_softmax(-1)  # [B, step, U+1, V+1]
        index = targets[:, None, :, None].expand(-1, log_probs.shape[1], -1, 1)
        labels.append(log_probs[:, :, :-1].gather(3, index).squeeze(3))  # [B, step, U]
        blanks.append(log_probs[..., -1])
    return most_likely_alignment(torch.cat(labels, 1), torch.cat(blanks, 1), branch.encoded_len, branch.transcript_len)


def node_logits(branch: BranchOutput, frames: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Return raw joint logits at N nodes of each utterance: frames [B, N] and states [B, N] -> [B, N, V+1]."""
    rows, joint = torch.arange(len(frames), device=frames.device)[:, None], branch.networks.joint
    sides = branch.encoder_side[rows, frames] + branch.prediction_side[rows, states]  # [B, N, H]
    return token_logits(joint, joint.joint_net(sides))


def passed_logits(branch: BranchOutput, alignment: Alignment) -> torch.Tensor:
    """Return raw joint logits at the node that the alignment leaves each frame from, [B, T, V+1]."""
    frames = torch.arange(branch.encoder_side.shape[1], device=alignment.states.device)
    return node_logits(branch, frames.expand_as(alignment.states), alignment.states)
