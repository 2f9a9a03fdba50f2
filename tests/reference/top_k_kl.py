"""Independent float64 reference of the divergence of k classes and the rest, by loops."""

import numpy as np


def top_k_kl(student_logits: np.ndarray, ids: np.ndarray, probabilities: np.ndarray, temperature: float) -> float:
    """KL in nats of one frame: student_logits [V+1], ids [k], probabilities [k], times temperature squared."""
    scaled = student_logits / temperature
    student = np.exp(scaled - scaled.max())
    student /= student.sum()
    pairs = [(p, student[c]) for c, p in zip(ids, probabilities, strict=True)]
    if len(ids) < len(student):
        others = [c for c in range(len(student)) if c not in set(ids.tolist())]
        pairs.append((1 - probabilities.sum(), student[others].sum()))
    return temperature**2 * sum(p * np.log(p / q) for p, q in pairs if p > 0)
