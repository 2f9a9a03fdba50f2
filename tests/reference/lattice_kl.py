"""KL divergence on the lattice by brute force in float64: every node, every class. Shares no code with the package.

Meant to be checked by eye; gradients come from autograd through it.
"""

import itertools
import math

import torch


def node_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of logits [..., classes]."""
    p, q = teacher_logits.double().log_softmax(-1), student_logits.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def lattice(encoder: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """Logits [T, U+1, V+1] of one utterance of an additive joint."""
    return encoder.double()[:, None, :] + prediction.double()[None, :, :]


def three_classes(logits: torch.Tensor, targets: torch.Tensor, blank: int) -> torch.Tensor:
    """Log-probabilities [T, U+1, 3] of next label (-inf in the last state), blank, and all others together."""
    log_probs = logits.double().log_softmax(-1)
    rows = []
    for u in range(logits.shape[1]):
        own = [blank] if u == len(targets) else [int(targets[u]), blank]
        others = [v for v in range(logits.shape[2]) if v not in own]
        label = torch.full(logits.shape[:1], -math.inf, dtype=torch.float64)
        label = label if u == len(targets) else log_probs[:, u, own[0]]
        rows.append(torch.stack([label, log_probs[:, u, blank], log_probs[:, u, others].logsumexp(-1)], -1))
    return torch.stack(rows, 1)


def three_class_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL at the nodes of log-probabilities [T, U+1, 3]; a class at -inf in both adds nothing."""
    terms = teacher.exp() * (teacher - student)
    return torch.where(teacher == -math.inf, 0.0, terms).sum(-1)


def weighted(nodes: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Weighted sum of the nodes [T, U+1] of an utterance, weights rescaled to T + U; 0 where they sum to nothing."""
    weights = torch.ones_like(nodes) if weights is None else weights.double()
    if weights.sum() < 1e-6:
        return 0.0 * nodes.sum()
    return (weights * nodes).sum() * (nodes.shape[0] + nodes.shape[1] - 1) / weights.sum()


def paths(frames: int, tokens: int) -> list[list[tuple[int, int]]]:
    """Every alignment of an utterance, as the nodes (t, u) that it passes; it ends with the blank of the last one."""
    found = []
    for labels in itertools.combinations_with_replacement(range(frames), tokens):  # frame in which each is emitted
        nodes, u = [], 0
        for t in range(frames):
            while u < tokens and labels[u] == t:
                nodes.append((t, u))
                u += 1
            nodes.append((t, u))
        found.append(nodes)
    return found


def path_log_prob(log_probs: torch.Tensor, nodes: list[tuple[int, int]]) -> float:
    """Log-probability of an alignment, given [T, U+1, 3] as of `three_classes`."""
    steps = zip(nodes, [*nodes[1:], (nodes[-1][0] + 1, nodes[-1][1])], strict=True)
    return sum(float(log_probs[t, u, 0 if after[0] == t else 1]) for (t, u), after in steps)


def occupancies(log_probs: torch.Tensor) -> torch.Tensor:
    """Posterior probabilities [T, U+1] of passing each node, over all alignments."""
    frames, states = log_probs.shape[:2]
    scored = [(nodes, path_log_prob(log_probs, nodes)) for nodes in paths(frames, states - 1)]
    total = torch.tensor([score for _, score in scored], dtype=torch.float64).logsumexp(0)
    occupied = torch.zeros(frames, states, dtype=torch.float64)
    for nodes, score in scored:
        for t, u in nodes:
            occupied[t, u] += math.exp(score - total)
    return occupied
