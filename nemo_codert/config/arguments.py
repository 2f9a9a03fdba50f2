"""Checks of the arguments of library calls that are commands too, before anything heavy is imported.

Messages name an argument in backquotes; the command line prints it as its option (see `nemo_codert.cli.console`).
Imports the standard library only.
"""

from importlib.util import find_spec
from pathlib import Path


def require_file(name: str, path: str | Path | None, remedy: str = "") -> None:
    """Check that an argument is the path of a file, or None.

    Args:
        name: of the argument, for the message.
        path: the argument.
        remedy: the end of the message, a clause without a full stop.

    Raises:
        ValueError: `path` is not a file.

    Example:
        >>> require_file("model", "absent.nemo", "Give the path of a .nemo file")
        Traceback (most recent call last):
        ValueError: `model` is absent.nemo: no such file. Give the path of a .nemo file
    """
    if path is not None and not Path(path).is_file():
        raise ValueError(f"`{name}` is {path}: no such file" + (f". {remedy}" if remedy else ""))


def require_at_least(name: str, value: int | None, least: int) -> None:
    """Check that an argument is a number not below `least`, or None.

    Args:
        name: of the argument, for the message.
        value: the argument.
        least: the smallest number allowed.

    Raises:
        ValueError: `value` is below `least`.

    Example:
        >>> require_at_least("batch_size", 0, 1)
        Traceback (most recent call last):
        ValueError: `batch_size` is 0, wanted 1 or more
    """
    if value is not None and value < least:
        raise ValueError(f"`{name}` is {value}, wanted {least} or more")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that an argument is one of some words.

    Args:
        name: of the argument, for the message.
        value: the argument.
        choices: the words allowed.

    Raises:
        ValueError: `value` is another word.

    Example:
        >>> require_choice("branch", "pupil", ("student", "teacher"))
        Traceback (most recent call last):
        ValueError: `branch` is 'pupil', wanted one of student, teacher
    """
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}, wanted one of {', '.join(choices)}")


def require_installed(extra: str, *modules: str) -> None:
    """Check that packages of an extra are installed, without importing them.

    Args:
        extra: of `pip install "nemo_codert[EXTRA]"`.
        modules: that are needed.

    Raises:
        ValueError: one is missing; the message has the line that installs it.

    Example:
        >>> require_installed("scripts", "json", "absent")
        Traceback (most recent call last):
        ValueError: absent is not installed: pip install "nemo_codert[scripts]" (in a checkout: ".[scripts]")
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        raise ValueError(not_installed(extra, *missing))


def not_installed(extra: str, *packages: str) -> str:
    """Return the message about packages that are missing.

    Args:
        extra: that has them. packages: their names, one or more.

    Returns:
        What is missing, with the line that installs it.
    """
    names = f"{' and '.join(packages)} {'is' if len(packages) == 1 else 'are'}"
    return f'{names} not installed: pip install "nemo_codert[{extra}]" (in a checkout: ".[{extra}]")'
