"""TDT losses (Xu et al., arXiv:2304.06795) by plain float64 recursion and by enumeration, no code of the package.

Node by node over Python dictionaries; gradients come from autograd through it. Slow, and meant to be checked by eye.
"""

import math
from collections.abc import Iterator, Sequence

import torch

Arc = tuple[int, int, int, bool]  # frame and state that it leaves, place of its duration, whether it is a label


def joint_losses(
    joint_logits: torch.Tensor, targets: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor,
    blank: int, durations: Sequence[int], sigma: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Negative log-likelihoods [B] in nats of joint logits [B, T, U+1, V+1+N]; padding is not touched."""
    losses, N = [], len(durations)
    for b in range(joint_logits.shape[0]):
        T, U = int(encoded_lengths[b]), int(target_lengths[b])
        logits = joint_logits[b, :T, : U + 1].double()
        tokens, lasting = logits[..., :-N].log_softmax(-1) - sigma, logits[..., -N:].log_softmax(-1)
        reached = {(0, 0): torch.zeros((), dtype=torch.float64)}
        for t in range(T + 1):
            for u in range(U + 1):
                arrivals = []
                for n, d in enumerate(durations):
                    if d > 0 and (t - d, u) in reached and (t < T or u == U):
                        arrivals.append(reached[t - d, u] + tokens[t - d, u, blank] + lasting[t - d, u, n])
                    if (t - d, u - 1) in reached and t < T:
                        label = int(targets[b, u - 1])
                        arrivals.append(reached[t - d, u - 1] + tokens[t - d, u - 1, label] + lasting[t - d, u - 1, n])
                if arrivals:
                    reached[t, u] = torch.stack(arrivals).logsumexp(0)
        losses.append(-reached[T, U])
    return torch.stack(losses)


def additive_losses(
    encoder_logits: torch.Tensor, prediction_logits: torch.Tensor, targets: torch.Tensor,
    encoded_lengths: torch.Tensor, target_lengths: torch.Tensor, blank: int, durations: Sequence[int],
    sigma: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Negative log-likelihoods [B] of the additive joint, whose whole lattice is formed in float64."""
    joint_logits = encoder_logits.double()[:, :, None, :] + prediction_logits.double()[:, None, :, :]
    return joint_losses(joint_logits, targets, encoded_lengths, target_lengths, blank, durations, sigma)


def paths(frames: int, tokens: int, durations: Sequence[int], t: int = 0, u: int = 0) -> Iterator[list[Arc]]:
    """Every alignment of an utterance from node (t, u) on."""
    if t >= frames:
        if t == frames and u == tokens:
            yield []
        return
    for n, d in enumerate(durations):
        if u < tokens and t + d < frames:
            for rest in paths(frames, tokens, durations, t + d, u + 1):
                yield [(t, u, n, True), *rest]
        if d > 0:
            for rest in paths(frames, tokens, durations, t + d, u):
                yield [(t, u, n, False), *rest]


def enumerated(
    label: torch.Tensor, blank: torch.Tensor, lasting: torch.Tensor, durations: Sequence[int]
) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Negative log-likelihood and occupancies of an utterance [T, U], [T, U+1], [T, U+1, N], by walking every path."""
    likelihood, masses = 0.0, [torch.zeros_like(each) for each in (label, blank, lasting)]
    for path in paths(*label.shape, durations):
        steps = [(label if is_label else blank)[t, u] + lasting[t, u, n] for t, u, n, is_label in path]
        probability = math.exp(sum(steps))
        likelihood += probability
        for t, u, n, is_label in path:
            masses[0 if is_label else 1][t, u] += probability
            masses[2][t, u, n] += probability
    return -math.log(likelihood), *(mass / likelihood for mass in masses)
