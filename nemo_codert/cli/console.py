"""What the scripts share at their command line: what is printed, exit status.

Imports NeMo when called.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile


def quieten_libraries() -> None:
    """Keep NeMo, Lightning and their telemetry to errors. To be called before anything imports NeMo."""
    logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)
    os.environ.setdefault("NEMO_REDIRECT_LOGS_TO_STDERR", "1")  # a progress bar owns standard output
    warnings.filterwarnings("ignore")
    import lightning.pytorch  # noqa: F401  (each of the two sets its own level when it is imported)
    import pytorch_lightning  # noqa: F401
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.ERROR)
    for name in ("pytorch_lightning", "lightning.pytorch", "lhotse", "numba"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("nemo_codert").setLevel(logging.INFO)
    if not logging.getLogger("nemo_codert").handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger("nemo_codert").addHandler(handler)
        logging.getLogger("nemo_codert").propagate = False


def exit_status(work: Callable[[], None]) -> int:
    """Do a script's work: 0, or 2 with one `error:` line where the user's options or files are at fault."""
    try:
        work()
    except (ValueError, OSError) as error:
        print(f"error: {fault(error)}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def folder_to_fill(folder: Path, option: str) -> Iterator[None]:
    """A folder to write into, made where it is missing; what was made goes again if nothing came into it.

    option: that names the folder, for the message.

    Raises:
        ValueError: it cannot be made or written to.
    """
    made: list[Path] = []
    try:
        try:
            made += [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()
        except OSError as error:
            reason = f"cannot write there ({error.strerror}). Give another folder"
            raise ValueError(f"{option} is {folder}: {reason}") from error
        yield
    finally:
        with suppress(OSError):  # up to the first that holds something
            for path in made:
                path.rmdir()


def fault(error: Exception) -> str:
    """What a user is told of an error: of one of the operating system the path first, and what to do."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or type(error).__name__}. Give a path that can be read or written"
    return str(error)
