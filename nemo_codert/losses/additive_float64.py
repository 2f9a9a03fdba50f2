"""Limits of float32 in an additive loss, and one utterance computed in float64 beyond them. Imports torch."""

# T encoder frames, U target tokens, V vocabulary without blank, M = U + 1 prediction states, N lattice cells

import math
from functools import lru_cache

import torch
from torch.nn.functional import pad

UNSHIFTED = 20.0  # rows whose maximum lies within +-20 are exponentiated unshifted: subtracting it would round
CELL_CHUNK_ELEMENTS = 2**22  # cells times V+1 of one true log-sum-exp: 32 MB of float64


def compute_dtype(encoder_logits: torch.Tensor, prediction_logits: torch.Tensor) -> torch.dtype:
    """Return float32, or float64 where one of the logits is."""
    return torch.promote_types(torch.promote_types(encoder_logits.dtype, prediction_logits.dtype), torch.float32)


@lru_cache
def smallest_sum(num_classes: int, dtype: torch.dtype) -> float:
    """Return the smallest Z, a sum over classes, that is safe from exponentials which underflowed.

    These are terms below the smallest normal number, times e^20 at most where a row was not shifted.
    """
    limits = torch.finfo(dtype)
    return num_classes * limits.tiny / limits.eps * math.exp(UNSHIFTED)


def trusted_share(dtype: torch.dtype) -> float:
    """Return the smallest trusted ratio of Z to its bound, the product of the largest exponentials of both sides.

    Terms far below the largest are rounded: those of a shifted row by the shift, and where no row was shifted the many
    small terms by the sum that holds a few large ones. Such terms must not dominate Z. The tokens' terms are not in
    this sum, and are often the largest of all.
    """
    return 1e-6 if dtype == torch.float32 else 0.0


class Utterance:
    """One utterance in float64: logits [T, V+1] and [M, V+1], their exponentials and the normaliser [T, M]."""

    def __init__(self, encoder_logits: torch.Tensor, prediction_logits: torch.Tensor) -> None:
        self.logits = encoder_logits.double(), prediction_logits.double()
        maxima = [part.amax(-1, keepdim=True) for part in self.logits]
        self.exp = [(part - shift).exp_() for part, shift in zip(self.logits, maxima, strict=True)]
        self.z = self.exp[0] @ self.exp[1].T
        self.shift = maxima[0] + maxima[1].T
        limits, num_classes = torch.finfo(torch.float64), encoder_logits.shape[1]
        cells = (self.z < num_classes * limits.tiny / limits.eps).nonzero()  # maxima more than 600 apart
        self.cells = [part.unbind(1) for part in cells.split(max(CELL_CHUNK_ELEMENTS // num_classes, 1))]

    def log_z(self) -> torch.Tensor:
        """Return log Z [T, M]; by a true log-sum-exp in the cells where even float64 underflows."""
        log_z = self.z.log() + self.shift
        for t, u in self.cells:
            log_z[t, u] = (self.logits[0][t] + self.logits[1][u]).logsumexp(-1)
        return log_z

    def log_probs(self, targets: torch.Tensor, blank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities of labels [T, U] and blanks [T, M], given targets [U]."""
        (encoder, prediction), log_z = self.logits, self.log_z()
        next_label = prediction[:-1].gather(1, targets[:, None]).T  # [1, U]: state u emits target u + 1
        label = encoder[:, targets] + next_label - log_z[:, :-1]
        return label, encoder[:, blank, None] + prediction[:, blank] - log_z

    def gradients(
        self, targets: torch.Tensor, blank: int, label_upstream: torch.Tensor, blank_upstream: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of both logits, given those of the results of `log_probs`, [T, U] and [T, M]."""
        gamma = -blank_upstream - pad(label_upstream, (0, 1))  # [T, M]
        weight = (gamma / self.z).masked_fill_(gamma == 0, 0.0)
        for t, u in self.cells:
            weight[t, u] = 0.0
        gradients = (weight @ self.exp[1]).mul_(self.exp[0]), (weight.T @ self.exp[0]).mul_(self.exp[1])
        for t, u in self.cells:
            share = (self.logits[0][t] + self.logits[1][u]).softmax(-1) * gamma[t, u, None]  # [N, V+1]
            gradients[0].index_add_(0, t, share)
            gradients[1].index_add_(0, u, share)
        gradients[0].scatter_add_(1, targets.expand(label_upstream.shape), label_upstream)
        gradients[0][:, blank] += blank_upstream.sum(1)
        gradients[1][:-1].scatter_add_(1, targets[:, None], label_upstream.sum(0)[:, None])
        gradients[1][:, blank] += blank_upstream.sum(0)
        return gradients
