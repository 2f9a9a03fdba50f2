"""Products that stay float32 whatever the user allowed for the rest of the model. Imports torch alone."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock

import torch

FULL = {"none", "ieee"}  # "none": nothing was set, which is float32 for products on both devices


class FullPrecision:
    """Keeps float32 products float32 whatever autocast, TF32 or bfloat16 products the user allowed elsewhere.

    torch's switches are the process's: the first thread that comes in sets them, the last one out sets them back.
    """

    def __init__(self) -> None:
        self.backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
        self.lock, self.inside, self.allowed = Lock(), 0, []

    def __call__(self, device_type: str) -> AbstractContextManager[None]:
        """What to compute products within. Next to nothing where nothing has to be changed."""
        # Both are asked first, as setting them takes as long as a product of a small batch.
        if torch.is_autocast_enabled(device_type) or self.inside or not FULL.issuperset(self._precisions()):
            return self._changed(device_type)
        return nullcontext()

    @contextmanager
    def _changed(self, device_type: str) -> Iterator[None]:
        entered = self._enter()
        try:
            with torch.autocast(device_type, enabled=False):
                yield
        finally:
            if entered:
                self._leave()

    def _precisions(self) -> list[str]:
        return [backend.fp32_precision for backend in self.backends]

    def _enter(self) -> bool:
        """True where `_leave` has to follow: something was set, by this thread or by another that is inside."""
        with self.lock:
            if self.inside == 0:
                self.allowed = self._precisions()
                if FULL.issuperset(self.allowed):
                    return False
                self._set(["ieee", "ieee"])
            self.inside += 1
            return True

    def _leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self._set(self.allowed)

    def _set(self, precisions: list[str]) -> None:
        for backend, precision in zip(self.backends, precisions, strict=True):
            backend.fp32_precision = precision


full_precision = FullPrecision()
"""The one of the process."""
