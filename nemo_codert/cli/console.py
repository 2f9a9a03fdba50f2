"""Parts that all commands share: parser, quiet libraries, errors and exit status.

Imports NeMo when called.
"""

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Container


def quieten_libraries() -> None:
    """Keep NeMo, Lightning and their telemetry to errors. To be called before anything imports NeMo.

    That takes seconds: a line states it first, in the first of several processes of a run.
    """
    if "nemo" not in sys.modules:
        announce("Loading PyTorch and NeMo ...")
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


def announce(text: str) -> None:
    """Print what is begun to standard error, in the first of several processes of a run."""
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        print(text, file=sys.stderr, flush=True)


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


def setting_errors() -> tuple[type[Exception], ...]:
    """Return the errors of this package, NeMo, Lightning and Hydra for settings that cannot be used, and of paths."""
    from hydra.errors import InstantiationException
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from omegaconf.errors import OmegaConfBaseException

    return ValueError, TypeError, OSError, OmegaConfBaseException, InstantiationException, MisconfigurationException


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
