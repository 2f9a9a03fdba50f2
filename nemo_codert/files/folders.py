"""Output folders: made where they are missing, gone again where nothing came into them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile


@contextmanager
def folder_to_fill(folder: str | Path, name: str) -> Iterator[Path]:
    """Make a folder to write into; what was made is removed if nothing was written.

    Args:
        folder: made with its parents where it is missing.
        name: of the argument that gave the folder, for the message.

    Yields:
        The folder.

    Raises:
        ValueError: the folder cannot be made or written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with folder_to_fill(Path(parent) / "new" / "out", "output_dir") as folder:
        ...         there = folder.is_dir()
        ...     there, folder.exists()
        (True, False)
    """
    folder = Path(folder)
    made: list[Path] = []
    try:
        try:
            made += [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()
        except OSError as error:
            reason = f"cannot write there ({error.strerror}). Give another folder"
            raise ValueError(f"`{name}` is {folder}: {reason}") from error
        yield folder
    finally:
        with suppress(OSError):  # up to the first that holds something
            for path in made:
                path.rmdir()
