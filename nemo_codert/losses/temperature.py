"""Temperature by which a teacher's distributions reach an entropy (Tang et al., arXiv:2306.15171: one for each case).

The paper softens a target by a power, which is a temperature; its rule for the power is not public. Here it is the
least temperature of 1 or above that lifts the entropy to a floor. Imports torch.
"""

import math
from collections.abc import Callable

import torch

HALVINGS = 20  # halvings of the interval in log tau: a relative error of 1e-5 in tau
LARGEST = 1e3  # temperature at which the search ends


def floor_problem(floor: float, num_classes: int) -> str | None:
    """Return why a distribution of `num_classes` classes cannot reach the entropy `floor` in nats; None if it can."""
    if 0 <= floor < math.log(num_classes):
        return None
    return f"{floor}, wanted 0 or more and below log(V+1) = {math.log(num_classes):.3f} nats"


def least_temperature(
    entropy_at: Callable[[torch.Tensor], torch.Tensor], floor: float, like: torch.Tensor
) -> torch.Tensor:
    """Return the least temperatures of 1 or above at which the entropy is `floor` or above.

    Args:
        entropy_at: the entropies [N] in nats at temperatures [N]; they grow with the temperature.
        floor: in nats; 0 gives exactly 1.
        like: [N] float, whose device and type the temperatures get.

    Returns:
        [N], 1 where the entropy at temperature 1 is enough, at most 1000.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
        >>> tau = frame_temperatures(logits, 0.5)
        >>> [round(number, 2) for number in tau.tolist()]
        [2.88, 1.0]
    """
    one = torch.ones_like(like)
    enough = entropy_at(one) >= floor
    low, high = torch.zeros_like(like), torch.full_like(like, math.log(LARGEST))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        reached = entropy_at(middle.exp()) >= floor
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return torch.where(enough, one, high.exp())


def frame_temperatures(logits: torch.Tensor, floor: float) -> torch.Tensor:
    """Return one temperature for each distribution, the least of 1 or above that lifts the entropy to `floor`.

    Args:
        logits: [..., V+1] float.
        floor: in nats, 0 or more and below log(V+1).

    Returns:
        [...], without a graph; float32, or float64 for float64 logits.

    Example:
        >>> import torch
        >>> frame_temperatures(torch.tensor([[9.0, 0.0, 0.0]]), 0.0)
        tensor([1.])
    """
    with torch.no_grad():
        rows = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)  # [N, V+1]

        def entropy(temperature: torch.Tensor) -> torch.Tensor:
            log_probs = (rows / temperature[:, None]).log_softmax(-1)
            return -(log_probs.exp() * log_probs).nan_to_num_(0.0).sum(-1)

        return least_temperature(entropy, floor, rows[:, 0]).view(logits.shape[:-1])
