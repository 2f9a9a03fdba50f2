"""Distances of hidden features and of softmaxes in float64 numpy, utterance by utterance.

Shares no code with the package and is meant to be checked by eye against the docstring of `feature_distance`. Each
function returns the sum over frames of the whole batch; utterances are lists of arrays [T, D] without padding.
"""

import numpy as np


def mse(student, teacher):
    return np.sum(np.mean((np.concatenate(student) - np.concatenate(teacher)) ** 2, axis=1))


def cosine(student, teacher):
    pairs = zip(np.concatenate(student), np.concatenate(teacher), strict=True)
    return sum(1 - s @ t / (np.linalg.norm(s) * np.linalg.norm(t)) for s, t in pairs)


def correlation(student, teacher, self_weight=0.0):
    s, t = np.concatenate(student), np.concatenate(teacher)
    frames, channels = s.shape
    whole = np.corrcoef(s, t, rowvar=False)  # [2 D, 2 D]
    cross, own = whole[:channels, channels:], whole[:channels, :channels]
    off_diagonal = own - np.diag(np.diag(own))
    distance = np.sum((cross - np.eye(channels)) ** 2) + self_weight * np.sum(off_diagonal**2)
    return frames * distance / channels


def energy(student, teacher):
    """T times the squared distance of energy maps of unit length (arXiv:1612.03928), of centred frames."""
    total = 0.0
    for S, T in zip(student, teacher, strict=True):
        s, t = (np.sum((X - X.mean(0)) ** 2, axis=1) for X in (S, T))
        total += len(S) * np.sum((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2)
    return total


def gram(student, teacher):
    """2 T (1 - linear CKA) (arXiv:1905.00414), from products of channels, not of frames."""
    total = 0.0
    for S, T in zip(student, teacher, strict=True):
        S, T = (X - X.mean(0) for X in (S, T))
        likeness = np.linalg.norm(S.T @ T) ** 2 / (np.linalg.norm(S.T @ S) * np.linalg.norm(T.T @ T))
        total += 2 * len(S) * (1 - likeness)
    return total


def softmax_l2(student, teacher, temperature=1.0):
    total = 0.0
    for s, t in zip(np.concatenate(student), np.concatenate(teacher), strict=True):
        q, p = (np.exp(x / temperature) / np.exp(x / temperature).sum() for x in (s, t))
        total += temperature**2 * np.sum((p - q) ** 2)
    return total


def numerical_gradient(function, utterances, step=1e-5):
    """Central differences of function(utterances) in each number of each array."""
    gradients = [np.zeros_like(each) for each in utterances]
    for gradient, each in zip(gradients, utterances, strict=True):
        for place in np.ndindex(each.shape):
            value = each[place]
            each[place] = value + step
            above = function(utterances)
            each[place] = value - step
            below = function(utterances)
            each[place] = value
            gradient[place] = (above - below) / (2 * step)
    return gradients
