"""RNN-T losses by the plain O(T U) recursion of Graves (arXiv:1211.3711), in float64, shares no code with the package.

Node by node over Python lists; gradients come from autograd through it. Slow, and meant to be checked by eye.
"""

import torch


def joint_losses(
    joint_logits: torch.Tensor, targets: torch.Tensor, encoded_lengths: torch.Tensor, target_lengths: torch.Tensor,
    blank: int,
) -> torch.Tensor:  # fmt: skip
    """Negative log-likelihoods [B] in nats of joint logits [B, T, U+1, V+1]; padding is not touched."""
    losses = []
    for b in range(joint_logits.shape[0]):
        T, U = int(encoded_lengths[b]), int(target_lengths[b])
        log_probs = joint_logits[b, :T, : U + 1].double().log_softmax(-1)
        reached = {(0, 0): torch.zeros((), dtype=torch.float64)}
        for t in range(T):
            for u in range(U + 1):
                arrivals = []
                if t > 0:
                    arrivals.append(reached[t - 1, u] + log_probs[t - 1, u, blank])
                if u > 0:
                    arrivals.append(reached[t, u - 1] + log_probs[t, u - 1, int(targets[b, u - 1])])
                if arrivals:
                    reached[t, u] = torch.stack(arrivals).logsumexp(0)
        losses.append(-(reached[T - 1, U] + log_probs[T - 1, U, blank]))
    return torch.stack(losses)


def additive_losses(
    encoder_logits: torch.Tensor, prediction_logits: torch.Tensor, targets: torch.Tensor,
    encoded_lengths: torch.Tensor, target_lengths: torch.Tensor, blank: int,
) -> torch.Tensor:  # fmt: skip
    """Negative log-likelihoods [B] of the additive joint, whose whole lattice is formed in float64."""
    joint_logits = encoder_logits.double()[:, :, None, :] + prediction_logits.double()[:, None, :, :]
    return joint_losses(joint_logits, targets, encoded_lengths, target_lengths, blank)
