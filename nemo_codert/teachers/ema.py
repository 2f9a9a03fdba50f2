"""A teacher that is an average of its student over the optimizer steps so far."""

from collections.abc import Callable, Iterable

import torch
from omegaconf import DictConfig

from nemo_codert.modules.transducer import Transducer
from nemo_codert.teachers.live import Frozen


class Ema(Frozen):
    """An exponential moving average of the student's networks (mean teacher; Kaizen, arXiv:2106.07759).

    After each optimizer step every weight of the teacher becomes `decay * teacher + (1 - decay) * student`. It is kept
    in float32 or wider (`kept_wide`): with a decay near 1 a step moves it by less than half precision can hold.

    Args:
        networks: the teacher's, built like the student's.
        codert: the block `model.codert`.
    """

    def __init__(self, networks: Transducer, codert: DictConfig) -> None:
        super().__init__(networks, codert)
        self.decay = codert.ema_decay

    def start(self, student: Transducer) -> None:
        """Make the teacher a copy of the student."""
        self._move(student, 0.0)

    def follow(self, student: Transducer) -> None:
        """Move the average after an optimizer step of the student."""
        self._move(student, self.decay)

    @torch.no_grad()
    def _move(self, student: Transducer, decay: float) -> None:
        weights, buffers = [], []
        for own, followed in zip(self.networks.networks(), student.networks(), strict=True):
            values = followed.state_dict(keep_vars=True)
            for name, value in own.state_dict(keep_vars=True).items():
                (weights if isinstance(value, torch.nn.Parameter) else buffers).append((value, values[name].detach()))
        # The difference is scaled, not the two: weights that are equal stay equal, and decay 0 gives the student's.
        averages, targets = zip(*((average, value.to(average.dtype)) for average, value in weights), strict=True)
        torch._foreach_lerp_(averages, targets, 1 - decay)
        for own, value in buffers:  # batch-norm statistics are averages already, and counts cannot be averaged
            own.copy_(value)


def kept_wide(
    convert: Callable[[torch.Tensor], torch.Tensor], tensors: Iterable[torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a conversion of a module's tensors that leaves some of them in their type where theirs would be half.

    Args:
        convert: the conversion, as `torch.nn.Module._apply` gets it.
        tensors: those that are moved to another device only, if `convert` would make them 16 bits or less.

    Example:
        >>> average, other = torch.ones(1), torch.ones(1)
        >>> convert = kept_wide(torch.Tensor.half, [average])
        >>> convert(average).dtype, convert(other).dtype
        (torch.float32, torch.float16)
    """
    kept = {id(tensor) for tensor in tensors}

    def converted(tensor: torch.Tensor) -> torch.Tensor:
        result = convert(tensor)
        is_half = result.is_floating_point() and result.itemsize < torch.float32.itemsize
        return tensor.to(result.device) if is_half and id(tensor) in kept else result

    return converted
