"""Parts that all commands share: parser, quiet libraries, errors and exit status, values for Hydra's command line.

Imports NeMo when called.
"""

import argparse
import ctypes
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGEST_BLOCK = 2**25  # bytes, the most that older versions of glibc take
MOST_KEPT = 2**31 - 1  # bytes


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


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where its C library is glibc: a step on the CPU then asks the
    system for no new pages (docs/performance.md). Blocks of 32 MiB and more are given back as before, and nothing
    changes where the user has set one of glibc's variables."""
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def command_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """Return a parser whose help begins with `description` and ends with examples, both as they are written.

    Its `prog` is argparse's: the name in `sys.argv[0]`, a script's or `codert NAME`.
    """
    return argparse.ArgumentParser(
        description=description.strip(),
        epilog=f"examples:\n{examples.strip()}".replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def exit_status(work: Callable[[], None], options: argparse.Namespace | None = None) -> int:
    """Do the work of a command.

    Args:
        work: called once.
        options: of the command line; a name among them that stands in backquotes in an error is printed as an option.

    Returns:
        0, or 2 with one `error:` line where the user's options or files are at fault.
    """
    try:
        work()
    except (ValueError, OSError) as error:
        print(f"error: {with_option_names(fault(error), vars(options or argparse.Namespace()))}", file=sys.stderr)
        return 2
    return 0


def with_option_names(message: str, names: Container[str]) -> str:
    """Return a message of the library with arguments written as options.

    Example:
        >>> with_option_names("`top_k` is 21, wanted 20 or fewer", {"top_k"})
        '--top-k is 21, wanted 20 or fewer'
    """
    option = "--{}".format
    return re.sub(r"`(\w+)`", lambda m: option(m[1].replace("_", "-")) if m[1] in names else m[0], message)


def fault(error: Exception) -> str:
    """Return the message of an error; of one of the operating system the path first, and the remedy."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or type(error).__name__}. Give a path that can be read or written"
    return str(error)


def hydra_value(path: str | Path) -> str:
    """A path as a value on Hydra's command line, whatever signs are in it."""
    # Hydra takes a backslash for itself, except before a quote.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(path)) + "'"
