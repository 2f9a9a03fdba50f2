"""Weights of the lattice's nodes from the teacher's log-probabilities, for the divergences at the joint.

`non_blank` as in MCR-RNNT (arXiv:2604.19079), `occupied` as in TCR (arXiv:2410.07491), `best_path` as in Yang et al.
(arXiv:2110.03334). Imports torch, numpy, `frames`, `lattice`.
"""

# B batch, T encoder frames, U target tokens, M = U + 1 prediction states

import numpy as np
import torch
from torch.nn.functional import pad

from nemo_codert.losses.frames import valid_cells
from nemo_codert.losses.lattice import lattice_occupancies

NODES = ("all", "non_blank", "occupied", "best_path")


def node_weights(
    nodes: str,
    label_log_probs: torch.Tensor,
    blank_log_probs: torch.Tensor,
    encoded_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
) -> torch.Tensor:
    """Return the weight of each node of the lattice, not rescaled; padding is never read.

    Args:
        nodes: `all`: 1; `non_blank`: 1 less the probability of the blank; `occupied`: the posterior probability that
            an alignment of the transcript passes the node; `best_path`: 1 at the T + U nodes of the most probable
            alignment, else 0.
        label_log_probs: [B, T, U] float, log-probability of emitting target u + 1 in frame t after u tokens.
        blank_log_probs: [B, T, U+1] float, log-probability of the blank in frame t after u tokens.
        encoded_lengths: [B] int in frames, 0..T.
        target_lengths: [B] int in tokens, 0..U.

    Returns:
        [B, T, U+1] float64 from 0 to 1, without a graph, 0 beyond the lengths.

    Raises:
        ValueError: unknown nodes.

    Example:
        One token in two frames; the label is twice as probable in the first frame:

        >>> import torch
        >>> from nemo_codert.losses import node_weights
        >>> label, blank = torch.tensor([[[0.5], [0.25]]]).log(), torch.tensor([[[0.5, 1.0], [0.5, 1.0]]]).log()
        >>> lengths = torch.tensor([2]), torch.tensor([1])
        >>> node_weights("occupied", label, blank, *lengths)  # the alignments have probabilities 1/2 and 1/8
        tensor([[[1.0000, 0.8000],
                 [0.2000, 1.0000]]], dtype=torch.float64)
        >>> node_weights("best_path", label, blank, *lengths)
        tensor([[[1., 1.],
                 [0., 1.]]], dtype=torch.float64)
    """
    if nodes not in NODES:
        raise ValueError(f"nodes must be one of {', '.join(NODES)}, got {nodes!r}")
    with torch.no_grad():
        blank = blank_log_probs.detach().double()
        lengths = encoded_lengths.to(blank.device).long(), target_lengths.to(blank.device).long()
        valid = valid_cells(*lengths, *blank.shape[1:])
        if nodes == "all":
            return valid.double()
        if nodes == "non_blank":
            return -torch.expm1(blank.masked_fill(~valid, 0.0))
        given = label_log_probs.detach().double(), blank, *lengths
        if blank.shape[1] == 0:
            return torch.zeros_like(blank)
        weights = _best_paths(*given) if nodes == "best_path" else _occupied(*given)
        return weights.masked_fill(~valid, 0.0)


def _occupied(
    label: torch.Tensor, blank: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> torch.Tensor:
    # The recursion takes one frame or more: the result of an utterance without frames is masked.
    empty = (encoded_lengths == 0)[:, None, None]
    label, blank = label.masked_fill(empty, 0.0), blank.masked_fill(empty, 0.0)
    _, of_label, of_blank = lattice_occupancies(label, blank, encoded_lengths.clamp(min=1), target_lengths)
    return (pad(of_label, (0, 1)) + of_blank).nan_to_num_(0.0)


def _best_paths(
    label: torch.Tensor, blank: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor
) -> torch.Tensor:
    """Return 1 at the nodes of the most probable alignments, [B, T, M], else 0; on the host, in one pass for all."""
    label, blank = (each.cpu().numpy() for each in (label, blank))
    frames, tokens = encoded_lengths.cpu().numpy(), target_lengths.cpu().numpy()
    batch, num_frames, num_states = blank.shape
    by_label = np.zeros(blank.shape, np.bool_)  # whether the best way to a node is the label of the state before
    before = np.full((batch, num_states), -np.inf)
    before[:, 0] = 0.0
    for t in range(num_frames):
        for u in range(1, num_states):
            arrival = before[:, u - 1] + label[:, t, u - 1]
            by_label[:, t, u] = arrival > before[:, u]
            before[:, u] = np.where(by_label[:, t, u], arrival, before[:, u])
        before = before + blank[:, t]
    path, rows = np.zeros(blank.shape), np.arange(batch)
    t, u = frames - 1, tokens.copy()
    for _ in range(num_frames + num_states - 1):
        inside = t >= 0
        path[rows[inside], t[inside], u[inside]] = 1.0
        back = by_label[rows, t, u] | (t <= 0)  # labels alone lead back in the first frame
        t, u = np.where(inside & (~back | (u == 0)), t - 1, t), np.where(inside & back & (u > 0), u - 1, u)
    return torch.from_numpy(path).to(encoded_lengths.device)
