"""Products that stay float32 whatever the user allowed for the rest of the model. Imports torch only."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock

import torch

FULL = {"none", "ieee"}  # float32 settings; "none" means that nothing was set: float32 for products on both devices


class FullPrecision:
    """Context that keeps float32 products float32, whatever autocast, TF32 or bfloat16 the user allowed elsewhere.

    torch's switches hold for the whole process: the first thread that enters sets them, the last one to leave restores
    them.
    """

    def __init__(self) -> None:
        self.backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
        self.lock, self.inside, self.allowed = Lock(), 0, []

    def __call__(self, device_type: str) -> AbstractContextManager[None]:
        """Return the context for products on a device; a null context where nothing has to be changed."""
        # Both switches are read first: setting them takes as long as a product of a small batch.
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
        """Return whether `_leave` has to follow: something was set, by this thread or by another inside."""
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
"""The instance of the process."""
