"""Numba kernels whose machine code is kept in one named folder, so that one process compiles for all later ones.

The folder is `nemo_codert` in `NUMBA_CACHE_DIR`, `$XDG_CACHE_HOME` or `~/.cache`, whichever is set first. It may be
shared by several processes (files are replaced whole) and may be read-only or full: code that cannot be stored or read
is compiled again. Numba's default is to write beside the sources. Imports numba.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from llvmlite.binding import get_host_cpu_features, get_host_cpu_name
from numba.core.caching import CompileResultCacheImpl, FunctionCache


def cache_folder() -> Path:
    """Return the folder of the compiled kernels."""
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR) / "nemo_codert"
    home = os.path.expanduser("~/.cache")
    if home.startswith("~"):  # this user has no home folder
        home = os.path.join(tempfile.gettempdir(), f"cache-{os.getuid()}")
    return Path(os.environ.get("XDG_CACHE_HOME") or home) / "nemo_codert"


def callee(function: Callable) -> Callable:
    """Compile a function that kernels call, by `numba.njit`: without the GIL, and 1 / 0 is inf."""
    return numba.njit(nogil=True, error_model="numpy")(function)


def compiled(function: Callable) -> Callable:
    """Compile a kernel as `callee` does, and keep its machine code, callees included, in `cache_folder`."""
    kernel = callee(function)
    kernel._cache = _FolderCache(function)
    return kernel


class _Folder:
    """Place of a function's compiled code: numba's `_CacheLocator` interface."""

    def __init__(self, function: Callable, source: str) -> None:
        self.line, self.source = function.__code__.co_firstlineno, Path(source)

    @classmethod
    def from_function(cls, function: Callable, source: str) -> "_Folder":
        return cls(function, source)

    def ensure_cache_path(self) -> None:
        cache_folder().mkdir(parents=True, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        # Hash of all files that hold kernels, their callees and the compiler options.
        folder = Path(__file__).parent
        files = {self.source, *folder.glob("*.py")}
        return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()

    def get_disambiguator(self) -> str:
        # Part of the file name. Numba writes the index before the code, so two codes must never share a name.
        host = f"{get_host_cpu_name()} {get_host_cpu_features().flatten()}"
        made_of = f"{self.get_source_stamp()} {numba.__version__} {host}"
        return f"{self.line}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"


class _FolderCacheImpl(CompileResultCacheImpl):
    _locator_classes = [_Folder]


class _FolderCache(FunctionCache):
    _impl_class = _FolderCacheImpl

    def load_overload(self, *args: Any) -> Any:
        # Overrides Cache.load_overload: an unreadable or torn file counts as missing.
        try:
            return super().load_overload(*args)
        except OSError:
            return None
        except Exception:  # noqa: BLE001  unpickling a damaged file may raise any error
            with suppress(OSError):
                self._cache_file.flush()  # empties the index: with a damaged one no later process could store code
            return None

    def save_overload(self, *args: Any) -> None:
        # Overrides Cache.save_overload: where the folder is not writable, the next process compiles again.
        with suppress(OSError):
            super().save_overload(*args)
