"""The optimizer step of a checkpoint, read without PyTorch, whose import takes seconds.

Nothing in the file is executed. Imports the standard library only.
"""

import pickletools
import zipfile
from pathlib import Path

HEAD_BYTES = 2**16  # Lightning writes the counters before all else


def checkpoint_step(path: str | Path) -> int | None:
    """Return the optimizer step that a Lightning checkpoint was saved at.

    Args:
        path: of a `.ckpt`.

    Returns:
        `global_step`; None for a torn file, and for one that is not a checkpoint of Lightning's.

    Example:
        >>> checkpoint_step("absent.ckpt") is None
        True
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(member) as file:
                return _step(file.read(HEAD_BYTES))
    except (OSError, EOFError, StopIteration, ValueError, zipfile.BadZipFile):
        return None


def _step(pickled: bytes) -> int | None:
    """Return the number that follows the text `global_step` among the operations of a pickle."""
    is_next = False
    for operation, argument, _ in pickletools.genops(pickled):
        if "PUT" in operation.name or operation.name == "MEMOIZE":
            continue
        if is_next:
            return argument if isinstance(argument, int) else None
        is_next = argument == "global_step"
    return None
