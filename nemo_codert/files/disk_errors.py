"""One error for all faults of writing a file: it names the file, the cause and the remedy."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's quota, the largest file allowed


@contextmanager
def named_when_full(path: str | Path) -> Iterator[None]:
    """Raise an OSError that names `path` for a full disk in this block; other errors pass unchanged."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _is_full(error) and getattr(error, "filename", None) is None:
            raise write_error(error, path) from error
        raise


def write_error(error: Exception, path: str | Path, remedy: str = "") -> OSError:
    """Return the error to raise for a file that could not be written.

    remedy: advice besides making room or giving another folder.
    """
    cause = _cause(error)
    code = cause.errno if cause is not None and cause.errno else errno.EIO
    reason = os.strerror(code) if cause is not None else " ".join(str(error).split())
    advice = "Free some space, or give another folder" if _is_full(error) else "Give a folder that can be written to"
    raised = OSError(f"{path} could not be written: {reason}. {advice}{remedy}")
    raised.errno = code
    return raised


def _cause(error: BaseException | None) -> OSError | None:
    """Find the OSError behind an error: PyTorch's writer raises a RuntimeError from it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _is_full(error: Exception) -> bool:
    cause = _cause(error)
    # A writer of PyTorch that opens the file itself gives no reason.
    return cause.errno in FULL if cause is not None else "PytorchStreamWriter" in str(error)
