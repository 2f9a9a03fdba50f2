"""Checksums of networks' weights and of word pieces, the same for every file that they may lie in."""

import hashlib
from collections.abc import Sequence

import torch
from torch import nn


def weights_sha256(*networks: nn.Module) -> str:
    """Return the sha256 of networks' weights: of every tensor's place, type, shape and bytes.

    Args:
        networks: in an order that counts.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = weights_sha256(layer)
        >>> _ = layer.weight.data.add_(1)
        >>> before == weights_sha256(layer)
        False
    """
    digest = hashlib.sha256()
    for number, network in enumerate(networks):
        for name, value in sorted(network.state_dict().items()):
            if isinstance(value, torch.Tensor):
                digest.update(f"{number}.{name} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pieces_sha256(pieces: Sequence[str]) -> str | None:
    """Return the sha256 of word pieces in the order of their ids; None where there are none.

    Example:
        >>> pieces_sha256(["a", "b"])[:8], pieces_sha256([])
        ('7e18f737', None)
    """
    return hashlib.sha256("\n".join(pieces).encode()).hexdigest() if pieces else None
