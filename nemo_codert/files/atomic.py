"""Writing output: a file, the files of a folder, or a new folder is there as a whole or not at all.

Everything is first written under a temporary name in the same folder, and renamed when all of it is there. A name that
was taken before keeps its old content until then. `folder_to_fill` is for commands that write file by file.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from nemo_codert.files.disk_errors import named_when_full

UNFINISHED = ".part"  # ending of a file that is being written
NAME_LENGTH = 50  # characters of the final name in the temporary one: file systems allow 255 bytes


@contextmanager
def whole_file(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path`, which replaces `path` when the block ends without an error.

    With an error the temporary file is removed and `path` stays as it was. Several processes may write one path at the
    same time.

    Args:
        path: the file. Its folder is made where it is missing.
        durable: flush the file and its folder to the disk, so that the new content also outlives a power failure.

    Raises:
        OSError: the disk is full; the error names `path`.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with whole_file(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [(file.name, file.read_text()) for file in folder.iterdir()]
        [('a.txt', 'whole')]
    """
    path = Path(path)
    # Not by `tempfile`: only their owner may read its files. The ending hides the file from searches for checkpoints.
    temporary = path.with_name(f".{path.name[:NAME_LENGTH]}_{uuid4().hex[:8]}{UNFINISHED}")
    try:
        with named_when_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if durable:
                _flush(temporary)
            os.replace(temporary, path)
            if durable:
                with suppress(OSError):  # not every file system can flush a folder
                    _flush(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def whole_folder(folder: str | Path, *, named: str | Path | None = None, last: str = "") -> Iterator[Path]:
    """Yield a temporary folder inside `folder`, whose files move up when the block ends without an error.

    With an error nothing is left: neither the temporary folder nor folders that were made for it. Other files in
    `folder` stay.

    Args:
        folder: made where it is missing.
        named: path that the error of a full disk names (default: the folder).
        last: ending of the names that move after all others: a file whose presence means that all are there.

    Raises:
        OSError: the folder cannot be made, or the disk is full.

    Example:
        >>> folder = Path(tempfile.mkdtemp()) / "new"
        >>> with whole_folder(folder) as temporary:
        ...     _ = (temporary / "a.txt").write_text("whole")
        >>> [file.name for file in folder.iterdir()]
        ['a.txt']
    """
    folder = Path(folder)
    with (
        _folder_unless_empty(folder),
        named_when_full(named or folder),
        _temporary_folder(folder, ".writing_") as name,
    ):
        yield Path(name)
        files = sorted(Path(name).iterdir(), key=lambda file: (bool(last) and file.name.endswith(last), file.name))
        for file in files:
            os.replace(file, folder / file.name)


@contextmanager
def whole_new_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which becomes `folder` when the block ends without an error.

    It may hold folders too. With an error nothing is left, nor are folders above it that were made for it.

    Args:
        folder: a path that is free, or an empty folder.

    Raises:
        OSError: the folder cannot be made, or the disk is full.

    Example:
        >>> folder = Path(tempfile.mkdtemp()) / "new"
        >>> with whole_new_folder(folder) as temporary:
        ...     (temporary / "inner").mkdir()
        >>> (folder / "inner").is_dir()
        True
    """
    folder = Path(folder)
    with (
        _folder_unless_empty(folder.parent),
        named_when_full(folder),
        _temporary_folder(folder.parent, f".{folder.name[:NAME_LENGTH]}.") as name,
    ):
        temporary = Path(name) / "folder"  # only its owner may read the one around it
        temporary.mkdir()
        yield temporary
        temporary.replace(folder)


def _temporary_folder(place: Path, prefix: str) -> tempfile.TemporaryDirectory:
    """Make a temporary folder; where that fails the error names the place, not the folder."""
    try:
        return tempfile.TemporaryDirectory(dir=place, prefix=prefix)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(place)) from None


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
        >>> out = Path(tempfile.mkdtemp()) / "new" / "out"
        >>> with folder_to_fill(out, "output_dir") as folder:
        ...     there = folder.is_dir()
        >>> there, out.exists(), out.parent.exists()
        (True, False, False)
    """
    folder = Path(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(_folder_unless_empty(folder))
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            reason = f"cannot write there ({error.strerror}). Give another folder"
            raise ValueError(f"`{name}` is {folder}: {reason}") from error
        yield folder


@contextmanager
def _folder_unless_empty(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; at the end remove what was made and is empty."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # ends at the first folder that holds something
            for each in made:
                each.rmdir()


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
